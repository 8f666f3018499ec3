"""What a snapshot holds, before anything is sent: each file with its place, its kind, and where its content is."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stoker.backup.configured import Portable, file_names, files_of, portable, to_yaml
from stoker.backup.manifest import Entry, Kind
from stoker.backup.models import ModelSet, damaged, find_models
from stoker.backup.sealing import Sealer
from stoker.config import Settings
from stoker.errors import OperatorError
from stoker.models.partial import Progress, hash_file
from stoker.models.registry import encode_entry

KEYS_FILE = "keys.yaml"
JOB_LOG = "jobs/jobs.db"
NO_KEYS = b"""# The keys of the server that this was restored from are secret and not part of the snapshot.
# This file stands for them: until there is a key, nobody may ask. `stoker keys create` makes one.
keys: []
"""
NOTE = """Written by `stoker backup`: the settings that were in force, wherever they came from."""
MAX_SMALL = 32 << 20
"""Largest file, in bytes, that is taken into memory."""
BUSY_S = 30.0

_ROLLOUT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,121}\.json")


class CannotBackUp(OperatorError):
    """Something that belongs into the snapshot cannot be read, or not from here."""

    code = "cannot_back_up"


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a snapshot that is to be: `content` is its bytes, or the file that has them. `trouble` begins what is
    said when that file turns out to be another one.
    """

    entry: Entry
    content: bytes | Path
    trouble: str = ""

    @property
    def stored_size(self) -> int:
        """Bytes of the object that holds it."""
        return len(self.content) if isinstance(self.content, bytes) else self.entry.size


def take_inventory(
    settings: Settings, progress: Progress, *, jobs: bool, key: str | None, config_file: Path | None, workspace: Path
) -> tuple[Item, ...]:
    """Everything that a snapshot of this server holds.

    Args:
        settings: the server's.
        progress: told when files outside the registry are hashed, which happens once.
        jobs: whether the job log is part of it.
        key: passphrase under which secrets are part of it.
        config_file: the configuration file, kept as it is among the secrets.
        workspace: an empty directory for the copy of the job log.

    Raises:
        ModelFileError, CannotBackUp: something is missing or cannot be read; nothing was sent.
    """
    found = find_models(settings, progress)
    if not found.models and not settings.data_dir.is_dir():
        raise CannotBackUp(
            f"{settings.data_dir}: there is no such data directory, and no model elsewhere: a snapshot would be empty; "
            "if it is on another disk, mount that, else name the right one (`--data-dir`)"
        )
    return (
        *_models(found),
        *_registry(found),
        *_rollouts(settings.data_dir, found),
        *(_job_log(settings, progress, workspace) if jobs else ()),
        *_configuration(settings, found, key, config_file),
    )


def _models(found: ModelSet) -> Iterator[Item]:
    seen: set[str] = set()
    for model in found.models:
        if model.digest in seen:
            continue
        seen.add(model.digest)
        entry = Entry(f"models/blobs/{model.digest}", "model", model.size, model.digest, model.digest)
        yield Item(entry, model.path, damaged(model, "has another content than its digest says"))


def _registry(found: ModelSet) -> Iterator[Item]:
    for model in found.models:
        yield _plain(f"models/refs/{model.name}/{model.version}.json", "registry", encode_entry(model))


def _rollouts(data_dir: Path, found: ModelSet) -> Iterator[Item]:
    directory = data_dir / "rollouts"
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name == "pins.json" or not _ROLLOUT_FILE.fullmatch(path.name):
            continue
        try:
            yield _plain(f"rollouts/{path.name}", "rollouts", _read(path))
        except FileNotFoundError:
            continue  # an old one, removed meanwhile
    if found.pins is not None:
        yield _plain("rollouts/pins.json", "rollouts", found.pins)


def _configuration(settings: Settings, found: ModelSet, key: str | None, config_file: Path | None) -> Iterator[Item]:
    names = file_names(files_of(settings))
    for path, name in names.items():
        yield _plain(name, "configuration", _read_named(path))
    keys_file = settings.keys_file or settings.data_dir / KEYS_FILE
    closed = bool(settings.keys) or keys_file.exists()

    def written(*, secrets: bool) -> Portable:
        return portable(settings, found.renamed, names, secrets=secrets, closed=closed)

    yield _plain("stoker.yaml", "configuration", to_yaml(written(secrets=False), NOTE))
    if closed:
        yield _plain(KEYS_FILE, "configuration", NO_KEYS)
    if key is None:
        return
    sealer = Sealer(key)
    yield _sealed("secrets/stoker.yaml", to_yaml(written(secrets=True), NOTE), sealer)
    if keys_file.exists():
        yield _sealed("secrets/keys.yaml", _read_named(keys_file), sealer)
    if config_file is not None:
        yield _sealed("secrets/original.yaml", _read_named(config_file), sealer)


def _job_log(settings: Settings, progress: Progress, workspace: Path) -> Iterator[Item]:
    """A copy of the job log as it is at one moment; the server goes on writing meanwhile."""
    if settings.store.redis is not None:
        raise CannotBackUp("the job log is in Redis, which has backups of its own: leave out --jobs (`backup.jobs`)")
    source = settings.data_dir / JOB_LOG
    if not source.exists():
        progress.note(f"there is no job log in {source}")
        return
    copy = workspace / "jobs.db"
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as live,
            closing(sqlite3.connect(copy)) as beside,
        ):
            # In one step: in smaller ones it would begin again whenever the server writes.
            live.backup(beside)
            beside.execute("PRAGMA journal_mode = DELETE")
        size, digest = copy.stat().st_size, hash_file(copy)
    except (sqlite3.Error, OSError) as error:
        raise CannotBackUp(f"{source}: the job log cannot be copied to {workspace}: {error}") from None
    yield Item(Entry(JOB_LOG, "jobs", size, digest, digest), copy, f"{copy}: has changed; try again")


def _plain(path: str, kind: Kind, data: bytes) -> Item:
    digest = hashlib.sha256(data).hexdigest()
    return Item(Entry(path, kind, len(data), digest, digest), data)


def _sealed(path: str, data: bytes, sealer: Sealer) -> Item:
    """A sealed file. Its own digest is kept nowhere: by it a guess at the secrets could be tried."""
    sealed = sealer.seal(data)
    digest = hashlib.sha256(sealed).hexdigest()
    return Item(Entry(path, "secrets", len(data), digest, digest, sealed=True), sealed)


def _read_named(path: Path) -> bytes:
    """A small file that the configuration names."""
    try:
        return _read(path)
    except FileNotFoundError:
        raise CannotBackUp(f"{path}: the configuration names it, and it is not there; mend the setting") from None


def _read(path: Path) -> bytes:
    """A small file; raises FileNotFoundError, or CannotBackUp for one that is too large or cannot be read."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_SMALL:
            raise CannotBackUp(f"{path}: is no file, or larger than {MAX_SMALL >> 20} MiB, and cannot be kept")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CannotBackUp(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
