"""What an attacker found: hostile repositories, clocks that were wrong, and mistakes that cost a snapshot."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.backup_data import PLAIN, Data, restore_to
from tests.backup_host import BackupHost
from tests.backup_stores import repository_at

from stoker.backup.create import create
from stoker.backup.inventory import CannotBackUp
from stoker.backup.landing import content_of
from stoker.backup.lock import PruneLock
from stoker.backup.looking import look
from stoker.backup.manifest import DamagedSnapshot, Entry, Manifest, decode, encode, encode_document, is_id, new_id
from stoker.backup.repository import Repository, SnapshotMissing, object_key, snapshot_key
from stoker.backup.retention import EmptyPolicy, check_policy
from stoker.backup.sealing import Sealer, WrongKey
from stoker.backup.verify import verify
from stoker.config.keeping import RetentionConfig
from stoker.config.loading import load
from stoker.errors import ModelFileError
from stoker.models.partial import Quiet
from stoker.models.registry import ModelRegistry

DEEP = b"[" * 100_000


@pytest.fixture
def data(tmp_path: Path) -> Data:
    made = Data(tmp_path)
    made.add(1)
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return repository_at(str(tmp_path / "repository"))


def stored(repository: Repository, content: bytes) -> str:
    """The digest under which content now is."""
    digest = hashlib.sha256(content).hexdigest()
    repository.put_object(digest, content)
    return digest


def forged(repository: Repository, honest: Manifest, path: str, content: bytes, size: int | None = None) -> Manifest:
    """A snapshot with a good digest in which a file has another content, and maybe lies about its size."""
    digest = stored(repository, content)
    entries = tuple(
        replace(entry, size=len(content) if size is None else size, sha256=digest, stored=digest)
        if entry.path == path
        else entry
        for entry in honest.entries
    )
    now = time.time()
    manifest = replace(honest, id=new_id(now), created=now, entries=entries)
    repository.objects.put(snapshot_key(manifest.id), encode(manifest))
    return manifest


@pytest.mark.parametrize("depth", [900, 985, 990, 993, 2000, 100_000])
def test_a_manifest_of_any_depth_is_only_damaged(depth: int) -> None:
    document = b'{"a":' + b"[" * depth + b"]" * depth + b',"sha256":"x"}'
    with pytest.raises(DamagedSnapshot):
        decode("20260101T000000Z-00000000", document)


def test_digits_of_other_scripts_name_no_snapshot(repository: Repository) -> None:
    odd = "2\u0662261124T210841Z-bcdd19ff"
    assert not is_id(odd)
    with pytest.raises(SnapshotMissing):
        repository.snapshot(odd)


@pytest.mark.parametrize("words", [DEEP, b'{"owner":"x","since":1,"expires":1' + b"0" * 400 + b"}"])
def test_garbage_as_a_lock_holds_nothing(repository: Repository, words: bytes) -> None:
    repository.objects.put("prune.lock/00000001", words)
    assert repository.prune_holder() is None
    PruneLock(repository.objects).release()


def test_a_holder_cannot_speak_to_the_terminal(repository: Repository) -> None:
    words = {"owner": "\x1b[31mx\ny", "since": 1, "expires": time.time() + 60}
    repository.objects.put("prune.lock/00000001", json.dumps(words).encode())
    holder = repository.prune_holder()
    assert holder is not None
    assert holder.owner.isprintable()


def test_a_drill_at_no_time_is_none(repository: Repository) -> None:
    repository.objects.put("drills/last.json", encode_document({"ok": True, "time": 10**400}))
    assert look(repository).drill_at is None


@pytest.mark.parametrize(
    "text",
    [
        b'a: !!int ""',
        b"a: !!float ''",
        b"a: !!timestamp x",
        b"a: !!bool x",
        b"a: " + b"[" * 400 + b"]" * 400,
        b"a: 2001-99-99",
    ],
)
def test_yaml_that_breaks_its_reader_is_a_damaged_snapshot(
    data: Data, repository: Repository, tmp_path: Path, text: bytes
) -> None:
    manifest = forged(repository, data.create(repository).manifest, "stoker.yaml", text)
    with pytest.raises(DamagedSnapshot):
        restore_to(tmp_path / "new", repository, manifest.id)
    assert not (tmp_path / "new").exists()


def test_a_registry_entry_that_breaks_its_reader_is_told_in_words(
    data: Data, repository: Repository, tmp_path: Path
) -> None:
    honest = data.create(repository).manifest
    manifest = forged(repository, honest, "models/refs/tiny/1.json", DEEP)
    restore_to(tmp_path / "new", repository, honest.id)
    restore_to(tmp_path / "new", repository, manifest.id, force=True)
    with pytest.raises(ModelFileError, match="cannot be read"):
        ModelRegistry(tmp_path / "new").list()


def test_a_size_that_lies_is_damage(data: Data, repository: Repository, tmp_path: Path) -> None:
    manifest = forged(repository, data.create(repository).manifest, "stoker.yaml", b"#" * (1 << 20), size=10)
    with pytest.raises(DamagedSnapshot):
        restore_to(tmp_path / "new", repository, manifest.id)
    assert not (tmp_path / "new").exists()
    sealed = Sealer("correct horse").seal(b"four")
    digest = stored(repository, sealed)
    assert content_of(repository, Entry("secrets/keys.yaml", "secrets", 4, digest, digest, sealed=True)) == sealed
    with pytest.raises(DamagedSnapshot):
        content_of(repository, Entry("secrets/keys.yaml", "secrets", 5, digest, digest, sealed=True))


def test_a_clock_that_was_ahead_does_not_hide_newer_snapshots(data: Data, repository: Repository) -> None:
    ahead = replace(data.create(repository).manifest, id=new_id(time.time() + 9e6), created=time.time() + 9e6)
    repository.add(ahead)
    hour_ago = time.time() - 3600
    os.utime(Path(repository.url) / snapshot_key(ahead.id), (hour_ago, hour_ago))
    newest = data.create(repository).manifest
    assert repository.snapshot("latest").id == newest.id
    assert look(repository).last_id == newest.id


def test_no_secret_is_in_the_open_in_any_object(data: Data, repository: Repository, tmp_path: Path) -> None:
    marks = [f"MARK{number}x" for number in range(9)]
    file = tmp_path / "stoker.yaml"
    settings = {
        "data_dir": str(data.data_dir),
        "models": [
            {"name": "tiny", "source": "tiny"},
            {"name": "far", "upstream": f"https://{marks[0]}:p@{marks[1]}@far.example/", "upstream_key": marks[2]},
        ],
        "store": {"redis": f"redis://:{marks[3]}@redis.example/0?password={marks[4]}"},
        "guard": {"canary": f"{marks[5]}-canary", "secrets": [f"{marks[6]}-secret"]},
        "log": {"address": "hashed", "hash_key": marks[7] * 4},
        "tracing": {"headers": {"x\nport: 1": marks[8]}},
    }
    file.write_text(f"# MARK0x in a comment\n{yaml.safe_dump(settings)}")
    options = replace(PLAIN, key="correct horse", config_file=file)
    data.create(repository, options, **{name: value for name, value in settings.items() if name != "data_dir"})
    for path in Path(repository.url).rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [mark for mark in marks if mark.encode() in content], path
    restore_to(tmp_path / "new", repository)
    restored = yaml.safe_load((tmp_path / "new/stoker.yaml").read_text())
    assert "port" not in restored
    assert restored["models"][1]["upstream"] == "https://far.example/"
    load(tmp_path / "new/stoker.yaml")


def test_a_data_directory_that_is_not_there_is_no_empty_snapshot(data: Data, repository: Repository) -> None:
    data.data_dir = data.place / "unmounted"
    with pytest.raises(CannotBackUp, match="mount"):
        create(data.settings(), repository, PLAIN, Quiet())
    assert not repository.snapshots()


@pytest.mark.parametrize("tags", [("",), (" ", "")])
def test_an_empty_tag_is_no_rule(tags: tuple[str, ...]) -> None:
    with pytest.raises(EmptyPolicy):
        check_policy(RetentionConfig(tags=tags))


def test_a_passphrase_that_is_no_text_is_refused_in_words() -> None:
    with pytest.raises(WrongKey, match="text"):
        Sealer("\udcff\udcfe12345678")


def test_an_object_that_cannot_be_read_hides_no_other_damage(data: Data, repository: Repository) -> None:
    for seed in (2, 3):
        data.add(seed, name=f"other-{seed}")
    data.create(repository)
    root = Path(repository.url)
    first, second = (model.digest for model in data.registry.list()[:2])
    (root / object_key(first)).unlink()
    (root / object_key(first)).mkdir()
    (root / object_key(second)).unlink()
    found = {bad.digest: bad.what for bad in verify(repository, repository.snapshots(), Quiet()).bad}
    assert set(found) == {first, second}
    assert "not a regular file" in found[first]


def test_a_pin_without_its_snapshot_can_be_let_go(data: Data, tmp_path: Path) -> None:
    host = BackupHost(tmp_path / "host", str(tmp_path / "repository"), {"data_dir": str(data.data_dir)})
    lost = host.answer("create")["id"]
    host.backup("create")
    host.backup("pin", lost)
    (tmp_path / "repository" / snapshot_key(lost)).unlink()
    assert "unpin" in host.backup("verify", "--all", status=1)
    host.backup("unpin", lost, "--dry-run")
    host.backup("verify", "--all", status=1)
    assert "not there any more" in host.backup("unpin", lost)
    host.backup("verify", "--all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"models: 3\n", "models"),
        (b"timeouts: {load: x}\n", "timeouts.load"),
        (b"rollout: {evaluation: /etc/passwd}\n", "not in the snapshot"),
        (b"rollout: {evaluation: '${data_dir}/../../../etc/passwd'}\n", "not in the snapshot"),
    ],
)
def test_a_drill_of_a_hostile_snapshot_fails_in_words(data: Data, tmp_path: Path, text: bytes, words: str) -> None:
    host = BackupHost(tmp_path / "host", str(tmp_path / "repository"), {"data_dir": str(data.data_dir)})
    repository = repository_at(host.repository)
    manifest = forged(repository, data.create(repository).manifest, "stoker.yaml", text)
    drill = host.answer("drill", "--snapshot", manifest.id, status=1)
    assert drill["failed_step"] == "start"
    assert words in drill["reason"]
    assert "root:" not in drill["reason"]
    assert not host.left()
