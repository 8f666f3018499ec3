"""Restoring: nothing is overwritten unasked, nothing damaged is put in place, and an interrupted restore goes on."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
from tests.backup_data import KEY, Data, files_in, flip, restore_to
from tests.backup_stores import repository_at
from tests.small_disk import small_disk

from stoker.backup import landing, sealing
from stoker.backup.create import Options
from stoker.backup.landing import CannotRestore
from stoker.backup.manifest import DamagedSnapshot, encode_document
from stoker.backup.occupancy import InUse, serving
from stoker.backup.repository import Repository, object_key, snapshot_key
from stoker.backup.restore import RestoreConflict
from stoker.backup.sealing import WrongKey
from stoker.models.registry import ModelRegistry


@pytest.fixture(autouse=True)
def _cheap_guesses(monkeypatch):
    monkeypatch.setattr(sealing, "COST_LOG2", 4)


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path)


@pytest.fixture
def repository(tmp_path) -> Repository:
    return repository_at(str(tmp_path / "repository"))


@pytest.fixture
def full(data, repository) -> Data:
    """A host of which there is a snapshot with something of every kind."""
    data.add(1)
    data.add(2)
    data.pin("tiny", "tiny@1", "tiny@2", "0" * 64)
    (data.data_dir / "jobs").mkdir()
    log = sqlite3.connect(data.data_dir / "jobs" / "jobs.db")
    log.execute("CREATE TABLE t (a)")
    log.close()
    (data.data_dir / "keys.yaml").write_text("keys: []\n")
    data.create(repository, Options(jobs=True, key=KEY), models=[{"name": "tiny", "source": "tiny@1"}])
    return data


def whats(restored) -> dict[str, str]:
    return {action.path.partition("/")[0]: action.what for action in restored.actions}


def test_a_second_restore_finds_all_of_it_there(full, repository, tmp_path):
    restore_to(tmp_path / "new", repository, key=KEY)
    before = files_in(tmp_path / "new")
    again = restore_to(tmp_path / "new", repository, key=KEY)
    assert {action.what for action in again.actions} == {"same"}
    assert files_in(tmp_path / "new") == before
    assert {"models", "rollouts", "jobs", "keys.yaml"} <= {name.partition("/")[0] for name in before}


def test_what_differs_is_named_before_anything_is_written(full, repository, tmp_path):
    target = tmp_path / "new"
    target.mkdir()
    (target / "stoker.yaml").write_text("port: 1\n")
    (target / "rollouts").mkdir()
    (target / "rollouts" / "pins.json").write_text("{}")
    before = files_in(target)
    with pytest.raises(RestoreConflict, match=r"pins.json.*stoker.yaml.*nothing was written.*--force"):
        restore_to(target, repository)
    assert files_in(target) == before
    dry = restore_to(target, repository, dry_run=True)
    assert whats(dry) == {
        "models": "write",
        "rollouts": "conflict",
        "jobs": "write",
        "secrets": "left out",
        "keys.yaml": "write",
        "stoker.yaml": "conflict",
    }
    assert files_in(target) == before
    restore_to(target, repository, force=True)
    assert whats(restore_to(target, repository))["stoker.yaml"] == "same"


def test_a_damaged_or_lost_model_is_put_right_without_force(full, repository):
    good = files_in(full.data_dir / "models")
    first, second = full.registry.list()
    flip(first.path)
    second.path.unlink()
    restored = restore_to(full.data_dir, repository, only=frozenset({"model"}))
    assert [action.what for action in restored.actions if action.path.startswith("models/blobs")] == ["write", "write"]
    assert files_in(full.data_dir / "models") == good


def test_a_model_that_was_added_again_is_the_same_model(full, repository, tmp_path):
    other = Data(tmp_path / "elsewhere")
    other.place.mkdir()
    other.add(1)
    restored = restore_to(other.data_dir, repository, only=frozenset({"registry"}))
    assert {action.path: action.what for action in restored.actions}["models/refs/tiny/1.json"] == "write"
    # The one that was added last is what the bare name means: on the host of the snapshot it was the second.
    assert [model.ref for model in other.registry.list()] == ["tiny@1", "tiny@2"]


def test_another_model_under_the_same_name_is_a_conflict(full, repository, tmp_path):
    other = Data(tmp_path / "elsewhere")
    other.place.mkdir()
    other.add(9)
    with pytest.raises(RestoreConflict, match=r"tiny/1\.json"):
        restore_to(other.data_dir, repository, only=frozenset({"model"}))


@pytest.mark.parametrize(
    ("only", "there"),
    [
        ({"model"}, {"models"}),
        ({"registry"}, {"models"}),
        ({"configuration"}, {"keys.yaml", "stoker.yaml"}),
        ({"rollouts", "jobs"}, {"rollouts", "jobs"}),
    ],
)
def test_only_what_is_asked_for_is_restored(full, repository, tmp_path, only, there):
    restored = restore_to(tmp_path / "new", repository, only=frozenset(only))
    assert {path.name for path in (tmp_path / "new").iterdir()} - {".in-use"} == there
    assert {name for name, what in whats(restored).items() if what == "left out"} >= {"secrets"}


def test_secrets_need_their_key(full, repository, tmp_path):
    with pytest.raises(WrongKey, match="--key-file"):
        restore_to(tmp_path / "new", repository, only=frozenset({"secrets"}))
    with pytest.raises(WrongKey, match="another key"):
        restore_to(tmp_path / "new", repository, key="another passphrase")
    assert not (tmp_path / "new").exists()


def test_keys_that_are_there_are_better_than_none(full, repository, tmp_path):
    keys = tmp_path / "new" / "keys.yaml"
    keys.parent.mkdir()
    keys.write_text("keys:\n- name: bob\n  hash: sha256:" + "ab" * 32 + "\n")
    assert whats(restore_to(tmp_path / "new", repository))["keys.yaml"] == "left out"
    assert "bob" in keys.read_text()


def test_the_configuration_may_go_elsewhere(full, repository, tmp_path):
    elsewhere = tmp_path / "etc" / "stoker" / "main.yaml"
    restored = restore_to(tmp_path / "new", repository, config_to=elsewhere)
    assert f"data_dir: {tmp_path / 'new'}" in elsewhere.read_text()
    assert not (tmp_path / "new" / "stoker.yaml").exists()
    assert str(elsewhere) in {action.path for action in restored.actions}


def test_a_running_server_is_not_restored_over(full, repository):
    with serving(full.data_dir), pytest.raises(InUse, match="stop that first"):
        restore_to(full.data_dir, repository, force=True)


@pytest.mark.parametrize("kind", ["model", "registry", "configuration", "secrets", "rollouts", "jobs"])
@pytest.mark.parametrize("harm", ["flipped", "missing", "longer"])
def test_damaged_content_is_never_put_in_place(full, repository, tmp_path, kind, harm):
    entry = next(entry for entry in repository.snapshot("latest").good().entries if entry.kind == kind)
    stored = tmp_path / "repository" / object_key(entry.stored)
    if harm == "flipped":
        flip(stored)
    elif harm == "missing":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes() + b"x" * (1 << 20))
    with pytest.raises(DamagedSnapshot, match="use another snapshot"):
        restore_to(tmp_path / "new", repository, key=KEY if kind == "secrets" else None)
    belongs = {"secrets/stoker.yaml": "stoker.yaml"}.get(entry.path, entry.path)
    assert not (tmp_path / "new" / belongs).exists()
    assert not list((tmp_path / "new").rglob("*.restoring"))
    assert not (tmp_path / "new" / "stoker.yaml").exists()


def test_a_restore_that_was_interrupted_goes_on(full, repository, tmp_path, monkeypatch):
    fill, calls = landing._fill, []

    def dies_at_the_second(path, *rest) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        fill(path, *rest)

    monkeypatch.setattr(landing, "_fill", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        restore_to(tmp_path / "new", repository)
    assert not list((tmp_path / "new" / "models").rglob("*.json"))
    again = restore_to(tmp_path / "new", repository)
    assert [action.what for action in again.actions[:2]] == ["same", "write"]
    assert all(ModelRegistry(tmp_path / "new").verify(ref).ok for ref in ("tiny@1", "tiny@2"))


def test_what_a_killed_restore_left_is_written_over(full, repository, tmp_path):
    model = full.registry.list()[0]
    beside = tmp_path / "new" / "models" / "blobs" / f".{model.digest}.restoring"
    beside.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    beside.symlink_to(tmp_path / "precious")
    restore_to(tmp_path / "new", repository)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not beside.is_symlink()


def test_a_log_of_changes_of_another_job_log_is_removed(full, repository, tmp_path):
    jobs = tmp_path / "new" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "jobs.db").write_bytes(b"another")
    (jobs / "jobs.db-wal").write_bytes(b"changes")
    (jobs / "jobs.db-shm").write_bytes(bytes(200))
    restore_to(tmp_path / "new", repository, only=frozenset({"jobs"}), force=True)
    assert [path.name for path in jobs.iterdir()] == ["jobs.db"]
    assert (jobs / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_a_disk_without_room_is_told_before_anything_is_written(data, repository, tmp_path):
    data.add(1, elements=1 << 20)
    data.create(repository)
    with small_disk(tmp_path / "small", "1m") as small:
        with pytest.raises(CannotRestore, match=r"no room: 4,\d{3},\d{3} bytes needed.*nothing was written"):
            restore_to(small / "new", repository)
        assert list(small.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half(data, repository, tmp_path, monkeypatch):
    data.add(1, elements=1 << 20)
    data.create(repository)
    monkeypatch.setattr("stoker.backup.restore.check_room", lambda _: None)
    with small_disk(tmp_path / "small", "1m") as small:
        with pytest.raises(CannotRestore, match=r"No space left.*make room"):
            restore_to(small / "new", repository)
        assert not list((small / "new" / "models" / "blobs").iterdir())


def test_a_place_that_is_no_directory_is_told(full, repository, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Exception, match=str(tmp_path / "file")) as caught:
        restore_to(tmp_path / "file" / "new", repository)
    assert "cannot be written" in str(caught.value)


def test_a_snapshot_with_a_damaged_manifest_is_refused(full, repository, tmp_path):
    name = repository.snapshot("latest").id
    flip(tmp_path / "repository" / snapshot_key(name), 50)
    with pytest.raises(DamagedSnapshot, match="use another snapshot"):
        restore_to(tmp_path / "new", repository, name)
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_an_enemy_writes_nothing_outside(full, repository, tmp_path):
    good = repository.snapshot("latest").good()
    for path in ("../evil", "/tmp/evil", "models/blobs/../../../evil", "configured/../../evil"):
        entry = replace(next(e for e in good.entries if e.kind == "configuration"), path=path)
        document = {
            "format": 1,
            "id": good.id,
            "created": good.created,
            "host": "h",
            "version": "1",
            "tags": [],
            "locked_until": None,
            "seconds": 0,
            "sent_bytes": 0,
            "entries": [{**{name: getattr(entry, name) for name in entry.__slots__}}],
        }
        repository.objects.put(snapshot_key(good.id), encode_document(document))
        with pytest.raises(DamagedSnapshot):
            restore_to(tmp_path / "new", repository, good.id)
    assert not list(tmp_path.rglob("evil"))


def test_a_restored_host_makes_the_same_snapshot(full, repository, tmp_path):
    other = Data(tmp_path / "other")
    other.place.mkdir()
    restore_to(other.data_dir, repository, only=frozenset({"model", "rollouts"}))
    first = {entry for entry in repository.snapshot("latest").good().entries if entry.kind in {"model", "registry"}}
    made = other.create(repository, models=[{"name": "tiny", "source": "tiny@1"}])
    assert first <= set(made.manifest.entries)
    assert [entry.path for entry in made.manifest.entries if entry not in first][-1] == "stoker.yaml"
    assert made.sent <= 1
