"""What a prune removes and what it leaves, in a directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.prune_work import DAY, Interfering, Notes, contents, digest, ids, incomplete, keep, keys, nothing, pruned

from stoker.backup.lock import LEASE_S, PruneLost, PruneRunning
from stoker.backup.prune import BATCH, plan_prune
from stoker.backup.repository import Repository, object_key, snapshot_key
from stoker.backup.retention import EmptyPolicy
from stoker.config.keeping import RetentionConfig
from stoker.objects.directory import DirectoryObjects
from stoker.objects.store import ObjectLocked, StorageError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def store(place: Path) -> Interfering:
    """The repository's store, whose objects all are a week old."""
    interfering = Interfering(DirectoryObjects(place), nothing)
    interfering.ages = {"objects/": 7 * DAY}
    return interfering


@pytest.fixture
def repository(store: Interfering) -> Repository:
    return Repository(store)


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_snapshots_go_and_with_them_what_nobody_else_needs(repository):
    old = keep(repository, b"shared", b"only the old one's", days=3)
    older = keep(repository, b"shared", b"the older one's", b"and this", days=4)
    new = keep(repository, b"shared", b"the new one's")
    progress = Notes()
    result = pruned(repository, progress=progress)
    assert result.removed == (old, older)
    assert ids(repository) == {new}
    assert contents(repository) == keys(b"shared", b"the new one's")
    gone = (b"only the old one's", b"the older one's", b"and this")
    assert (result.collected, result.freed) == (3, sum(map(len, gone)))
    assert progress.updates[-1] == (result.freed, result.freed)
    assert not incomplete(repository)
    assert not repository.prune_lock()


def test_a_second_prune_finds_nothing_to_do(repository):
    for days in range(5):
        keep(repository, b"%d" % days, days=days)
    assert len(pruned(repository, last=2).removed) == 3
    again = pruned(repository, last=2)
    assert (again.removed, again.collected, again.freed, dict(again.held)) == ((), 0, 0, {})


def test_a_dry_run_changes_nothing_and_says_the_same(repository, place):
    keep(repository, b"new")
    keep(repository, b"old", days=2)
    before = files(place)
    dry = pruned(repository, dry_run=True)
    assert files(place) == before
    assert dry.dry_run
    wet = pruned(repository)
    assert (dry.removed, dry.collected, dry.freed) == (wet.removed, wet.collected, wet.freed)
    assert dry.plan.decision == wet.plan.decision


def test_a_dry_run_is_possible_while_another_prunes(repository):
    keep(repository, b"new")
    with repository.lock_for_prune():
        assert pruned(repository, dry_run=True).removed == ()
        with pytest.raises(PruneRunning):
            pruned(repository)


def test_objects_that_nobody_needs_stay_for_the_grace_period(repository, store):
    keep(repository, b"new")
    keep(repository, b"old", days=2)
    store.ages = {object_key(digest(b"old")): 3600.0}
    first = pruned(repository, grace_s=7200.0)
    assert (len(first.removed), first.collected, first.plan.young) == (1, 0, 1)
    store.ages = {object_key(digest(b"old")): 7300.0}
    later = pruned(repository, grace_s=7200.0)
    assert (later.collected, later.plan.young) == (1, 0)
    assert contents(repository) == keys(b"new")


def test_the_stores_clock_counts_where_this_hosts_is_ahead(repository, store):
    keep(repository, b"new")
    keep(repository, b"old", days=2)
    locked = keep(repository, b"locked", days=3, locked_until=time.time() + 3600)
    store.ages = {}
    result = pruned(repository, grace_s=DAY, now=time.time() + 30 * DAY)
    assert result.plan.young == 1
    assert contents(repository) == keys(b"new", b"old", b"locked")
    assert locked in ids(repository)


def test_a_snapshot_of_a_host_whose_clock_was_ahead_has_the_stores_date(repository):
    ahead = keep(repository, b"ahead", days=-400)
    new = keep(repository, b"new")
    result = pruned(repository, last=2)
    assert set(result.plan.decision.keep) == {ahead, new}
    assert sorted(why[-1] for why in result.plan.decision.keep.values()) == ["last 1 of 2", "last 2 of 2"]


