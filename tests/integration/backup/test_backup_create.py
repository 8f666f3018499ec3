"""Snapshots made of a data directory, and put back, in both kinds of store."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from tests.backup_data import KEY, Data, a_manifest, files_in, flip, restore_to
from tests.backup_stores import STORES, address_of, repository_at

from stoker.backup import create as creating
from stoker.backup.create import Options, create
from stoker.backup.inventory import CannotBackUp
from stoker.backup.models import DamagedModel
from stoker.backup.repository import Repository, object_key
from stoker.backup.verify import verify
from stoker.config.settings import ExactSettings
from stoker.errors import ModelFileError
from stoker.models.partial import Quiet
from stoker.models.registry import ModelRegistry
from stoker.models.resolve import open_model
from stoker.objects.store import StorageError


@pytest.fixture(params=STORES)
def repository(request, monkeypatch, tmp_path) -> Repository:
    return repository_at(address_of(request.param, request, monkeypatch, tmp_path))


@pytest.fixture
def local(tmp_path) -> Repository:
    """One in a directory, where it makes no difference."""
    return repository_at(str(tmp_path / "local"))


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path)


def everything(repository: Repository) -> set[str]:
    return {item.key for item in repository.objects.list("")}


def test_an_empty_host_gets_the_very_same_files(data, repository, tmp_path):
    data.add(1)
    data.add(2)
    data.add(2, name="other")
    data.pin("tiny", "tiny@1", "tiny@2", "0" * 64)
    (data.data_dir / "rollouts" / "rol-0123456789abcdef.json").write_text("{}")
    made = data.create(repository, Options(tags=("first",)), models=[{"name": "tiny", "source": "tiny@1"}])
    assert made.reused == 0
    assert made.manifest.tags == ("first",)
    shown = repository.snapshot("latest")
    assert shown.manifest == made.manifest
    # Three names for two files; each content is there once.
    assert sum(entry.kind == "model" for entry in made.manifest.entries) == 2
    restored = restore_to(tmp_path / "new", repository)
    assert {action.what for action in restored.actions} == {"write"}
    before, after = files_in(data.data_dir), files_in(tmp_path / "new")
    pins = "rollouts/pins.json"
    assert json.loads((tmp_path / "new" / pins).read_text()) == json.loads((data.data_dir / pins).read_text())
    del before[pins], after[pins]
    assert after == before
    assert ModelRegistry(tmp_path / "new").resolve("tiny").digest == data.registry.resolve("tiny").digest
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (tmp_path / "new/models/blobs").iterdir())
    settings = ExactSettings(**yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()))
    assert settings.data_dir == tmp_path / "new"
    assert settings.models[0].source == "tiny@1"
    assert verify(repository, [shown], Quiet(), key=None).bad == ()


def test_models_can_be_fetched_by_hand(data, repository):
    model = data.add(1)
    data.create(repository)
    assert b"".join(repository.objects.stream(f"objects/{model.digest[:2]}/{model.digest}")) == model.path.read_bytes()


def test_an_unchanged_model_is_neither_read_nor_sent(data, repository, monkeypatch):
    for seed in range(3):
        data.add(seed)
    first = data.create(repository)
    monkeypatch.setattr(creating, "checked_pieces", lambda *_: pytest.fail("a model was read"))
    second = data.create(repository)
    assert second.sent == 0
    assert second.reused == first.sent
    assert second.manifest.sent_bytes == 0
    assert second.manifest.size == first.manifest.size
    assert len(repository.snapshots()) == 2


def test_a_new_model_is_the_only_one_that_is_sent(data, repository):
    data.add(1)
    data.create(repository)
    new = data.add(2)
    made = data.create(repository)
    assert made.sent == 2  # the file and its name
    assert new.size < made.manifest.sent_bytes < new.size + 2000


def test_a_file_outside_the_registry_is_a_model_of_the_snapshot(data, repository, tmp_path):
    path = data.file(7, "My-Model.Q4_0.gguf")
    old = data.add(1, name="mine")
    made = data.create(repository, models=[{"name": "mine", "source": str(path)}, {"name": "also", "source": "mine"}])
    restore_to(tmp_path / "new", repository)
    settings = ExactSettings(**yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()))
    registry = ModelRegistry(tmp_path / "new")
    found = open_model(settings.models[0].source or "", registry, tmp_path / "new")
    assert found.path.read_bytes() == path.read_bytes()
    assert settings.models[0].source == f"mine@{found.identity.digest[:12]}"
    # What another setting means by the bare name is still the stored model.
    assert registry.resolve(settings.models[1].source or "").digest == old.digest
    assert sum(entry.kind == "model" for entry in made.manifest.entries) == 2


def test_addresses_become_the_names_under_which_they_are_stored(data, local, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "packages")
    package = tmp_path / "packages" / "some_models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    data.file(3).rename(package / "tiny.gguf")
    model = {"name": "served", "source": "python:some_models/tiny.gguf"}
    with pytest.raises(ModelFileError, match=r"model served: its address has not been fetched yet.*stoker models add"):
        data.create(local, models=[model])
    assert everything(local) == set()
    open_model(model["source"], data.registry, data.data_dir)
    data.create(local, models=[model])
    restore_to(tmp_path / "new", local)
    settings = ExactSettings(**yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()))
    assert settings.models[0].source == "tiny@1"


def test_what_a_rollout_switched_to_serves_after_a_restore(data, local, tmp_path):
    path = data.file(1)
    new = data.add(2)
    data.pin("tiny", str(path), new.ref, new.digest)
    data.create(local, models=[{"name": "tiny", "source": str(path)}])
    restore_to(tmp_path / "new", local)
    settings = ExactSettings(**yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()))
    pin = json.loads((tmp_path / "new/rollouts/pins.json").read_text())["tiny"]
    # A pin counts while the configuration says what it said then.
    assert pin["configured"] == settings.models[0].source
    assert pin["version"]["ref"] == new.ref


def test_a_pin_on_a_file_outside_the_registry_is_renamed_too(data, local, tmp_path):
    path = data.file(1)
    model = data.add(2)
    data.pin("tiny", model.ref, str(path), "0" * 64)
    data.create(local, models=[{"name": "tiny", "source": model.ref}])
    restore_to(tmp_path / "new", local)
    pin = json.loads((tmp_path / "new/rollouts/pins.json").read_text())["tiny"]
    assert pin["configured"] == model.ref
    assert ModelRegistry(tmp_path / "new").resolve(pin["version"]["ref"]).path.read_bytes() == path.read_bytes()


def test_a_source_that_is_gone_is_no_loss_where_another_version_serves(data, local, tmp_path):
    new = data.add(2)
    data.pin("tiny", "/gone/tiny.gguf", new.ref, new.digest)
    data.create(local, models=[{"name": "tiny", "source": "/gone/tiny.gguf"}])
    restore_to(tmp_path / "new", local)
    assert yaml.safe_load((tmp_path / "new/stoker.yaml").read_text())["models"][0]["source"] == new.ref


def test_files_that_the_configuration_names_come_along(data, local, tmp_path):
    path = tmp_path / "examples.txt"
    path.write_text("hello\n")
    data.add(1)
    values = {
        "models": [{"name": "tiny", "source": "tiny"}],
        "routing": {"experts": [{"name": "one", "model": "tiny", "examples_file": path}], "out_of_scope_file": path},
        "rollout": {"evaluation": path},
    }
    data.create(local, **values)
    path.unlink()
    restore_to(tmp_path / "new", local)
    settings = ExactSettings(**yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()))
    assert settings.rollout.evaluation is not None
    assert settings.rollout.evaluation.read_text() == "hello\n"
    assert settings.routing.experts[0].examples_file == settings.rollout.evaluation
    with pytest.raises(CannotBackUp, match="the configuration names it"):
        data.create(local, **values)


def test_secrets_are_there_with_the_key_and_nowhere_else(data, repository, tmp_path):
    data.add(1)
    original = tmp_path / "given.yaml"
    original.write_text("store:\n  redis: redis://:hunter22@db  # production\n")
    keys = data.data_dir / "keys.yaml"
    keys.write_text("keys:\n- name: ann\n  hash: sha256:" + "0f" * 32 + "\n")
    options = Options(key=KEY, config_file=original)
    data.create(
        repository, options, store={"redis": "redis://:hunter22@db"}, models=[{"name": "tiny", "source": "tiny"}]
    )
    for item in repository.objects.list(""):
        content = repository.objects.get(item.key)
        assert b"hunter22" not in content
        assert b"0f0f" not in content
        assert KEY.encode() not in content
    restore_to(tmp_path / "open", repository)
    closed = yaml.safe_load((tmp_path / "open/stoker.yaml").read_text())
    assert closed["anonymous"] is False
    assert "redis" not in closed["store"]
    assert yaml.safe_load((tmp_path / "open/keys.yaml").read_text()) == {"keys": []}
    restore_to(tmp_path / "full", repository, key=KEY)
    whole = yaml.safe_load((tmp_path / "full/stoker.yaml").read_text())
    assert whole["store"]["redis"] == "redis://:hunter22@db"
    assert (tmp_path / "full/keys.yaml").read_bytes() == keys.read_bytes()
    assert (tmp_path / "full/secrets/original.yaml").read_bytes() == original.read_bytes()
    for name in ("stoker.yaml", "keys.yaml", "secrets/original.yaml"):
        assert (tmp_path / "full" / name).stat().st_mode & 0o777 == 0o600
    assert verify(repository, repository.snapshots(), Quiet(), key=KEY).ok
    wrong = verify(repository, repository.snapshots(), Quiet(), key="another passphrase")
    assert {bad.path for bad in wrong.bad} == {"secrets/stoker.yaml", "secrets/keys.yaml", "secrets/original.yaml"}


def test_the_job_log_is_copied_while_it_is_written(data, local, tmp_path):
    (data.data_dir / "jobs").mkdir(parents=True)
    log = sqlite3.connect(data.data_dir / "jobs" / "jobs.db", isolation_level=None)
    log.execute("PRAGMA journal_mode = WAL")
    log.execute("CREATE TABLE pairs (a, b)")
    with ThreadPoolExecutor(1) as pool:
        goes_on = True

        def write() -> int:
            writer = sqlite3.connect(data.data_dir / "jobs" / "jobs.db", isolation_level=None)
            count = 0
            while goes_on:
                writer.execute("BEGIN")
                writer.execute("INSERT INTO pairs VALUES (?, 0)", (count,))
                writer.execute("UPDATE pairs SET b = ? WHERE a = ?", (count, count))
                writer.execute("COMMIT")
                count += 1
            writer.close()
            return count

        written = pool.submit(write)
        for _ in range(5):
            data.create(local, Options(jobs=True))
        goes_on = False
        count = written.result()
    log.close()
    assert count > 0
    for number, snapshot in enumerate(local.snapshots()):
        target = tmp_path / f"new-{number}"
        restore_to(target, local, snapshot.id, only=frozenset({"jobs"}))
        copy = sqlite3.connect(target / "jobs" / "jobs.db")
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM pairs WHERE a != b").fetchone() == (0,)
        copy.close()


def test_a_job_log_in_redis_is_refused_with_words(data, local):
    with pytest.raises(CannotBackUp, match=r"in Redis.*leave out --jobs"):
        data.create(local, Options(jobs=True), store={"redis": "redis://db"})


def test_without_a_job_log_there_is_none(data, local):
    assert data.create(local, Options(jobs=True)).manifest.entries[0].path == "stoker.yaml"


def test_a_damaged_model_makes_no_snapshot(data, repository):
    data.add(1)
    bad = data.add(2)
    flip(bad.path)
    with pytest.raises(DamagedModel, match=rf"{bad.ref}.*another content.*stoker models remove {bad.ref}"):
        data.create(repository)
    assert repository.snapshots() == ()
    assert not repository.has(bad.digest)
    data.registry.remove(bad.ref)
    data.create(repository)
    assert len(repository.snapshots()) == 1


@pytest.mark.parametrize("harm", ["missing", "short", "long"])
def test_a_model_that_is_not_whole_makes_no_snapshot(data, local, harm):
    model = data.add(1)
    model.path.chmod(0o600)
    if harm == "missing":
        model.path.unlink()
    else:
        model.path.write_bytes(model.path.read_bytes() * 2 if harm == "long" else b"")
    with pytest.raises(DamagedModel, match=model.ref):
        data.create(local)
    assert everything(local) == set()


def test_a_model_that_vanishes_on_the_way_makes_no_snapshot(data, repository, monkeypatch):
    model = data.add(1)
    lacking = creating._lacking

    def then_removed(*args, **how):
        found = lacking(*args, **how)
        data.registry.remove(model.ref)
        return found

    monkeypatch.setattr(creating, "_lacking", then_removed)
    with pytest.raises(DamagedModel, match="cannot be read"):
        data.create(repository)
    assert repository.snapshots() == ()


@pytest.mark.parametrize("growth", [b"", b"more"])
def test_a_file_that_changes_on_the_way_makes_no_snapshot(data, local, growth, monkeypatch):
    path = data.file(1)
    lacking = creating._lacking

    def then_changed(*args, **how):
        found = lacking(*args, **how)
        data.file(2)
        path.write_bytes(path.read_bytes() + growth)
        return found

    monkeypatch.setattr(creating, "_lacking", then_changed)
    with pytest.raises(DamagedModel, match="another content"):
        data.create(local, models=[{"name": "tiny", "source": str(path)}])
    assert local.snapshots() == ()


def test_check_puts_a_damaged_object_right(data, local, tmp_path):
    model = data.add(1)
    data.create(local)
    stored = tmp_path / "local" / object_key(model.digest)
    flip(stored)
    data.create(local)
    assert not verify(local, local.snapshots(), Quiet()).ok
    assert data.create(local, Options(check=True)).reused == 0
    assert verify(local, local.snapshots(), Quiet()).ok


def test_an_object_cut_short_is_sent_again(data, local, tmp_path):
    model = data.add(1)
    data.create(local)
    (tmp_path / "local" / object_key(model.digest)).write_bytes(b"short")
    assert data.create(local).sent == 1
    assert verify(local, local.snapshots(), Quiet()).ok


def test_a_dry_run_writes_nothing(data, local, tmp_path):
    model = data.add(1)
    made = create(data.settings(), local, Options(), Quiet(), dry_run=True)
    assert made.sent == 3
    assert made.manifest.sent_bytes > model.size
    assert not (tmp_path / "local").exists()


def test_tags_are_words(data, local):
    for tag in ("", "a b", "a\n", "-x", "x" * 65, "a,b"):
        with pytest.raises(CannotBackUp, match="cannot be a tag"):
            data.create(local, Options(tags=(tag,)))


def test_a_slow_backup_sends_no_faster_than_it_may(data, local, monkeypatch):
    slept = []
    data.add(1, elements=1 << 20)
    monkeypatch.setattr(creating, "PIECE", 1 << 20)
    monkeypatch.setattr(creating.time, "sleep", slept.append)
    data.create(local, Options(rate_mib=0.001))
    assert len(slept) == 4
    assert sum(slept) > 1000


def test_a_prune_that_began_before_is_waited_for_and_what_it_took_is_sent_again(data, repository, monkeypatch):
    model = data.add(1)
    data.create(repository)
    lock = repository.lock_for_prune()
    lock.__enter__()

    def prune(_: float) -> None:
        """What a prune does that had read the manifests before."""
        repository.objects.delete(object_key(model.digest))
        lock.__exit__(None, None, None)

    monkeypatch.setattr(creating.time, "sleep", prune)
    made = data.create(repository)
    assert made.sent == 0
    assert verify(repository, repository.snapshots(), Quiet()).ok


def test_what_a_prune_took_and_cannot_be_sent_again_leaves_no_snapshot(data, local, monkeypatch):
    model = data.add(1)
    first = data.create(local)
    add = local.add

    def then_gone(manifest) -> None:
        add(manifest)
        local.objects.delete(object_key(model.digest))
        data.registry.remove(model.ref)

    monkeypatch.setattr(local, "add", then_gone)
    with pytest.raises(DamagedModel):
        data.create(local)
    assert [snapshot.id for snapshot in local.snapshots()] == [first.manifest.id]


def test_eight_at_once_are_all_good(data, repository):
    for seed in range(4):
        data.add(seed)

    def one(_: int) -> str:
        return data.create(repository).manifest.id

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(one, range(8)))
    assert {snapshot.id for snapshot in repository.snapshots()} == names
    assert len(names) == 8
    assert verify(repository, repository.snapshots(), Quiet()).ok


def test_a_repository_that_fails_makes_no_snapshot(data, local, monkeypatch):
    data.add(1)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(local.objects, "put_stream", fail)
    with pytest.raises(StorageError):
        data.create(local)
    assert local.snapshots() == ()


def test_a_lock_until_a_moment_is_kept(data, local):
    data.create(local, Options(locked_until=4.0e9))
    assert local.snapshot("latest").good().locked_until == 4.0e9


def test_nothing_but_settings_still_is_a_snapshot(data, local, tmp_path):
    data.create(local)
    restore_to(tmp_path / "new", local)
    assert yaml.safe_load((tmp_path / "new/stoker.yaml").read_text()) == {"data_dir": str(tmp_path / "new")}
    assert a_manifest().id != local.snapshots()[0].id
    assert not Path(tmp_path / "new/models").exists()
