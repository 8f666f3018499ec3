"""The backup verbs on a host, with a repository in a directory and in S3: made, listed, checked, restored, removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.backup_host import BackupHost, digest_of, flip
from tests.running import Stoker
from tests.s3_server import S3Server


@pytest.fixture(params=["directory", "s3"])
def host(request: pytest.FixtureRequest, tmp_path: Path, model_path: Path) -> BackupHost:
    """A host with one model by path and one in its registry, and a repository of either kind."""
    environment = {}
    repository = str(tmp_path / "repository")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        environment, repository = server.environment, server.address()
    models = [{"name": "smollm2", "source": str(model_path), "plan": {"slots": 2, "context": 1024}}]
    return BackupHost(tmp_path / "host", repository, {"models": models}, environment)


def test_from_one_host_to_an_empty_one(host: BackupHost, model_path: Path, tmp_path: Path) -> None:
    made = host.answer("create", "--tag", "nightly")
    assert made["tags"] == ["nightly"]
    assert made["objects_reused"] == 0
    assert made["sent"] > model_path.stat().st_size
    again = host.answer("create")
    assert again["sent"] == 0
    assert [one["id"] for one in host.answer("list")] == [again["id"], made["id"]]
    assert [one["id"] for one in host.answer("list", "--tag", "nightly")] == [made["id"]]
    shown = host.answer("show", made["id"][:20])
    assert {entry["kind"] for entry in shown["entries"]} == {"model", "registry", "configuration"}
    assert host.answer("verify", "--all")["ok"]

    empty = BackupHost(tmp_path / "empty", host.repository, environment=host.environment)
    empty.config.unlink()
    target = tmp_path / "empty" / "data"
    told = empty.backup("restore", "latest", str(target), "-r", host.repository)
    assert f"stoker serve --config {target / 'stoker.yaml'}" in told
    (blob,) = (target / "models" / "blobs").iterdir()
    assert digest_of(blob) == digest_of(model_path) == blob.name
    models = yaml.safe_load((target / "stoker.yaml").read_text())["models"]
    with Stoker(empty.directory, {"data_dir": str(target), "models": models}) as running:
        asked = empty.stoker("query", "What is the capital of Germany?", "--url", running.url)
        assert "Berlin" in asked.stdout
        refused = empty.backup("restore", "latest", str(target), "-r", host.repository, status=1)
        assert "stop" in refused


def test_a_dry_run_changes_nothing(host: BackupHost, tmp_path: Path) -> None:
    assert host.answer("create", "--dry-run")["dry_run"]
    assert host.answer("list") == []
    host.backup("create")
    kept = host.answer("list")
    target = tmp_path / "target"
    assert "would write" in host.backup("restore", "latest", str(target), "--dry-run")
    assert not target.exists()
    host.backup("create")
    told = host.backup("prune", "--keep-last", "1", "--grace", "1s", "--dry-run")
    assert "would be removed" in told
    host.backup("pin", "latest", "--dry-run")
    host.backup("remove", kept[0]["id"], "--dry-run")
    assert [one["pinned"] for one in host.answer("list")] == [False, False]
    assert not host.left()


def test_restoring_again_writes_only_what_differs(host: BackupHost, tmp_path: Path) -> None:
    host.backup("create")
    target = tmp_path / "target"
    host.backup("restore", "latest", str(target))
    whats = [action["what"] for action in host.answer("restore", "latest", str(target))["actions"]]
    assert set(whats) == {"same"}
    (target / "stoker.yaml").write_text("models: []\n")
    told = host.backup("restore", "latest", str(target), status=1)
    assert "stoker.yaml" in told
    assert "--force" in told
    assert (target / "stoker.yaml").read_text() == "models: []\n"
    elsewhere = tmp_path / "other.yaml"
    host.backup("restore", "latest", str(target), "--only", "configuration", "--config-to", str(elsewhere))
    assert str(target) in elsewhere.read_text()
    host.backup("restore", "latest", str(target), "--force")
    assert "smollm2" in (target / "stoker.yaml").read_text()


def test_only_some_of_it(host: BackupHost, tmp_path: Path) -> None:
    host.backup("create")
    for only, there in (("models", {"models"}), ("configuration", {"stoker.yaml"})):
        target = tmp_path / only
        host.backup("restore", "latest", str(target), "--only", only)
        assert {path.name for path in target.iterdir() if not path.name.startswith(".")} == there


def test_what_is_kept_and_what_goes(host: BackupHost) -> None:
    ids = [host.answer("create", "--tag", tag)["id"] for tag in ("one", "two", "three")]
    assert "pinned" in host.backup("pin", ids[0])
    assert "pinned" in host.backup("list")
    assert "unpin" in host.backup("remove", ids[0], "--force", status=1)
    done = host.answer("prune", "--keep-last", "1", "--grace", "1s")
    assert done["removed"] == [ids[1]]
    assert "pinned" in done["keep"][ids[0]]
    host.backup("unpin", ids[0])
    host.backup("remove", ids[0])
    assert "only good" in host.backup("remove", ids[2], status=1)
    assert [one["id"] for one in host.answer("list")] == [ids[2]]
    assert host.answer("verify")["ok"]


def test_a_locked_one_stays(host: BackupHost) -> None:
    locked = host.answer("create", "--lock", "30d")["id"]
    newest = host.answer("create")["id"]
    done = host.answer("prune", "--keep-last", "1", "--grace", "1s")
    assert not done["removed"]
    assert any("locked" in reason for reason in done["keep"][locked])
    assert "--force" in host.backup("remove", locked, status=1)
    host.backup("remove", locked, "--force")
    assert [one["id"] for one in host.answer("list")] == [newest]


def test_secrets_only_with_the_passphrase(host: BackupHost, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("correct horse battery\n")
    host.stoker("keys", "create", "me")
    assert "left out" in host.backup("create")
    host.backup("create", "--key-file", str(key))
    secret = tmp_path / "secret"
    host.backup("restore", "latest", str(secret), "--key-file", str(key))
    assert (secret / "keys.yaml").read_bytes() == (host.data_dir / "keys.yaml").read_bytes()
    plain = tmp_path / "plain"
    host.backup("restore", "latest", str(plain))
    assert "sha256:" not in (plain / "keys.yaml").read_text()
    key.write_text("another passphrase\n")
    refused = host.backup("restore", "latest", str(tmp_path / "none"), "--key-file", str(key), status=1)
    assert "key" in refused
    assert not (tmp_path / "none").exists()
    assert host.answer("verify", "--key-file", str(key), status=1)["bad"]


def test_damage_is_found_and_mended(tmp_path: Path, model_path: Path) -> None:
    repository = tmp_path / "repository"
    models = [{"name": "smollm2", "source": str(model_path)}]
    host = BackupHost(tmp_path / "host", str(repository), {"models": models})
    host.backup("create")
    largest = max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(largest)
    found = host.answer("verify", status=1)["bad"]
    assert [one["path"].startswith("models/blobs/") for one in found] == [True]
    assert "create --check" in host.backup("verify", status=1)
    host.backup("create", "--check")
    assert host.answer("verify", "--all")["ok"]
    (manifest,) = (repository / "snapshots").glob(f"{host.answer('list')[1]['id']}*")
    flip(manifest, 30)
    listed = host.backup("list")
    assert "DAMAGED" in listed
    assert [one["good"] for one in host.answer("list")] == [True, False]
    host.backup("verify")
    assert "DAMAGED" in host.backup("verify", "--all", status=1)
    host.backup("remove", manifest.name.removesuffix(".json"))
    assert host.answer("verify", "--all")["ok"]