def test_without_a_rule_nothing_is_even_locked(repository, store):
    keep(repository, b"content")
    touched = []
    store.before = lambda *call: touched.append(call)
    with pytest.raises(EmptyPolicy):
        pruned(repository, last=None)
    with pytest.raises(EmptyPolicy):
        plan_prune(repository, RetentionConfig(), time.time(), 0.0)
    assert touched == []


def test_an_empty_repository_is_pruned_to_an_empty_one(repository):
    result = pruned(repository)
    assert (result.removed, result.collected) == ((), 0)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"not JSON", b"\xff" * 100, None])
def test_nothing_is_collected_while_a_manifest_cannot_be_read(repository, place, garbage):
    keep(repository, b"new")
    keep(repository, b"old", days=2)
    bad = keep(repository, b"the bad one's", days=3)
    path = place / snapshot_key(bad)
    damaged = path.read_bytes().replace(b'"format":1', b'"format":2') if garbage is None else garbage
    path.write_bytes(damaged)
    result = pruned(repository)
    assert bad in result.plan.decision.keep
    assert bad not in result.removed
    assert result.collected == 0
    assert contents(repository) == keys(b"new", b"old", b"the bad one's")
    assert any(bad in trouble for trouble in result.plan.troubles)
    assert any(
        "no objects are collected" in trouble and snapshot_key(bad) in trouble for trouble in result.plan.troubles
    )
    path.unlink()
    assert pruned(repository).collected == 2
    assert contents(repository) == keys(b"new")


@pytest.mark.parametrize("harm", ["missing", "cut short"])
def test_a_snapshot_that_lacks_something_stays_and_uses_up_no_place(repository, place, harm):
    good = keep(repository, b"good", days=1)
    older = keep(repository, b"older", days=2)
    broken = keep(repository, b"lost content", b"the rest")
    path = place / object_key(digest(b"lost content"))
    path.unlink()
    if harm == "cut short":
        path.write_bytes(b"lost")
    result = pruned(repository)
    assert ids(repository) == {good, broken}
    assert result.removed == (older,)
    assert keys(b"good", b"the rest") <= contents(repository)
    (trouble,) = result.plan.troubles
    assert f"snapshot {broken}: 1 of its 2 files cannot be restored" in trouble
    repository.put_object(digest(b"lost content"), b"lost content")
    assert pruned(repository).removed == (good,)


def test_strange_files_are_left_alone(repository, place):
    keep(repository, b"content")
    strange = ["objects/README", "objects/ab/notes.txt", f"objects/ab/{'cd' * 32}", "snapshots/notes.txt", "other/x"]
    for name in strange:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"somebody's")
    assert pruned(repository).collected == 0
    assert all((place / name).read_bytes() == b"somebody's" for name in strange)


def test_pins_go_with_their_snapshots_and_keep_them_before(repository):
    keep(repository, b"new")
    old = keep(repository, b"old", days=2)
    repository.pin(old)
    assert pruned(repository).removed == ()
    repository.unpin(old)
    assert pruned(repository).removed == (old,)


def refusing(*held: str):
    def before(what: str, key: str) -> None:
        if what == "delete" and key in held:
            raise ObjectLocked(f"{key}: cannot be deleted: retention holds it")

    return before


def test_a_held_snapshot_stays_with_all_its_objects_and_is_told(repository, store):
    new = keep(repository, b"new")
    held = keep(repository, b"held", b"held too", days=2)
    free = keep(repository, b"free", b"held too", days=3)
    store.before = refusing(snapshot_key(held))
    progress = Notes()
    result = pruned(repository, progress=progress)
    assert result.removed == (free,)
    assert set(result.held) == {snapshot_key(held)}
    assert progress.notes == [f"{snapshot_key(held)}: cannot be deleted: retention holds it"]
    assert ids(repository) == {new, held}
    assert contents(repository) == keys(b"new", b"held", b"held too")
    assert (result.collected, result.freed) == (1, len(b"free"))
    assert not incomplete(repository)


