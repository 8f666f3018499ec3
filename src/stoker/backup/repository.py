"""A repository's layout: which key holds what, and in which order things are written. Everything here blocks.

`objects/<aa>/<sha256>` is content; `snapshots/<id>.json` a manifest; `pins/<id>` keeps a snapshot for ever;
`drills/<time>.json` tells of a recovery drill, `drills/last.json` of the last one; `prune.lock/` see `lock`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from stoker.backup.lock import PREFIX, Holder, PruneLock, PruneLost, PruneRunning, holder
from stoker.backup.manifest import (
    MAX_BYTES,
    DamagedSnapshot,
    Manifest,
    decode,
    decode_document,
    encode,
    encode_document,
    id_time,
    is_id,
)
from stoker.errors import OperatorError
from stoker.objects.store import ObjectMissing, ObjectStore, StoredObject

__all__ = ["Holder", "PruneLock", "PruneLost", "PruneRunning", "Repository", "Snapshot", "SnapshotMissing"]

OBJECTS: Final = "objects/"
SNAPSHOTS: Final = "snapshots/"
PINS: Final = "pins/"
DRILLS: Final = "drills/"
LAST_DRILL: Final = "drills/last.json"
PRUNE_LOCK: Final = PREFIX
"""What the keys of the prune's lock begin with."""
READERS: Final = 8
"""Manifests, or looks at small objects, that are under way at once."""
SHOWN: Final = 10
CLOCK_SLACK: Final = 60.0
"""Seconds by which clocks of hosts and stores may differ without a word: stores tell times in whole seconds."""

