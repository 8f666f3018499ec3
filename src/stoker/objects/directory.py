"""Objects as files below a directory: written beside under `.tmp/`, synced, then put into place in one step.

Below the directory no symbolic link is followed and nothing but regular files is read, so whoever may write there
cannot lead a backup elsewhere. A file under way is locked as long as its writer lives, which is how `sweep` knows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from stoker.objects.keys import checked_key, checked_prefix, folder_of, safe_key
from stoker.objects.store import SMALL, ObjectExists, ObjectLocked, ObjectMissing, StorageError, StoredObject

PIECE: Final = 4 << 20
"""Octets read at once."""
DRAFTS: Final = ".tmp"
"""No key begins with a dot."""
TRIES: Final = 5
"""Times that a new object is tried which others make and delete meanwhile."""
NEW_DIRECTORY: Final = 0o700
NEW_FILE: Final = 0o600
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_FULL: Final = "the disk is full; make room, or use another disk"
_LINK: Final = "it or a part of its path is a symbolic link or something else that is not followed"
_REFUSED: Final = (
    "the file system refuses; it must know hard links, as ext4, XFS, Btrfs, ZFS and NFS do, and the files must not be "
    "immutable"
)
_FAILS: Final = "the disk or the network behind it fails; see the kernel's log (dmesg)"
_REMEDIES: Final[Mapping[int, str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: "this user may not; check who owns the directory and its files",
    errno.EPERM: _REFUSED,
    errno.EMLINK: _REFUSED,
    errno.ENOTSUP: _REFUSED,
    errno.EROFS: "the disk is mounted read-only",
    errno.ELOOP: _LINK,
    errno.ENOTDIR: _LINK,
    errno.EIO: _FAILS,
    errno.ESTALE: _FAILS,
}


class DirectoryObjects:
    """The objects below a directory, which is made when the first one is written; what holds it must be there.

    Args:
        path: the directory; itself it may be a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    @property
    def url(self) -> str:
        """The directory."""
        return str(self._path)

    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        """Store a small object; see `ObjectStore`."""
        for _ in range(TRIES):
            if self._write(key, (data,), len(data), only_new=only_new):
                return
            with suppress(ObjectMissing):  # deleted since: try again
                if self.get(key) == data:
                    return
                break
        raise ObjectExists(f"{self._path / key}: is there already, with other content")

    def put_stream(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """Store an object from pieces; see `ObjectStore`."""
        self._write(key, pieces, size, only_new=False)

    def get(self, key: str) -> bytes:
        """A small object's content; ObjectMissing."""
        where = self._path / checked_key(key)
        with self._opened(key) as (handle, size), _told(where, "read"):
            if size > SMALL:
                raise StorageError(f"{where}: has {size} bytes, more than such a file may have ({SMALL})")
            return b"".join(iter(lambda: os.read(handle, PIECE), b""))

    def stream(self, key: str) -> Iterator[bytes]:
        """An object's content in pieces of some MiB; ObjectMissing."""
        if self.info(key) is None:
            raise self._missing(key)
        return self._pieces(key)

    def info(self, key: str) -> StoredObject | None:
        """What is under a key, if anything."""
        try:
            with self._opened(key) as (handle, size), _told(self._path / key, "read"):
                return StoredObject(key, size, os.fstat(handle).st_mtime)
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix`; what can be none, such as a symbolic link, is passed over."""
        waiting = [folder_of(checked_prefix(prefix))]
        while waiting:
            path = waiting.pop()
            with _told(self._path / path, "read"), self._folder(path.split("/") if path else ()) as folder:
                files, folders = _entries(folder, f"{path}/" if path else "") if folder is not None else ((), ())
            yield from (found for found in files if found.key.startswith(prefix))
            waiting += (key for key in folders if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"))

    def delete(self, key: str) -> None:
        """Delete an object, durably; nothing happens when there is none. ObjectLocked when it must stay."""
        where = self._path / checked_key(key)
        *parts, name = key.split("/")
        with _told(where, "deleted"), self._folder(parts) as folder:
            if folder is None:
                return
            try:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
            except FileNotFoundError:
                return
            except PermissionError as error:
                # EPERM, unlike EACCES, is the file's own doing.
                if error.errno != errno.EPERM:
                    raise
                raise ObjectLocked(
                    f"{where}: cannot be deleted: the file or its directory is immutable, append-only or another "
                    "user's; see lsattr"
                ) from None

    def sweep(self, older_than: float) -> int:
        """Remove what interrupted writes left before that moment (Unix seconds), and no living writer's; how many."""
        with _told(self._path / DRAFTS, "cleared"), self._folder((DRAFTS,)) as folder:
            if folder is None:
                return 0
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
            return sum(_sweep_one(folder, name, older_than) for name in names)

    def _write(self, key: str, pieces: Iterable[bytes], size: int, *, only_new: bool) -> bool:
        """Whether the object is in place; not so when `only_new` and there is one already."""
        where = self._path / checked_key(key)
        *parts, name = key.split("/")
        with ExitStack() as stack:
            with _told(where, "written"):
                folder = stack.enter_context(self._made(parts))
                draft = stack.enter_context(_Draft(stack.enter_context(self._made((DRAFTS,)))))
                _expect_room(draft.handle, where, size)
            done = 0
            for piece in pieces:
                done += len(piece)
                if done > size:
                    break
                with _told(where, "written"):
                    draft.write(piece)
            if done != size:
                raise StorageError(f"{where}: got {'more' if done > size else done} bytes instead of {size}")
            with _told(where, "written"):
                return draft.place(folder, name, only_new=only_new)

    def _pieces(self, key: str) -> Iterator[bytes]:
        where = self._path / key
        with self._opened(key) as (handle, _):
            while True:
                with _told(where, "read"):
                    piece = os.read(handle, PIECE)
                if not piece:
                    return
                yield piece

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """An object's file, and its size; ObjectMissing, StorageError when it is no regular file."""
        where = self._path / checked_key(key)
        *parts, name = key.split("/")
        with ExitStack() as stack:
            with _told(where, "read"):
                folder = stack.enter_context(self._folder(parts))
                if folder is None:
                    raise self._missing(key)
                try:
                    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                except FileNotFoundError:
                    raise self._missing(key) from None
                stack.callback(os.close, handle)
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(f"{where}: is not a regular file; remove it, nothing of Stoker's made it")
            yield handle, found.st_size

    @contextmanager
    def _folder(self, parts: Sequence[str]) -> Iterator[int | None]:
        """A folder below the directory; None when there is none."""
        try:
            handle = self._open_root()
        except FileNotFoundError:
            self._expect_parent()
            yield None
            return
        with ExitStack() as stack:
            stack.callback(os.close, handle)
            for part in parts:
                try:
                    handle = os.open(part, FOLDER, dir_fd=handle)
                except FileNotFoundError:
                    yield None
                    return
                stack.callback(os.close, handle)
            yield handle

    @contextmanager
    def _made(self, parts: Sequence[str]) -> Iterator[int]:
        """A folder below the directory; it and the directory are made where they are not there."""
        with ExitStack() as stack:
            try:
                handle = self._open_root()
            except FileNotFoundError:
                self._make_root()
                handle = self._open_root()
            stack.callback(os.close, handle)
            for part in parts:
                try:
                    below = os.open(part, FOLDER, dir_fd=handle)
                except FileNotFoundError:
                    with suppress(FileExistsError):
                        os.mkdir(part, NEW_DIRECTORY, dir_fd=handle)
                    os.fsync(handle)
                    below = os.open(part, FOLDER, dir_fd=handle)
                handle = below
                stack.callback(os.close, handle)
            yield handle

    def _open_root(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _make_root(self) -> None:
        self._expect_parent()
        with suppress(FileExistsError):
            self._path.mkdir(NEW_DIRECTORY)
        parent = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def _expect_parent(self) -> None:
        # Making it all would fill the wrong disk when the right one is not mounted.
        if not self._path.parent.is_dir():
            raise StorageError(
                f"{self._path}: there is no directory {self._path.parent}; if it is on another disk, mount that, "
                f"else make it: mkdir -p {self._path.parent}"
            )

    def _missing(self, key: str) -> ObjectMissing:
        return ObjectMissing(f"{self._path / key}: there is no such file")


class _Draft:
    """A file under way in a folder of its own; gone when the block ends unless it was put into place."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._name = secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.handle = os.open(self._name, flags, NEW_FILE, dir_fd=folder)
        # Where the file system knows no locks, age alone tells a living writer's file.
        with suppress(OSError):
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder)
        os.close(self.handle)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.handle, view) :]

    def place(self, folder: int, name: str, *, only_new: bool) -> bool:
        """Make it durable and visible; False when `only_new` and the name is taken."""
        os.fsync(self.handle)
        if only_new:
            try:
                os.link(self._name, name, src_dir_fd=self._folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
        else:
            os.rename(self._name, name, src_dir_fd=self._folder, dst_dir_fd=folder)
        os.fsync(folder)
        return True


def _entries(folder: int, path: str) -> tuple[Sequence[StoredObject], Sequence[str]]:
    """The objects right in a folder, and the keys of the folders in it."""
    files: list[StoredObject] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            key = f"{path}{entry.name}"
            if not safe_key(key):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(key)
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    files.append(StoredObject(key, found.st_size, found.st_mtime))
    return files, folders


def _sweep_one(folder: int, name: str, older_than: float) -> bool:
    """Whether a draft was left by a writer that is gone, and is removed now."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_mtime >= older_than:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(handle)
    return True


def _expect_room(handle: int, where: Path, size: int) -> None:
    room = os.fstatvfs(handle)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise StorageError(
            f"{where}: cannot be written: {size} bytes are needed and the disk has {free} left; make room, or use "
            "another disk"
        )


@contextmanager
def _told(where: Path, done: str) -> Iterator[None]:
    """Errors of the operating system in the operator's words."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{where}: cannot be {done}: {_words(error)}") from error


def _words(error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return error.strerror or str(error)
    return f"{remedy} ({error.strerror})"
