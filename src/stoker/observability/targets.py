"""The places that log lines go to: a stream, or a file that is put aside when it has grown. For one thread each."""

from __future__ import annotations

import errno
import os
import select
import stat
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

PATIENCE_MS = 1000  # for a stream that does not wait by itself, between two looks


class StreamTarget:
    """Standard error, or another stream: a terminal, a pipe or a file that somebody else looks after.

    Writes to the stream's descriptor, a copy of its own, so that it stays ours whoever closes the stream; one without a
    descriptor is written to as it is.

    Args:
        stream: the stream; None: nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        try:
            self._handle = os.dup(stream.fileno()) if stream else os.open(os.devnull, os.O_WRONLY)
        except (OSError, ValueError, AttributeError):
            self._handle = -1

    def write(self, batch: bytes, start: int) -> int:
        """Write what the stream takes; OSError when it is closed, full or broken."""
        if self._handle < 0:
            return self._write_text(batch, start)
        try:
            return start + os.write(self._handle, memoryview(batch)[start:])
        except BlockingIOError:  # somebody made it so; it holds for everyone who shares the pipe or terminal
            poll = select.poll()
            poll.register(self._handle, select.POLLOUT)
            poll.poll(PATIENCE_MS)
            return start

    def _write_text(self, batch: bytes, start: int) -> int:
        if self._stream is None:
            return len(batch)
        try:
            self._stream.write(batch[start:].decode(errors="backslashreplace"))
            self._stream.flush()
        except ValueError as error:
            raise OSError(errno.EBADF, str(error)) from None
        return len(batch)

    def close(self) -> None:
        """Close the copy; the stream itself stays open."""
        if self._handle >= 0:
            os.close(self._handle)


class FileTarget:
    """A file that lines are appended to; made, and its directory too, when it is not there or has vanished.

    Whoever moves the file away gets a fresh one made, so that other programs may put it aside as well.

    Args:
        path: the file, readable by its owner alone when it is made here.
        max_octets: size beyond which it is put aside as `.1`, and that as `.2` ...; 0: never.
        keep: files put aside that are kept.
        durable: whether lines are on the disk before the next ones are written.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, *, max_octets: int = 0, keep: int = 0, durable: bool = False) -> None:
        self._path = path
        self._max_octets = max_octets
        self._durable = durable
        self._roller = RotatingFileHandler(path, backupCount=keep, delay=True)  # only its renaming is used
        self._handle = -1
        self._identity = (0, 0)
        self._size = 0
        self._regular = self._torn = False
        self._open()
        if self._max_octets and not os.access(path.parent, os.W_OK | os.X_OK):
            self.close()
            raise PermissionError(errno.EACCES, "its directory cannot be written, so that it could not be put aside")

    def write(self, batch: bytes, start: int) -> int:
        """Append lines, at most as many as may stand in one file; OSError when the disk is full or gone."""
        if not self._in_place():
            self._open()
            start = _line_start(batch, start)
        if self._torn:
            os.write(self._handle, b"\n")
            self._torn = False
        end = self._end(batch, start)
        written = os.write(self._handle, memoryview(batch)[start:end])
        self._size += written
        if self._durable and self._regular:
            os.fsync(self._handle)
        return start + written

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
        self._roller.close()

    def _in_place(self) -> bool:
        """Whether the open file is still the one at the path; takes its size in."""
        try:
            there = os.stat(self._path)  # noqa: PTH116 - of every batch: half the time
        except OSError:
            return False
        self._size = there.st_size
        return self._handle >= 0 and (there.st_dev, there.st_ino) == self._identity

    def _open(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Without O_NONBLOCK a named pipe would be waited for until somebody reads it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)
        os.set_blocking(self._handle, True)
        there = os.fstat(self._handle)
        self._identity, self._size = (there.st_dev, there.st_ino), there.st_size
        self._regular = stat.S_ISREG(there.st_mode)  # a device is neither put aside nor synchronised
        self._torn = self._regular and _ends_within_a_line(self._path)

    def _end(self, batch: bytes, start: int) -> int:
        """Up to where lines fit into the file; puts it aside when none does."""
        end = len(batch)
        if not self._regular or not self._max_octets or self._size + end - start <= self._max_octets:
            return end
        fitting = batch.rfind(b"\n", start, start + max(self._max_octets - self._size, 0)) + 1
        if fitting > start:
            return fitting
        if self._size == 0 or _line_start(batch, start) != start:
            return batch.index(b"\n", start) + 1
        self._roller.doRollover()
        self._open()
        return self._end(batch, start)


def _line_start(batch: bytes, at: int) -> int:
    """Where the line begins in which `at` lies."""
    return batch.rfind(b"\n", 0, at) + 1


def _ends_within_a_line(path: Path) -> bool:
    """Whether a file's last line was cut off, by a crash or a full disk."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # one that may be written and not read
        return False
