"""Batches on disk, beside the files that they read and write. Replicas that share the directory share the batches.

`ID.json` in the tenant's directory is the batch as it stands; `ID.cancel` says that its owner wants it no more;
`ID.rejects` has the answers of lines that were not taken in. A batch that has not ended has a mark in `active`, and
whoever works on it holds a lock on that mark, which a dying process lets go.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from stoker.admission.auth import Caller
from stoker.config import GuardPolicy, RateConfig
from stoker.errors import NotFound
from stoker.jobs.disk import (
    PRIVATE_FILE,
    make_directory,
    names_in,
    read_json,
    remove,
    write_all,
    write_json,
)
from stoker.jobs.files import FileStore
from stoker.models.partial import sync_directory

Ending = Literal["completed", "cancelled", "expired"]
Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "cancelled", "expired"]

MAX_KEPT: Final = 1000
"""Batches of one tenant that are remembered; the oldest that have ended go first."""
KEEP_S: Final = 30 * 86_400.0
"""For how many seconds."""
_ID: Final = re.compile(r"batch_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch; times in Unix seconds.

    Attributes:
        asker: who asks, as `packed` has it.
        keep_s: how long the files that it writes are kept.
        moments: when it came into each status.
        total: lines with requests; known once the file was read through.
        read: of those, the ones that were handed in or refused; `offset` is behind them, `number` is their last line's.
        pending: lines behind `offset` that were about to be handed in together.
        rejected: lines that were refused; their answers are the first `rejects_octets` of `ID.rejects`.
        faults: what is wrong with the file.
        ending: how it will end, and why.
        completed, failed: lines with an answer and without, once it has ended.
    """

    id: str
    tenant: str
    asker: Mapping[str, Any]
    endpoint: str
    input_file_id: str
    created: float
    expires: float
    keep_s: float
    metadata: Mapping[str, str] | None = None
    status: Status = "validating"
    moments: Mapping[str, float] = field(default_factory=dict)
    total: int = 0
    read: int = 0
    offset: int = 0
    number: int = 0
    pending: int = 0
    rejected: int = 0
    rejects_octets: int = 0
    faults: Sequence[Mapping[str, Any]] = ()
    ending: Ending = "completed"
    output_file_id: str | None = None
    error_file_id: str | None = None
    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in {"completed", "failed", "cancelled", "expired"}

    @property
    def caller(self) -> Caller:
        """Who asks, as when the batch was made."""
        asker = self.asker
        return Caller(
            asker["address"],
            asker["key"],
            models=tuple(asker["models"]),
            rate=None if asker["rate"] is None else RateConfig(**asker["rate"]),
            guard=None if asker["guard"] is None else GuardPolicy(**asker["guard"]),
            trusted=asker["trusted"],
        )


def packed(caller: Caller) -> Mapping[str, Any]:
    """What of a caller its batch needs later."""
    return {
        "address": caller.address,
        "key": caller.key_name,
        "models": caller.models,
        "rate": None if caller.rate is None else caller.rate.model_dump(mode="json"),
        "guard": None if caller.guard is None else caller.guard.model_dump(mode="json"),
        "trusted": caller.trusted,
    }


@dataclass(frozen=True, slots=True)
class Mark:
    """A batch that has not ended: whose directory it is in, and its id."""

    place: str
    id: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.place}.{self.id}"


