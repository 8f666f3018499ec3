"""The file that a model is being fetched into: locked, resumable, hashed as it grows, and gone when it is refused.

A download may be cut by a broken connection, a killed process or a power failure, so what is on disk is trusted only up
to the last checkpoint, which was synced before it was written down. Two processes that fetch the same thing take turns.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from stoker.errors import ModelFileError, SourceError, StokerError

CHUNK: Final = 1 << 20
"""Octets read or written at once."""
CHECKPOINT_BYTES: Final = 16 << 20
CHECKPOINT_SECONDS: Final = 1.0
ABANDONED_SECONDS: Final = 7 * 86_400
"""Age after which an interrupted fetch is cleared away."""
FICLONE: Final = 0x40049409
"""`ioctl_ficlone(2)`: the destination shares the source's blocks until one of them is written."""

MAGIC: Final = b"GGUF"


class Progress(Protocol):
    """Who is told how a fetch goes."""

    def update(self, done: int, total: int | None) -> None:
        """So many bytes of `total` are here; None: nobody knows how many there will be."""

    def note(self, text: str) -> None:
        """Something worth a line: waiting for another process, trying again."""


class Quiet:
    """Progress that nobody watches."""

    def update(self, done: int, total: int | None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Partial:
    """A file under way, held exclusively from `open` to the end of the `with` block.

    Args:
        path: the file; its checkpoint stands beside it with `.json` appended.
        label: what is fetched, for messages.
        progress: who is told.
    """

    def __init__(self, path: Path, label: str, progress: Progress) -> None:
        self.path = path
        self.label = label
        self.progress = progress
        self.waited = False
        """Whether another process was fetching the same thing first."""
        self.validator: str | None = None
        """What must still hold at the source for the bytes that are here to count: an ETag or a date."""
        self.size = 0
        """Bytes that are here and count."""
        self.total: int | None = None
        self._checkpoint = path.with_name(path.name + ".json")
        self._hash = hashlib.sha256()
        self._saved_size = 0
        self._saved_at = 0.0
        self._recognised = False
        self._gone = False
        self._descriptor = self._lock()
        try:
            self._recall()
        except BaseException:
            os.close(self._descriptor)
            raise

    @classmethod
    def open(cls, directory: Path, key: str, label: str, progress: Progress) -> Self:
        """Take the file for `key`, waiting while another process has it; raises SourceError when it cannot be made."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            clear_abandoned(directory, time.time() - ABANDONED_SECONDS)
            return cls(directory / key, label, progress)
        except OSError as error:
            raise cannot_write(directory, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._gone:
                if self.size and self.validator is not None:
                    self._save()
                else:
                    self.discard()
        except OSError:
            # The disk is full or gone: what cannot be kept is cleared, and the error under way says more.
            self.discard()
        finally:
            os.close(self._descriptor)

    def expect(self, total: int | None) -> None:
        """Note the final size in bytes; raises SourceError when the disk has no room for the rest."""
        self.total = total
        self.progress.update(self.size, total)
        if total is None:
            return
        free = shutil.disk_usage(self.path.parent).free
        if total - self.size > free:
            raise self._full(free)

    def restart(self, validator: str | None) -> None:
        """Begin again from nothing, with another validator; raises SourceError when the disk is full."""
        self._hash = hashlib.sha256()
        self.size = 0
        self.validator = validator
        self._recognised = False
        try:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._save()
        except OSError as error:
            raise self._disk_error(error) from error

    def write(self, data: bytes) -> None:
        """Append bytes; raises SourceError when the disk is full, ModelFileError when they cannot begin a GGUF file."""
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._descriptor, view)
                self._hash.update(view[:written])
                self.size += written
                view = view[written:]
            # Before the checkpoint, so that a later attempt cannot resume a page of HTML.
            self._look_at_start()
            if (
                self.size - self._saved_size >= CHECKPOINT_BYTES
                or time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
            ):
                self._save()
        except OSError as error:
            raise self._disk_error(error) from error
        self.progress.update(self.size, self.total)

    def clone(self, descriptor: int) -> bool:
        """Share another file's blocks where the file system can; says whether it did. Nothing has been written yet."""
        try:
            fcntl.ioctl(self._descriptor, FICLONE, descriptor)
        except OSError:
            return False
        self._read_back(os.fstat(self._descriptor).st_size)
        self.progress.update(self.size, self.total)
        return True

    def digest(self) -> str:
        """SHA-256 of what is here, in lower-case hexadecimal."""
        return self._hash.hexdigest()

    def publish(self, destination: Path) -> None:
        """Make the file read-only and move it to its final place, durably."""
        os.fchmod(self._descriptor, 0o444)
        os.fsync(self._descriptor)
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(destination)
        sync_directory(destination.parent)
        self._gone = True
        self._checkpoint.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._gone = True
        self._checkpoint.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _lock(self) -> int:
        """Open and lock the file; whoever held it may have moved it away meanwhile, then the new one is taken."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._wait_for(descriptor)
                if _same_file(self.path, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _wait_for(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not self.waited:
                self.progress.note(f"{self.label}: another process is fetching it; waiting")
            self.waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _recall(self) -> None:
        """Take up what an earlier attempt left, as far as its checkpoint vouches for it."""
        try:
            saved = json.loads(self._checkpoint.read_bytes())
            validator, durable = saved["validator"], saved["durable"]
        except (OSError, ValueError, KeyError, TypeError):
            validator, durable = None, 0
        there = os.fstat(self._descriptor).st_size
        if not isinstance(validator, str) or not isinstance(durable, int) or not 0 <= durable <= there:
            validator, durable = None, 0
        os.ftruncate(self._descriptor, durable)
        self.validator = validator
        self._read_back(durable)
        self._saved_size = durable

    def _read_back(self, size: int) -> None:
        """Hash what is on disk already, and stand at its end."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        left = size
        while left:
            data = os.read(self._descriptor, min(CHUNK, left))
            if not data:
                raise OSError(errno.EIO, "the file ended early")
            self._hash.update(data)
            left -= len(data)
        self.size = size
        self._look_at_start()

    def _look_at_start(self) -> None:
        """Refuse at once what cannot become a model, before gigabytes of it are fetched."""
        if self._recognised or self.size < len(MAGIC):
            return
        start = os.pread(self._descriptor, 48, 0)
        if not start.startswith(MAGIC):
            raise ModelFileError(f"{self.label}: {_not_gguf(start)}")
        self._recognised = True

    def _save(self) -> None:
        """Checkpoint: first the bytes are on disk, then the word that they are."""
        os.fsync(self._descriptor)
        write_atomically(self._checkpoint, json.dumps({"validator": self.validator, "durable": self.size}).encode())
        self._saved_size = self.size
        self._saved_at = time.monotonic()

    def _disk_error(self, error: OSError) -> StokerError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full(shutil.disk_usage(self.path.parent).free)
        return cannot_write(self.path.parent, error)

    def _full(self, free: int) -> SourceError:
        needed = "an unknown number of" if self.total is None else f"{self.total - self.size:,}"
        self.discard()
        return SourceError(
            f"{self.label}: no room in {self.path.parent}: {needed} more bytes needed, {free:,} free; "
            "make room, or choose another place with --data-dir or STOKER_DATA_DIR"
        )


def _not_gguf(start: bytes) -> str:
    """Say what a file that is not GGUF seems to be."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model; fetch the file itself (`git lfs pull`)"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not a GGUF file; check the address, or whether it needs a login"
    return f"is not a GGUF file (it begins with {start[:8]!r}); Stoker runs models in the GGUF format"


def clear_abandoned(directory: Path, before: float) -> None:
    """Delete interrupted fetches that nobody has touched since `before` (unix seconds) and nobody holds."""
    for path in directory.iterdir():
        try:
            if path.stat().st_mtime >= before or (path.suffix == ".json" and path.with_suffix("").exists()):
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or not ours to touch
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees all of it or what was there before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make names that were created, moved or removed in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, progress: Callable[[int, int | None], None] | None = None) -> str:
    """SHA-256 of a file, in lower-case hexadecimal; `progress` is told bytes done and bytes in all."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while data := file.read(CHUNK):
            digest.update(data)
            if progress is not None:
                progress(file.tell(), total)
    return digest.hexdigest()


def cannot_write(place: Path, error: OSError) -> StokerError:
    """What to say when the data directory cannot be written."""
    return SourceError(
        f"{place}: cannot be written ({error.strerror or error}); check its permissions and free space, "
        "or choose another place with --data-dir or STOKER_DATA_DIR"
    )


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