def test_a_held_object_stays_and_the_others_go(repository, store):
    keep(repository, b"new")
    keep(repository, b"held", b"free", days=2)
    store.before = refusing(*keys(b"held"))
    result = pruned(repository)
    assert set(result.held) == keys(b"held")
    assert result.collected == 1
    assert contents(repository) == keys(b"new", b"held")


def test_a_snapshot_that_is_pinned_meanwhile_stays(repository, store):
    keep(repository, b"new")
    old = keep(repository, b"old", days=2)

    def pin_late(what: str, key: str) -> None:
        if (what, key) == ("list", "objects/"):
            repository.pin(old)

    store.before = pin_late
    progress = Notes()
    assert pruned(repository, progress=progress).removed == ()
    assert "pinned meanwhile" in progress.notes[0]
    assert contents(repository) == keys(b"new", b"old")


def test_what_a_snapshot_made_meanwhile_needs_stays(repository, store):
    keep(repository, b"new")
    keep(repository, b"back again", b"gone", days=2)
    late = []

    def make_late(what: str, key: str) -> None:
        if what == "delete" and key.startswith("snapshots/"):
            store.before = nothing
            late.append(keep(repository, b"back again"))

    store.before = make_late
    result = pruned(repository)
    assert result.collected == 1
    assert set(late) <= ids(repository)
    assert contents(repository) == keys(b"new", b"back again")


def test_a_manifest_that_is_damaged_meanwhile_ends_the_collection(repository, store, place):
    new = keep(repository, b"new")
    keep(repository, b"old", days=2)

    def damage(what: str, key: str) -> None:
        if what == "delete" and key.startswith("snapshots/"):
            (place / snapshot_key(new)).write_bytes(b"{")

    store.before = damage
    progress = Notes()
    assert pruned(repository, progress=progress).collected == 0
    assert "cannot be read any more" in progress.notes[0]
    assert contents(repository) == keys(b"new", b"old")


def test_the_lock_is_renewed_and_the_snapshots_looked_at_in_each_batch(repository, store, place):
    keep(repository, b"new")
    many = [b"object %d" % number for number in range(2 * BATCH + 10)]
    keep(repository, *many, days=2)
    calls = []
    store.before = lambda what, key: calls.append(what if what != "put" else key.split("/")[0])
    assert pruned(repository).collected == len(many)
    assert calls.count("prune.lock") == 1 + 1 + 3 + 1  # taken, manifests, three batches, released
    assert contents(repository) == keys(b"new")


def test_a_prune_whose_lock_was_taken_over_deletes_nothing_more(repository, store, place):
    keep(repository, b"new")
    keep(repository, b"old", days=2)

    def away_for_long(what: str, key: str) -> None:
        if (what, key) == ("list", "objects/"):
            store.before = nothing
            other = Repository(store, clock=lambda: time.time() + LEASE_S + 1)
            other.lock_for_prune().__enter__()

    store.before = away_for_long
    with pytest.raises(PruneLost, match="another one took over"):
        pruned(repository)
    assert len(ids(repository)) == 2
    assert contents(repository) == keys(b"new", b"old")


def test_a_store_that_fails_half_way_leaves_whole_snapshots_and_no_lock(repository, store):
    keep(repository, b"new")
    keep(repository, *(b"object %d" % number for number in range(10)), days=2)
    left = 4

    def fail_later(what: str, key: str) -> None:
        nonlocal left
        if what == "delete" and key.startswith("objects/"):
            left -= 1
            if left == 0:
                raise StorageError("the disk is gone; mount it")

    store.before = fail_later
    with pytest.raises(StorageError, match="mount it"):
        pruned(repository)
    assert not repository.prune_lock()
    assert not incomplete(repository)
    assert pruned(repository).collected == 7
    assert contents(repository) == keys(b"new")


def test_rests_of_interrupted_writes_are_cleared_when_they_are_old(repository, place):
    keep(repository, b"new")
    drafts = place / ".tmp"
    for name, days in (("young", 0.5), ("old", 1.5)):
        (drafts / name).write_bytes(b"half")
        os.utime(drafts / name, (time.time() - days * DAY,) * 2)
    assert pruned(repository).swept == 1
    assert [path.name for path in drafts.iterdir()] == ["young"]
    assert pruned(repository, grace_s=0.0).swept == 0
