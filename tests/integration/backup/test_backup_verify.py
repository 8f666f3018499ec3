"""Verifying finds every flipped bit, wherever it is, in both kinds of store."""

from __future__ import annotations

import sqlite3

import pytest
from tests.backup_data import KEY, Data
from tests.backup_stores import STORES, address_of, repository_at
from tests.probes import note

from stoker.backup import sealing
from stoker.backup.create import Options
from stoker.backup.manifest import KINDS, new_id
from stoker.backup.repository import Repository, object_key, pin_key, snapshot_key
from stoker.backup.verify import SMALL, verify
from stoker.models.partial import Quiet
from stoker.objects.store import StorageError


class Told:
    def __init__(self) -> None:
        self.updates: list[tuple[int, int | None]] = []

    def update(self, done: int, total: int | None) -> None:
        self.updates.append((done, total))

    def note(self, text: str) -> None:
        pass


@pytest.fixture(autouse=True)
def _cheap_guesses(monkeypatch):
    monkeypatch.setattr(sealing, "COST_LOG2", 4)


@pytest.fixture(params=STORES)
def repository(request, monkeypatch, tmp_path) -> Repository:
    return repository_at(address_of(request.param, request, monkeypatch, tmp_path))


@pytest.fixture
def full(tmp_path, repository) -> Repository:
    """A repository with two snapshots, which share what did not change, a pin, and a drill."""
    data = Data(tmp_path)
    data.add(1)
    data.add(2, elements=SMALL)  # four times as many bytes
    data.pin("tiny", "tiny@1", "tiny@2", "0" * 64)
    (data.data_dir / "jobs").mkdir()
    sqlite3.connect(data.data_dir / "jobs" / "jobs.db").close()
    (data.data_dir / "keys.yaml").write_text("keys: []\n")
    for _ in range(2):
        made = data.create(repository, Options(jobs=True, key=KEY), models=[{"name": "tiny", "source": "tiny@1"}])
    repository.pin(made.manifest.id)
    repository.record_drill({"ok": True})
    return repository


def harm(repository: Repository, key: str) -> None:
    """Flip a bit in the middle of an object."""
    data = bytearray(repository.objects.get(key))
    data[len(data) // 2] ^= 1
    repository.objects.put(key, bytes(data))


def check(repository: Repository, **how):
    return verify(repository, repository.snapshots(), Quiet(), **how)


def test_a_good_repository_is_read_once(full):
    told = Told()
    found = verify(full, full.snapshots(), told)
    assert found.ok
    digests = {entry.stored for snapshot in full.snapshots() for entry in snapshot.good().entries}
    assert found.checked == len(digests)
    done, total = told.updates[-1]
    assert done == total == found.bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_content_is_found(full, kind):
    newest = full.snapshot("latest").good()
    large = max((entry for entry in newest.entries if entry.kind == kind), key=lambda entry: entry.size, default=None)
    if large is None or large.size == 0:
        pytest.skip(f"an empty {kind} has no bits")
    harm(full, object_key(large.stored))
    found = check(full)
    users = {one.id for one in full.snapshots() if large.stored in one.good().objects}
    assert {(bad.snapshot, bad.path, bad.digest) for bad in found.bad} == {
        (name, large.path, large.stored) for name in users
    }
    assert "is damaged" in found.bad[0].what
    note(f"a flipped bit in: {kind}", store=type(full.objects).__name__, found=f"{large.path} is damaged")


@pytest.mark.parametrize("what", ["manifest", "pin", "drill", "last drill"])
def test_a_flipped_bit_elsewhere_is_found(full, what):
    name = full.snapshot("latest").id
    drills = sorted(item.key for item in full.objects.list("drills/"))
    key = {"manifest": snapshot_key(name), "pin": pin_key(name), "drill": drills[0], "last drill": drills[1]}[what]
    harm(full, key)
    found = check(full)
    assert len(found.bad) == 1
    assert found.bad[0].path == key
    note(f"a flipped bit in: {what}", store=type(full.objects).__name__, found="damaged, named by its key")


def test_what_is_missing_is_found(full):
    entry = next(entry for entry in full.snapshot("latest").good().entries if entry.kind == "model")
    full.objects.delete(object_key(entry.stored))
    for sample in (0.0, 1.0):
        assert {bad.what.split(" ", 1)[1][:10] for bad in check(full, sample=sample).bad} == {"is missing"}


def test_a_pin_without_its_snapshot_is_found(full):
    name = new_id(5.0)
    full.objects.put(pin_key(name), name.encode())
    assert "not there" in check(full).bad[0].what


def test_a_sample_always_has_what_is_small_and_is_the_same_for_the_same_seed(full):
    small = check(full, sample=0.0)
    whole = check(full, sample=1.0)
    assert small.checked == whole.checked - 1
    assert small.bytes < SMALL < whole.bytes
    halves = [check(full, sample=0.5, seed=seed).checked for seed in range(12)]
    assert halves == [check(full, sample=0.5, seed=seed).checked for seed in range(12)]
    assert set(halves) == {small.checked, whole.checked}


def test_without_the_key_sealed_content_is_known_to_be_what_was_stored(full):
    assert check(full).ok
    assert check(full, key=KEY).ok
    assert {bad.path for bad in check(full, key="another passphrase").bad} == {
        "secrets/stoker.yaml",
        "secrets/keys.yaml",
    }


def test_a_snapshot_that_was_removed_meanwhile_is_no_damage(full):
    snapshots = full.snapshots()
    full.remove(snapshots[1].id)
    assert verify(full, snapshots, Quiet()).ok


def test_a_repository_that_fails_ends_it(full, monkeypatch):
    def fail(_: str):
        raise StorageError("gone")

    snapshots = full.snapshots()
    monkeypatch.setattr(full.objects, "stream", fail)
    with pytest.raises(StorageError, match="gone"):
        verify(full, snapshots, Quiet())
