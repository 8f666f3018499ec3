"""Which key holds what; names of snapshots; pins, drills, and the lock that one prune holds."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.backup_data import a_manifest, flip

from stoker.backup import lock
from stoker.backup.lock import LEASE_S, PruneLost, PruneRunning
from stoker.backup.manifest import DamagedSnapshot, Entry
from stoker.backup.repository import Repository, SnapshotMissing, digest_of, object_key, snapshot_key
from stoker.objects.directory import DirectoryObjects
from stoker.objects.store import ObjectExists


class Clock:
    def __init__(self) -> None:
        self.now = 1.0e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repository(tmp_path, clock) -> Repository:
    return Repository(DirectoryObjects(tmp_path / "repository"), clock)


def test_an_empty_repository_says_what_to_do(repository):
    assert repository.snapshots() == ()
    with pytest.raises(SnapshotMissing, match="stoker backup create"):
        repository.snapshot("latest")


def test_snapshots_are_there_newest_first(repository):
    made = [a_manifest(created=1.0e9 + day * 86_400) for day in (2, 0, 1)]
    for manifest in made:
        repository.add(manifest)
    names = [snapshot.id for snapshot in repository.snapshots()]
    assert names == sorted(names, reverse=True)
    assert repository.snapshot("latest").id == made[0].id
    assert repository.snapshot(made[1].id).manifest == made[1]


def test_a_beginning_that_no_other_has_is_enough(repository):
    old, new = a_manifest(1.0e9), a_manifest(1.1e9)
    repository.add(old)
    repository.add(new)
    assert repository.snapshot(old.id[:8]).id == old.id
    with pytest.raises(SnapshotMissing, match=r"2 snapshots begin with '20'.*" + old.id):
        repository.snapshot("20")
    with pytest.raises(SnapshotMissing, match=r"no snapshot 'x'.*" + new.id):
        repository.snapshot("x")
    with pytest.raises(SnapshotMissing):
        repository.snapshot("")


def test_a_snapshot_is_never_written_over(repository):
    manifest = a_manifest()
    repository.add(manifest)
    repository.add(manifest)  # a repeated write of the same
    with pytest.raises(ObjectExists):
        repository.add(replace(manifest, host="another"))


def test_what_could_not_be_read_is_never_written(repository):
    bad = replace(a_manifest(), entries=(Entry("../x", "configuration", 1, "ab" * 32, "ab" * 32),))
    with pytest.raises(DamagedSnapshot):
        repository.add(bad)
    assert repository.snapshots() == ()


def test_a_damaged_one_is_shown_and_never_the_latest(repository, tmp_path):
    good, bad = a_manifest(1.0e9), a_manifest(1.1e9)
    repository.add(good)
    repository.add(bad)
    flip(tmp_path / "repository" / snapshot_key(bad.id), 30)
    shown = {snapshot.id: snapshot for snapshot in repository.snapshots()}
    assert shown[bad.id].manifest is None
    assert "damaged" in shown[bad.id].trouble
    assert shown[bad.id].created == 1.1e9
    assert repository.snapshot("latest").id == good.id
    with pytest.raises(DamagedSnapshot):
        repository.snapshot(bad.id).good()


def test_other_objects_among_the_snapshots_do_no_harm(repository):
    repository.objects.put("snapshots/readme.txt", b"hello")
    repository.objects.put("pins/hello", b"hello")
    assert repository.snapshots() == ()
    assert repository.pins() == frozenset()


def test_content_lies_under_its_digest(repository):
    digest = hashlib.sha256(b"hello").hexdigest()
    repository.put_object(digest, b"hello")
    assert object_key(digest) == f"objects/{digest[:2]}/{digest}"
    assert digest_of(object_key(digest)) == digest
    assert [digest_of(item.key) for item in repository.stored_objects()] == [digest]
    assert repository.has(digest)
    assert repository.has(digest, 5)
    assert not repository.has(digest, 6)
    assert repository.missing({digest: 5, "ab" * 32: 1}) == {"ab" * 32}
    assert b"".join(repository.stream_object(digest)) == repository.get_object(digest) == b"hello"


def test_other_keys_have_no_digest():
    digest = "ab" * 32
    for key in (f"objects/cd/{digest}", digest, f"objects/ab/{digest}x", "objects/ab/", f"x/objects/ab/{digest}"):
        assert digest_of(key) is None


def test_pins_come_and_go(repository):
    manifest = a_manifest()
    repository.add(manifest)
    repository.pin(manifest.id)
    assert repository.snapshot(manifest.id).pinned
    repository.unpin(manifest.id)
    repository.unpin(manifest.id)
    assert not repository.snapshot(manifest.id).pinned
    for name in (a_manifest(5.0).id, "../x", "latest"):
        with pytest.raises(SnapshotMissing):
            repository.pin(name)


def test_a_removed_snapshot_takes_its_pin_along(repository):
    manifest = a_manifest()
    repository.add(manifest)
    repository.pin(manifest.id)
    repository.remove(manifest.id)
    assert repository.snapshots() == ()
    assert repository.pins() == frozenset()


def test_the_last_drill_is_remembered(repository, clock, tmp_path):
    assert repository.last_drill() is None
    repository.record_drill({"ok": False})
    clock.now += 1
    repository.record_drill({"ok": True, "seconds": 2.5})
    assert repository.last_drill() == {"ok": True, "seconds": 2.5}
    assert len(list(repository.objects.list("drills/"))) == 3
    flip(tmp_path / "repository" / "drills" / "last.json", 10)
    assert repository.last_drill() is None


def test_one_prune_at_a_time(repository):
    assert not repository.prune_lock()
    with repository.lock_for_prune() as held:
        assert repository.prune_lock()
        held.renew()
        with pytest.raises(PruneRunning, match="is being pruned by"), repository.lock_for_prune():
            pass
    assert not repository.prune_lock()
    with repository.lock_for_prune():
        pass


def test_the_lock_is_let_go_when_the_prune_fails(repository):
    with pytest.raises(RuntimeError), repository.lock_for_prune():
        raise RuntimeError
    assert not repository.prune_lock()


def test_a_dead_holder_is_followed_and_notices_when_it_was_not_dead(repository, clock):
    with repository.lock_for_prune() as slow:
        clock.now += LEASE_S - 1
        slow.renew()
        clock.now += LEASE_S - 1
        assert repository.prune_lock()
        clock.now += 2
        assert not repository.prune_lock()
        with repository.lock_for_prune() as quick:
            with pytest.raises(PruneLost, match="run it again"):
                slow.renew()
            quick.renew()
            slow.release()
            assert repository.prune_lock()
        with pytest.raises(PruneLost):
            slow.renew()
    assert not repository.prune_lock()


def test_garbage_and_a_wrong_clock_hold_nobody_up(repository, clock):
    for words in (b"garbage", b"{}", b'{"owner": "x", "since": 1, "expires": 1e300}', b"[]"):
        with repository.lock_for_prune() as held:
            number = held._number
        repository.objects.put(f"prune.lock/{number:08}", words)
        assert not repository.prune_lock()
    with repository.lock_for_prune():
        assert repository.prune_lock()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_only_one_gets_the_lock(repository, clock, stale):
    for _ in range(10):
        contexts = [repository.lock_for_prune() for _ in range(9)]
        if stale:
            contexts[8].__enter__()
            clock.now += LEASE_S + 1
        with ThreadPoolExecutor(8) as pool:
            got = [held for held in pool.map(entered, contexts[:8]) if held is not None]
        assert len(got) == 1
        got[0].renew()
        got[0].release()


def test_who_looked_long_ago_gets_no_number_that_was_tidied_away(repository, monkeypatch):
    with repository.lock_for_prune():
        pass
    look = repository.objects.list

    def slowly(prefix: str):
        """Two others come and go after this look."""
        seen = list(look(prefix))
        monkeypatch.setattr(repository.objects, "list", look)
        for _ in range(2):
            with repository.lock_for_prune():
                pass
        return iter(seen)

    locks = [item.key for item in look("prune.lock/")]
    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    monkeypatch.setattr(repository.objects, "list", slowly)
    with pytest.raises(PruneRunning, match="at the same moment"), repository.lock_for_prune():
        pass
    left = [item.key for item in look("prune.lock/")]
    assert len(left) == 1
    assert left > locks


def entered(context) -> object | None:
    """The lock, or None where another has it."""
    try:
        return context.__enter__()
    except PruneRunning:
        return None