_OBJECT: Final = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class SnapshotMissing(OperatorError):
    """No snapshot, or more than one, is meant by what was written."""

    code = "snapshot_missing"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as the repository has it. One whose manifest cannot be read has `trouble` instead of a manifest.
    `modified` is when its manifest was written, in Unix seconds by the store's clock.
    """

    id: str
    manifest: Manifest | None
    trouble: str | None
    pinned: bool
    modified: float

    @property
    def created(self) -> float:
        """When it was made, in Unix seconds; from its name when the manifest cannot be read."""
        return id_time(self.id) if self.manifest is None else self.manifest.created

    @property
    def made(self) -> float:
        """The same, but no later than its manifest was written: a host's clock that was ahead must not make the newest
        snapshot of an old one.
        """
        return self.created if self.created <= self.modified + CLOCK_SLACK else self.modified

    def good(self) -> Manifest:
        """The manifest; DamagedSnapshot when it cannot be read."""
        if self.manifest is None:
            raise DamagedSnapshot(self.trouble or f"snapshot {self.id}: its manifest cannot be read")
        return self.manifest


class Repository:
    """Snapshots in an object store. Safe for several threads and hosts at once.

    Args:
        objects: where.
        clock: Unix seconds.
    """

    def __init__(self, objects: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.objects = objects
        self._clock = clock

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self.objects.url

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Every snapshot, the newest first; raises StorageError."""
        pins = self.pins()
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(lambda item: self._read(item, pins), self._manifests())
            return tuple(sorted(filter(None, read), key=lambda s: (s.made, s.id), reverse=True))

    def snapshot(self, ref: str) -> Snapshot:
        """The snapshot that `ref` means: its name, a beginning that no other one has, or `latest`, the newest good one.

        Raises:
            SnapshotMissing: none or several are meant; the message lists what there is.
        """
        if is_id(ref):
            item = self.objects.info(snapshot_key(ref))
            found = None if item is None else self._read(item, self.pins())
            if found is not None:
                return found
        everything = self.snapshots()
        if ref == "latest":
            meant = [snapshot for snapshot in everything if snapshot.manifest is not None][:1]
        else:
            meant = [snapshot for snapshot in everything if ref and snapshot.id.startswith(ref)]
        if len(meant) == 1:
            return meant[0]
        several = f"{len(meant)} snapshots begin with {ref!r}" if meant else f"there is no snapshot {ref!r:.80}"
        raise SnapshotMissing(f"{self.url}: {several}; {_inventory(meant or everything)}")

    def add(self, manifest: Manifest) -> None:
        """Make a snapshot visible: its objects must be there. Raises ObjectExists when the name is taken."""
        document = encode(manifest)
        # What could not be read back must never be written.
        decode(manifest.id, document)
        self.objects.put(snapshot_key(manifest.id), document, only_new=True)

    def remove(self, snapshot: str) -> None:
        """Delete a snapshot; its objects stay for the next prune. ObjectLocked when a retention period holds it."""
        self.objects.delete(snapshot_key(snapshot))
        self.unpin(snapshot)

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether there is an object under a digest; one of that size in bytes, if one is given."""
        found = self.objects.info(object_key(digest))
        return found is not None and size in {None, found.size}

    def missing(self, wanted: Mapping[str, int]) -> frozenset[str]:
        """The digests under which no object of the wanted size is."""
        with ThreadPoolExecutor(READERS) as pool:
            there = pool.map(self.has, wanted.keys(), wanted.values())
            return frozenset(digest for digest, is_there in zip(wanted, there, strict=True) if not is_there)

    def put_object(self, digest: str, data: bytes) -> None:
        """Store small content under its digest."""
        self.objects.put(object_key(digest), data)

    def send_object(self, digest: str, pieces: Iterable[bytes], size: int) -> None:
        """Store content under its digest; what the iterable raises passes through, and nothing becomes visible."""
        self.objects.put_stream(object_key(digest), pieces, size)

    def get_object(self, digest: str) -> bytes:
        """Small content; ObjectMissing."""
        return self.objects.get(object_key(digest))

    def stream_object(self, digest: str) -> Iterator[bytes]:
        """Content in pieces; ObjectMissing."""
        return self.objects.stream(object_key(digest))

    def stored_objects(self) -> Iterator[StoredObject]:
        """Every content object; `digest_of` tells its digest."""
        return (item for item in self.objects.list(OBJECTS) if digest_of(item.key) is not None)

    def pins(self) -> frozenset[str]:
        """Names of pinned snapshots."""
        keys = (item.key.removeprefix(PINS) for item in self.objects.list(PINS))
        return frozenset(key for key in keys if is_id(key))

    def pin(self, snapshot: str) -> None:
        """Keep a snapshot for ever; SnapshotMissing when there is none of that very name."""
        if not is_id(snapshot) or self.objects.info(snapshot_key(snapshot)) is None:
            raise SnapshotMissing(f"{self.url}: there is no snapshot {snapshot!r:.80}; {_inventory(self.snapshots())}")
        self.objects.put(pin_key(snapshot), snapshot.encode())

    def unpin(self, snapshot: str) -> None:
        """Let the rules decide about a snapshot again."""
        self.objects.delete(pin_key(snapshot))

    def record_drill(self, document: Mapping[str, Any]) -> None:
        """Keep what a recovery drill found: JSON, any keys but `sha256`."""
        data = encode_document(document)
        moment = datetime.fromtimestamp(self._clock(), UTC)
        self.objects.put(f"{DRILLS}{moment:%Y%m%dT%H%M%S.%fZ}.json", data)
        self.objects.put(LAST_DRILL, data)

    def last_drill(self) -> dict[str, Any] | None:
        """What the last recovery drill found; None when there was none, or its record is damaged."""
        try:
            return decode_document(self.objects.get(LAST_DRILL))
        except (ObjectMissing, ValueError):
            return None

    @contextmanager
    def lock_for_prune(self) -> Iterator[PruneLock]:
        """Hold the repository for pruning; PruneRunning when another does. `renew` it before each batch."""
        held = PruneLock(self.objects, self._clock)
        try:
            yield held
        finally:
            held.release()

    def prune_holder(self) -> Holder | None:
        """Who prunes the repository now."""
        return holder(self.objects, self._clock())

    def prune_lock(self) -> bool:
        """Whether somebody prunes the repository now."""
        return self.prune_holder() is not None

    def _manifests(self) -> list[StoredObject]:
        return [item for item in self.objects.list(SNAPSHOTS) if is_id(_snapshot_of(item.key))]

    def _read(self, item: StoredObject, pins: frozenset[str]) -> Snapshot | None:
        """One snapshot; None when it was removed meanwhile."""
        name = _snapshot_of(item.key)
        manifest, trouble = None, None
        try:
            # One that is larger is refused unseen.
            data = self.objects.get(item.key) if item.size <= MAX_BYTES else b""
            manifest = decode(name, data)
        except ObjectMissing:
            return None
        except DamagedSnapshot as error:
            trouble = error.message
        return Snapshot(name, manifest, trouble, name in pins, item.modified)


def object_key(digest: str) -> str:
    """Where content of a digest is kept."""
    return f"{OBJECTS}{digest[:2]}/{digest}"


def digest_of(key: str) -> str | None:
    """The digest whose content a key holds; None for any other key."""
    found = _OBJECT.fullmatch(key)
    return None if found is None else found[2]


def snapshot_key(snapshot: str) -> str:
    """Where a snapshot's manifest is kept."""
    return f"{SNAPSHOTS}{snapshot}.json"


def pin_key(snapshot: str) -> str:
    """Where it is written that a snapshot is pinned."""
    return f"{PINS}{snapshot}"


def _snapshot_of(key: str) -> str:
    return key.removeprefix(SNAPSHOTS).removesuffix(".json")


def _inventory(snapshots: Iterable[Snapshot]) -> str:
    names = [snapshot.id for snapshot in snapshots]
    if not names:
        return "it has none yet, `stoker backup create` makes one"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there is: {', '.join(names[:SHOWN])}{more}"
