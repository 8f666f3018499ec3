"""What a place for objects can do, whatever it is. Everything blocks; one store may be used by several threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from stoker.errors import OperatorError

SMALL: Final = 64 << 20
"""Most octets that `get` reads into memory."""


class StorageError(OperatorError):
    """The store cannot be reached, refuses, or has no room; the message says which and what to do."""

    code = "storage_error"


class ObjectMissing(StorageError):
    """There is no object under that key."""

    code = "object_missing"


class ObjectExists(StorageError):
    """An object that was to be new is there already."""

    code = "object_exists"


class ObjectLocked(StorageError):
    """The object may not be deleted now: a retention period or a policy holds it."""

    code = "object_locked"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's key, its size in bytes and when it was last written (Unix seconds, by the store's clock)."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Objects under keys such as `objects/ab/abcd...`: whole or not there. Keys hold `[A-Za-z0-9._/-]` only, no part
    between slashes is empty or begins with a dot, and nowhere is `..`; anything else is a ValueError. Every call raises
    StorageError when the store fails; `list` and `stream` may do so only while they are read.
    """

    @property
    def url(self) -> str:
        """Where it is, for people: without credentials."""

    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        """Store a small object. With `only_new` ObjectExists when there is one with other content; one with the same is
        no error, so that a write may be repeated.
        """

    def put_stream(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """Store an object of `size` bytes from pieces. When the iterable raises, that error passes through and nothing
        becomes visible; the same when the pieces are more or fewer bytes than `size` (StorageError).
        """

    def get(self, key: str) -> bytes:
        """A small object's content; ObjectMissing."""

    def stream(self, key: str) -> Iterator[bytes]:
        """An object's content in pieces of some MiB; ObjectMissing."""

    def info(self, key: str) -> StoredObject | None:
        """What is under a key, if anything."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix`, in no particular order."""

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens when there is none. ObjectLocked when it must stay."""

    def sweep(self, older_than: float) -> int:
        """Remove what interrupted writes left before that moment (Unix seconds); how many. Stores that do this by
        themselves return 0.
        """
