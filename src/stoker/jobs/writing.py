"""A file on its way to disk, and the space that all of them may take together."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from stoker.errors import PayloadTooLarge, StokerError
from stoker.jobs.disk import PRIVATE_FILE, remove, write_all

BUFFERED: Final = 256 * 1024
"""Bytes of a file that are held before they are written."""
MEASURED_S: Final = 5.0
"""For so many seconds a measurement of the directory holds; replicas may write to it, too."""


class FilesFull(StokerError):
    """There is no space for the file."""

    status = 507
    code = "storage_full"


class Space:
    """What the files under a directory take, and may take.

    Args:
        directory: of all files.
        octets: bytes that they may have together.
        files: how many there may be.
    """

    def __init__(self, directory: Path, octets: int, files: int) -> None:
        self._directory = directory
        self._octets = octets
        self._files = files
        self._used = 0
        self._count = 0
        self._measured = float("-inf")

    def measure(self) -> None:
        """Look at the disk. Blocks."""
        used = count = 0
        for place in os.scandir(self._directory):
            if place.is_dir():
                for entry in os.scandir(place):
                    if entry.name.startswith("file-"):
                        used += _size(entry)
                        count += not entry.name.endswith(".json")
        self._used, self._count, self._measured = used, count, time.monotonic()

    def begin(self) -> None:
        """One more file; FilesFull when there are too many. May block."""
        if time.monotonic() - self._measured > MEASURED_S:
            self.measure()
        if self._count >= self._files:
            raise FilesFull(f"there are {self._files} files, and no more are taken; delete some that are not needed")
        self._count += 1

    def take(self, octets: int) -> None:
        """So many bytes more; FilesFull when that is too much."""
        if self._used + octets > self._octets:
            raise FilesFull(
                f"all files together may have {self._octets >> 20} MiB, and this one would make them more; delete some "
                "that are not needed"
            )
        self._used += octets

    def give(self, octets: int) -> None:
        """A file of so many bytes is gone."""
        self._used -= octets
        self._count -= 1


class Writing:
    """A file that is being written beside its place. Blocks when it is made.

    Args:
        path: where it is written, until it is whole.
        space: what all files may take.
        run: does slow things in a thread.
        most: bytes that it may have; None for what the space allows.
    """

    def __init__(self, path: Path, space: Space, run: Callable[..., Awaitable[Any]], most: int | None) -> None:
        space.begin()
        self.path = path
        self.octets = 0
        self.kept = False
        self._space = space
        self._run = run
        self._most = most
        self._buffer = bytearray()
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)

    async def write(self, data: bytes) -> None:
        """More of the file; PayloadTooLarge, FilesFull."""
        if self._most is not None and self.octets + len(data) > self._most:
            raise PayloadTooLarge(f"the file has more than the {self._most} bytes that this server takes; split it")
        self._space.take(len(data))
        self.octets += len(data)
        self._buffer += data
        if len(self._buffer) >= BUFFERED:
            await self._flush()

    async def finish(self) -> int:
        """Everything is on the disk; the size in bytes."""
        await self._flush()
        await self._run(self._close)
        return self.octets

    def discard(self) -> None:
        """Remove what was written, unless it was kept. Blocks."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if not self.kept:
            remove(self.path)
            self._space.give(self.octets)

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        if self._handle is not None:
            await self._run(write_all, self._handle, data)

    def _close(self) -> None:
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a file; 0 when it has just gone."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
