"""Files of callers, on disk: bounded each and together, whole or not there, and seen by their owner alone.

Each tenant has a directory, named by a hash of the tenant's name. A file is `ID.data`, and `ID.json` says what it is;
the latter is written last and removed first, so that a file is there when its description is. Ids are ours: no name
that a caller chose ever becomes a path. Replicas may share the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from stoker.errors import NotFound, Overloaded, StokerError
from stoker.jobs.disk import make_directory, names_in, read_json, remove, write_json
from stoker.jobs.ids import Ids
from stoker.jobs.writing import FilesFull, Space, Writing
from stoker.models.partial import sync_directory
from stoker.store.protocols import StoreError

PIECE: Final = 128 * 1024
"""Bytes that are read at once."""
KEEP_S: Final = 30 * 86_400.0
"""How long a file is kept that says no other time; OpenAI keeps batches' files as long."""
MAX_FILES: Final = 10_000
"""Files of all tenants together."""
UPLOADS: Final = 16
UPLOADS_OF_ONE: Final = 4
"""Uploads at once, of all tenants and of one."""
ABANDONED_S: Final = 3600.0
"""A file that is not whole and was not written to for so long never will be."""
_THREADS: Final = 4
_ID: Final = re.compile(r"file-[0-9a-f]{32}")
_MAX_NAME_CHARS: Final = 255

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there; times in Unix seconds, `octets` its size."""

    id: str
    filename: str
    purpose: str
    octets: int
    created: float
    expires: float


class FileStore:
    """The files under one directory.

    Args:
        directory: made when it is not there.
        file_octets: the largest file that is taken, in bytes.
        total_octets: what all files may take together, in bytes.
    """

    def __init__(self, directory: Path, *, file_octets: int, total_octets: int) -> None:
        self.directory = directory
        self.file_octets = file_octets
        self._space = Space(directory, total_octets, MAX_FILES)
        self._uploads: Counter[str] = Counter()
        self._ids = Ids()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    async def open(self) -> None:
        """Make the directory, and clear away what crashes left. Raises StoreError."""
        try:
            await self.run(make_directory, self.directory)
            await self.sweep()
        except FilesFull as error:
            raise StoreError("response", error.message) from None

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)

    async def run(self, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something slow in one of the store's threads; the disk's troubles become StoreError, or FilesFull."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, partial(act, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():  # the thread may be using what the caller is about to close
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            raise
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise FilesFull("the disk is full; nothing was kept") from None
            reason = error.strerror or type(error).__name__
            raise StoreError("response", f"the files' directory failed: {reason}; the operator must look") from None

    def place_of(self, tenant: str) -> Path:
        """The tenant's directory."""
        return self.directory / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def new_id(self) -> str:
        """An id that no file has."""
        return f"file-{self._ids.next()}"

    @asynccontextmanager
    async def uploading(self, tenant: str) -> AsyncGenerator[Writing]:
        """A new file of a caller's; `keep` makes one of it. Raises Overloaded when too many are on their way."""
        if self._uploads[tenant] >= UPLOADS_OF_ONE or self._uploads.total() >= UPLOADS:
            raise Overloaded("too many files are on their way; try again when one of them is there", retry_after=1)
        self._uploads[tenant] += 1
        try:
            async with self.writing(tenant, self.new_id(), self.file_octets) as writing:
                yield writing
        finally:
            self._uploads[tenant] -= 1
            if not self._uploads[tenant]:
                del self._uploads[tenant]

    @asynccontextmanager
    async def writing(self, tenant: str, file_id: str, most: int | None = None) -> AsyncGenerator[Writing]:
        """A file of this id, of at most so many bytes; the one before stays until `keep` replaces it."""
        place = self.place_of(tenant)
        await self.run(make_directory, place)
        writing = await self.run(Writing, place / f"{file_id}.part", self._space, self.run, most)
        try:
            yield writing
        finally:
            await self.run(writing.discard)

    async def keep(self, writing: Writing, filename: str, purpose: str, keep_s: float = KEEP_S) -> StoredFile:
        """The file that was written, durably."""
        now = time.time()
        name = filename.replace("\0", "")[:_MAX_NAME_CHARS] or "file"
        path = writing.path
        file = StoredFile(path.stem, name, purpose, await writing.finish(), now, now + keep_s)
        await self.run(_commit, path, file)
        writing.kept = True
        return file

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """The tenant's file; NotFound when it has none of that id."""
        file = await self.run(_described, self._description(tenant, file_id))
        if file is None:
            raise _unknown(file_id)
        return file

    async def page(
        self,
        tenant: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> tuple[Sequence[StoredFile], bool]:
        """The tenant's files behind `after`, and whether there are more."""
        return await self.run(_page, self.place_of(tenant), purpose, after, limit, newest_first)

    async def delete(self, tenant: str, file_id: str) -> None:
        """Forget the tenant's file; NotFound when it has none of that id."""
        file = await self.get(tenant, file_id)
        path = self._description(tenant, file_id)
        await self.run(remove, path, path.with_suffix(".data"))
        self._space.give(file.octets)

    async def keep_until(self, tenant: str, file: StoredFile, expires: float) -> None:
        """Keep a file for longer than it was meant to be."""
        if file.expires < expires:
            document = asdict(replace(file, expires=expires))
            await self.run(write_json, self._description(tenant, file.id), document)

    async def pieces(self, tenant: str, file_id: str, start: int = 0) -> AsyncGenerator[bytes]:
        """A file's bytes from `start` on; NotFound when it has gone. A file removed meanwhile is read to its end."""
        path = self._description(tenant, file_id).with_suffix(".data")
        handle = await self.run(_open, path)
        if handle is None:
            raise _unknown(file_id)
        try:
            while piece := await self.run(os.pread, handle, PIECE, start):
                yield piece
                start += len(piece)
        finally:
            os.close(handle)

    async def sweep(self) -> None:
        """Remove files whose time is over, and what crashes left."""
        await self.run(_sweep, self.directory, time.time())
        await self.run(self._space.measure)

    def _description(self, tenant: str, file_id: str) -> Path:
        if _ID.fullmatch(file_id) is None:
            raise _unknown(file_id)
        return self.place_of(tenant) / f"{file_id}.json"


def _unknown(file_id: str) -> StokerError:
    return NotFound(f"there is no file {file_id[:64]!r}, or its time was over and it was removed", param="file_id")


def _commit(part: Path, file: StoredFile) -> None:
    part.replace(part.with_suffix(".data"))
    sync_directory(part.parent)
    write_json(part.with_suffix(".json"), asdict(file))


def _described(path: Path) -> StoredFile | None:
    document = read_json(path)
    if document is None:
        return None
    file = StoredFile(**document)
    return file if file.expires > time.time() else None


def _page(
    place: Path, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> tuple[Sequence[StoredFile], bool]:
    ids = [name.removesuffix(".json") for name in names_in(place) if name.startswith("file-") and _is_json(name)]
    if newest_first:
        ids.reverse()
    found: list[StoredFile] = []
    for file_id in ids:
        if after is not None and (file_id >= after if newest_first else file_id <= after):
            continue
        file = _described(place / f"{file_id}.json")
        if file is None or purpose not in {None, file.purpose}:
            continue
        if len(found) == limit:
            return found, True
        found.append(file)
    return found, False


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _sweep(directory: Path, now: float) -> None:
    for place in directory.iterdir():
        if place.is_dir():
            names = names_in(place)
            for name in names:
                if name.startswith("file-"):
                    _sweep_one(place / name, frozenset(names), now)


def _sweep_one(path: Path, names: frozenset[str], now: float) -> None:
    if path.suffix == ".json":
        document: dict[str, Any] = read_json(path) or {}
        if document.get("expires", now) < now:
            remove(path, path.with_suffix(".data"))
        return
    if path.suffix == ".data" and f"{path.stem}.json" in names:
        return
    with contextlib.suppress(FileNotFoundError):
        if now - path.stat().st_mtime > ABANDONED_S:
            remove(path)
