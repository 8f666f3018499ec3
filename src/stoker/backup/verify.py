"""Reads a repository back and says what in it is not as it was written. Blocks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Final, Self

from stoker.backup.manifest import Entry, decode_document
from stoker.backup.repository import (
    DRILLS,
    SNAPSHOTS,
    Repository,
    Snapshot,
    SnapshotMissing,
    object_key,
    pin_key,
    snapshot_key,
)
from stoker.backup.sealing import Sealer, WrongKey
from stoker.models.partial import Progress
from stoker.objects.store import ObjectMissing, StorageError

SMALL: Final = 1 << 20
"""Objects up to this many bytes are always read."""
WORKERS: Final = 4
"""Objects that are read at once."""
PATIENCE: Final = 8
"""Objects that the store may fail to give before it counts as one that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class Bad:
    """Something that is not as it should be: whose (empty: the repository's own), which file, under which digest."""

    snapshot: str
    path: str
    digest: str
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read: objects, and their bytes; and what is wrong."""

    checked: int
    bytes: int
    bad: tuple[Bad, ...]

    @property
    def ok(self) -> bool:
        return not self.bad


def verify(
    repository: Repository,
    snapshots: Sequence[Snapshot],
    progress: Progress,
    *,
    sample: float = 1.0,
    key: str | None = None,
    seed: int = 0,
) -> Verified:
    """Read snapshots back: their manifests, every object once, and the repository's pins and records of drills.

    Args:
        repository: where they are.
        snapshots: which.
        progress: told bytes read of all to be read.
        sample: share of the larger objects that are read, 0..1; all others are only looked for. Small ones always are.
        key: passphrase with which sealed content is opened too; without, it is only known to be what was stored.
        seed: another one takes other samples.

    Raises:
        StorageError: the repository cannot be read at all.
    """
    # Again from the store: what was read a while ago proves nothing.
    again = list(_again(repository, snapshots))
    bad = [Bad(one.id, snapshot_key(one.id), "", one.trouble) for one in again if one.trouble is not None]
    users: dict[str, list[tuple[str, Entry]]] = {}
    for one in again:
        for entry in () if one.manifest is None else one.manifest.entries:
            users.setdefault(entry.stored, []).append((one.id, entry))
    entries = {digest: found[0][1] for digest, found in users.items()}
    chosen = {digest for digest, entry in entries.items() if _is_chosen(entry, sample, seed)}
    reader = _Reader(repository, progress, sum(entries[digest].size for digest in chosen))
    sealer = None if key is None else Sealer(key)

    def look(digest: str) -> str | None:
        entry = entries[digest]
        try:
            if digest not in chosen:
                return None if repository.has(digest, entry.size) else "is missing, or has another size"
            return reader.open(entry, sealer) if entry.sealed else reader.read(entry)
        except StorageError as error:
            # A bad sector must not hide what else is damaged.
            reader.failed(error)
            return f"cannot be read: {error.message}"

    with ThreadPoolExecutor(WORKERS) as pool, reader:
        for digest, what in zip(entries, pool.map(look, entries), strict=True):
            if what is not None:
                bad += [Bad(name, entry.path, digest, f"{object_key(digest)} {what}") for name, entry in users[digest]]
    reader.expect_some(len(entries))
    bad += _bad_pins(repository)
    bad += _bad_drills(repository)
    return Verified(len(chosen), reader.done, tuple(bad))


def _again(repository: Repository, snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    for snapshot in snapshots:
        try:
            yield repository.snapshot(snapshot.id)
        except SnapshotMissing:
            continue  # removed meanwhile


def _is_chosen(entry: Entry, sample: float, seed: int) -> bool:
    """Whether an object is read: the same sample for the same seed, whatever else there is."""
    chance = random.Random(f"{seed}:{entry.stored}").random()  # noqa: S311 - a sample, no secret
    return entry.sealed or entry.size <= SMALL or chance < sample


class _Reader:
    """Reads objects in several threads, and counts. When its `with` block ends, so do they."""

    def __init__(self, repository: Repository, progress: Progress, total: int) -> None:
        self._repository = repository
        self._progress = progress
        self._total = total
        self._lock = Lock()
        self._over = False
        self._failures: list[StorageError] = []
        self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._over = True

    def read(self, entry: Entry) -> str | None:
        """What is wrong with an object, if anything is."""
        digest, size = hashlib.sha256(), 0
        try:
            for piece in self._repository.stream_object(entry.stored):
                digest.update(piece)
                size += len(piece)
                self._passed(len(piece))
        except ObjectMissing:
            return "is missing"
        if not entry.sealed and size != entry.size:
            return f"has {size:,} bytes instead of {entry.size:,}"
        return None if digest.hexdigest() == entry.stored else f"is damaged: it has SHA-256 {digest.hexdigest()}"

    def open(self, entry: Entry, sealer: Sealer | None) -> str | None:
        """The same for a sealed object, which is opened where the key is there."""
        try:
            data = self._repository.get_object(entry.stored)
        except ObjectMissing:
            return "is missing"
        self._passed(entry.size)
        actual = hashlib.sha256(data).hexdigest()
        if actual != entry.stored:
            return f"is damaged: it has SHA-256 {actual}"
        try:
            if sealer is not None:
                sealer.unseal(data)
        except WrongKey as error:
            return f"cannot be opened: {error.message}"
        return None

    def failed(self, error: StorageError) -> None:
        """Count a failure of the store; raises it when there were too many."""
        with self._lock:
            self._failures.append(error)
            if len(self._failures) > PATIENCE:
                raise error

    def expect_some(self, looked_at: int) -> None:
        """Raise the store's failure where it did not give the most of so many objects."""
        if len(self._failures) * 2 > looked_at:
            raise self._failures[0]

    def _passed(self, size: int) -> None:
        with self._lock:
            if self._over:
                raise CancelledError
            self.done += size
            self._progress.update(self.done, self._total)


def _bad_pins(repository: Repository) -> Iterator[Bad]:
    """Pins that name no snapshot, or another one than they stand for."""
    there = {item.key for item in repository.objects.list(SNAPSHOTS)}
    for name in sorted(repository.pins()):
        what = _trouble(repository, pin_key(name), lambda data, name=name: _check_pin(data, name))  # type: ignore[misc]
        if what is None and snapshot_key(name) not in there:
            what = "pins a snapshot that is not there; `stoker backup unpin` removes it"
        if what is not None:
            yield Bad(name, pin_key(name), "", what)


def _bad_drills(repository: Repository) -> Iterator[Bad]:
    for item in sorted(repository.objects.list(DRILLS), key=lambda item: item.key):
        what = _trouble(repository, item.key, decode_document)
        if what is not None:
            yield Bad("", item.key, "", what)


def _trouble(repository: Repository, key: str, check: Callable[[bytes], object]) -> str | None:
    try:
        check(repository.objects.get(key))
    except ObjectMissing:
        return None  # removed meanwhile
    except ValueError as error:
        return str(error)
    return None


def _check_pin(data: bytes, name: str) -> None:
    if data != name.encode():
        raise ValueError("is damaged: a pin holds the name of its snapshot; pin it again")