class Shelf:
    """Keeps batches. Everything durable is durable once it returns; raises StoreError when the disk fails.

    Args:
        files: whose directory and threads are used.
    """

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._active = files.directory / "active"

    async def add(self, batch: Batch) -> None:
        """A new batch."""
        await self._files.run(self._add, batch)

    async def save(self, batch: Batch) -> None:
        """A batch as it stands now."""
        await self._files.run(write_json, self._path(batch.tenant, batch.id), asdict(batch))

    async def end(self, batch: Batch) -> None:
        """A batch that has ended."""
        await self.save(batch)
        path = self._path(batch.tenant, batch.id)
        mark = self._active / Mark(path.parent.name, batch.id).name
        await self._files.run(remove, mark, path.with_suffix(".cancel"), path.with_suffix(".rejects"))

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """The tenant's batch; NotFound when it has none of that id."""
        batch = await self._files.run(_load, self._path(tenant, batch_id))
        if batch is None:
            raise _unknown(batch_id)
        return batch

    async def page(self, tenant: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """The tenant's batches behind `after`, the newest first, and whether there are more."""
        return await self._files.run(_page, self._files.place_of(tenant), after, limit)

    async def marks(self) -> Sequence[Mark]:
        """The batches that have not ended, the oldest first."""
        names = await self._files.run(names_in, self._active)
        found = [Mark(*name.split(".", 1)) for name in names if "." in name]
        return sorted((mark for mark in found if _ID.fullmatch(mark.id)), key=lambda mark: mark.id)

    async def marked(self, mark: Mark) -> Batch | None:
        """The batch of a mark; None when there is none, for it was never written."""
        return await self._files.run(_load, self._files.directory / mark.place / f"{mark.id}.json")

    async def hold(self, mark: Mark) -> int | None:
        """A handle to be closed when the work on a batch is over; None when another process has it, or it ended."""
        return await self._files.run(_lock, self._active / mark.name)

    async def forget(self, mark: Mark) -> None:
        """Remove the mark of a batch that has ended, or was never written."""
        await self._files.run(remove, self._active / mark.name)

    async def ask_cancel(self, batch: Batch) -> None:
        """Note that the owner wants the batch no more."""
        await self._files.run(
            write_json, self._path(batch.tenant, batch.id).with_suffix(".cancel"), {"at": time.time()}
        )

    async def cancel_asked(self, batch: Batch) -> float | None:
        """When the owner wanted it no more; None as long as that did not happen."""
        note = await self._files.run(read_json, self._path(batch.tenant, batch.id).with_suffix(".cancel"))
        return None if note is None else float(note["at"])

    async def reject(self, batch: Batch, line: bytes) -> int:
        """Note the answer of a line that was refused; what `rejects_octets` is after that."""
        path = self._path(batch.tenant, batch.id).with_suffix(".rejects")
        return await self._files.run(_append, path, batch.rejects_octets, line)

    async def rejects(self, batch: Batch) -> Sequence[bytes]:
        """Those answers, in order."""
        path = self._path(batch.tenant, batch.id).with_suffix(".rejects")
        return await self._files.run(_rejects, path, batch.rejects_octets)

    async def sweep(self) -> None:
        """Forget batches that ended long ago."""
        await self._files.run(_sweep, self._files.directory, time.time() - KEEP_S)

    def _path(self, tenant: str, batch_id: str) -> Path:
        if _ID.fullmatch(batch_id) is None:
            raise _unknown(batch_id)
        return self._files.place_of(tenant) / f"{batch_id}.json"

    def _add(self, batch: Batch) -> None:
        path = self._path(batch.tenant, batch.id)
        make_directory(self._active)
        make_directory(path.parent)
        # The mark comes first: one without a batch does no harm, but a batch without one would be worked on by nobody.
        (self._active / Mark(path.parent.name, batch.id).name).touch(PRIVATE_FILE)
        sync_directory(self._active)
        write_json(path, asdict(batch))
        kept = [name for name in names_in(path.parent) if _is_batch(name)]
        for name in kept[: max(0, len(kept) - MAX_KEPT)]:
            _forget_ended(path.parent / name)


def _unknown(batch_id: str) -> NotFound:
    return NotFound(f"there is no batch {batch_id[:64]!r}, or it ended long ago", param="batch_id")


def _is_batch(name: str) -> bool:
    return name.startswith("batch_") and name.endswith(".json")


def _load(path: Path) -> Batch | None:
    document = read_json(path)
    return None if document is None else Batch(**document)


def _page(place: Path, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
    found: list[Batch] = []
    for name in reversed(names_in(place)):
        if not _is_batch(name) or (after is not None and name.removesuffix(".json") >= after):
            continue
        if len(found) == limit:
            return found, True
        batch = _load(place / name)
        if batch is not None:
            found.append(batch)
    return found, False


def _lock(path: Path) -> int | None:
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _append(path: Path, octets: int, line: bytes) -> int:
    """What a crash left behind the first `octets` goes."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE)
    try:
        os.ftruncate(handle, octets)
        os.lseek(handle, octets, os.SEEK_SET)
        write_all(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    return octets + len(line)


def _rejects(path: Path, octets: int) -> Sequence[bytes]:
    if not octets:
        return ()
    return path.read_bytes()[:octets].splitlines(keepends=True)


def _sweep(directory: Path, before: float) -> None:
    for place in directory.iterdir():
        for name in names_in(place) if place.is_dir() else ():
            if _is_batch(name) and (place / name).stat().st_mtime < before:
                _forget_ended(place / name)


def _forget_ended(path: Path) -> None:
    batch = _load(path)
    if batch is not None and batch.ended:
        remove(path)
