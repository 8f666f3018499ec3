"""One restored file on disk: whether it is there already, whether there is room, and how it is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from stoker.backup.inventory import MAX_SMALL
from stoker.backup.manifest import DamagedSnapshot, Entry, Kind
from stoker.backup.repository import Repository, object_key
from stoker.backup.sealing import OVERHEAD
from stoker.errors import OperatorError
from stoker.models.partial import hash_file, sync_directory
from stoker.objects.store import ObjectMissing

_MODES: Final[Mapping[Kind, int]] = {
    "model": 0o444,
    "registry": 0o644,
    "configuration": 0o644,
    "secrets": 0o600,
    "rollouts": 0o644,
    "jobs": 0o600,
}
_PRIVATE: Final = frozenset({"secrets", "jobs"})


class CannotRestore(OperatorError):
    """The disk has no room, or does not let itself be written."""

    code = "cannot_restore"


def content_of(repository: Repository, entry: Entry) -> bytes:
    """A small object, checked; DamagedSnapshot when it is missing or another."""
    try:
        if entry.size > MAX_SMALL:
            raise DamagedSnapshot(f"{entry.path}: is said to have {entry.size:,} bytes, more than can be believed")
        data = repository.get_object(entry.stored)
    except ObjectMissing:
        raise DamagedSnapshot(_missing(entry)) from None
    size = len(data) - OVERHEAD if entry.sealed else len(data)
    if size != entry.size or hashlib.sha256(data).hexdigest() != entry.stored:
        raise DamagedSnapshot(_damaged(entry))
    return data


def same_file(entry: Entry, path: Path, content: bytes | None) -> bool:
    """Whether a file is there as the snapshot has it; `content` is what it should be, if that is at hand."""
    try:
        if content is None:
            return path.stat().st_size == entry.size and hash_file(path) == entry.sha256
        if path.stat().st_size > MAX_SMALL:
            return False
        there = path.read_bytes()
    except OSError:
        return False
    return there == content


def same_model(content: bytes, path: Path) -> bool:
    """Whether an entry of the registry that is there means the same file as another one, whenever it was added."""
    try:
        there = json.loads(path.read_bytes() if path.stat().st_size <= MAX_SMALL else b"")
        return bool(there["digest"] == json.loads(content)["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_room(writes: Sequence[tuple[Path, int]]) -> None:
    """Raise CannotRestore when a disk lacks room for what is to be written to it."""
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for path, size in writes:
        device, place = _disk_of(path)
        by_disk.setdefault(device, []).append((place, size))
    for found in by_disk.values():
        place, needed = found[0][0], sum(size for _, size in found)
        free = shutil.disk_usage(place).free
        if needed > free:
            raise CannotRestore(
                f"{place}: no room: {needed:,} bytes needed, {free:,} free; nothing was written. Make room, or "
                "restore into another directory"
            )


def write_file(
    repository: Repository,
    entry: Entry,
    path: Path,
    content: bytes | None,
    passed: Callable[[int], None],
) -> None:
    """Put one file in its place, durably; a reader sees all of it or what was there before.

    Args:
        repository: where its content is.
        entry: what it must be.
        path: where it goes.
        content: its bytes, where they are at hand and checked.
        passed: told how many bytes are written so far.

    Raises:
        DamagedSnapshot: the content is missing or another; the file's place is as before.
        CannotRestore: the disk fails.
    """
    beside = path.with_name(f".{path.name}.restoring")
    try:
        _make_directory(path.parent, private=entry.kind in _PRIVATE)
        try:
            pieces = repository.stream_object(entry.stored) if content is None else (content,)
            _fill(beside, pieces, _MODES[entry.kind], None if content is not None else entry, passed)
            if entry.kind == "jobs":
                # The log of changes of the file that was there would spoil this one.
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except ObjectMissing:
        raise DamagedSnapshot(_missing(entry)) from None
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "make room, then restore again" if full else "check its permissions, then restore again"
        raise CannotRestore(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from None


def _fill(path: Path, pieces: Iterable[bytes], mode: int, entry: Entry | None, passed: Callable[[int], None]) -> None:
    """Write a new file and sync it; with `entry`, only if it is what that says."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        digest, size = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            if entry is not None and size > entry.size:
                break
            _write(descriptor, piece)
            passed(size)
        if entry is not None and (size != entry.size or digest.hexdigest() != entry.sha256):
            raise DamagedSnapshot(_damaged(entry))
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_directory(directory: Path, *, private: bool) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent, private=False)
    directory.mkdir(mode=0o700 if private else 0o755, exist_ok=True)
    sync_directory(directory.parent)


def _disk_of(path: Path) -> tuple[int, Path]:
    """The device that a file will be on, and a directory of it."""
    place = path
    while not place.exists():
        place = place.parent
    return place.stat().st_dev, place if place.is_dir() else place.parent


def _missing(entry: Entry) -> str:
    return f"{entry.path}: its object {object_key(entry.stored)} is missing; use another snapshot"


def _damaged(entry: Entry) -> str:
    return (
        f"{entry.path}: its object {object_key(entry.stored)} is damaged; use another snapshot, and put it right with "
        "`stoker backup create --check` on the server that still has it"
    )
