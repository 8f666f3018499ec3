"""Objects in S3 and what speaks its protocol; the only place that knows the S3 client.

Credentials, region and endpoint come from the standard `AWS_*` environment (`AWS_ENDPOINT_URL` for other providers,
`AWS_SKIP_SIGNATURE=true` for public buckets), which the client reads by itself. Everything here blocks, within bounds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from stoker.errors import SourceError
from stoker.objects.environment import check_environment
from stoker.objects.explaining import code_of, is_held, message_of, words_for
from stoker.objects.keys import checked_key, checked_prefix, folder_of, safe_key
from stoker.objects.store import SMALL, ObjectExists, ObjectLocked, ObjectMissing, StorageError, StoredObject
from stoker.objects.waiting import interruptible, pumped, started

RETRIES: Final = 8
"""With the client's growing pauses some ten seconds, in which a server may start again."""
QUESTION_RETRIES: Final = 5
"""About a second: a command with a wrong address should say so soon."""
RETRY_SECONDS: Final = 60
CONNECT_SECONDS: Final = 10
REQUEST_SECONDS: Final = 300
"""For a request that carries some MiB; several may share a slow line."""
QUESTION_SECONDS: Final = 30
"""For a request that carries next to nothing."""
PART: Final = 8 << 20
"""Octets sent or fetched by one request."""
PARTS: Final = 4
"""Requests of one object under way at once."""
MOST_PARTS: Final = 9_000
"""S3 allows 10,000."""
PAGE: Final = 1000
TRIES: Final = 5
"""Times that a new object is tried which others make and delete meanwhile."""

_FAILURES: Final = (BaseError, OSError, ValueError)
"""What the client raises."""


class ObjectChanged(SourceError):
    """The object is not the one that was looked at before."""

    code = "object_changed"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's size in bytes and its ETag (None: the store names none)."""

    size: int
    etag: str | None


class BucketReader:
    """Reads the objects of one bucket.

    Args:
        bucket: the bucket's name.

    Raises:
        SourceError: the environment's settings make no sense.
    """

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        try:
            self._store = _client(bucket, "", REQUEST_SECONDS, QUESTION_RETRIES)
        except _FAILURES as error:
            raise SourceError(
                f"s3://{bucket}: the AWS_* environment makes no sense: {message_of(str(error))}"
            ) from None

    def info(self, key: str) -> ObjectInfo:
        """Size and ETag of an object; raises SourceError when it cannot be had."""
        try:
            meta = interruptible(lambda: obstore.head(self._store, key))
        except _FAILURES as error:
            raise self._explained(key, error) from None
        return ObjectInfo(size=meta["size"], etag=meta["e_tag"])

    def read(self, key: str, start: int, end: int, etag: str | None) -> bytes:
        """The bytes `start` to `end` (exclusive) of an object.

        Raises:
            ObjectChanged: the object no longer has that ETag.
            SourceError: it cannot be had, after several tries.
        """
        try:
            return interruptible(lambda: _read(self._store, key, start, end, etag))
        except PreconditionError:
            raise ObjectChanged(
                f"s3://{self._bucket}/{key}: has changed while it was read; run the command again"
            ) from None
        except _FAILURES as error:
            raise self._explained(key, error) from None

    def _explained(self, key: str, error: Exception) -> SourceError:
        """The client's error in the operator's words."""
        where = f"s3://{self._bucket}/{key}"
        if isinstance(error, FileNotFoundError):
            return SourceError(f"{where}: there is no such object or bucket; check the address and AWS_ENDPOINT_URL")
        words = words_for(str(error), self._bucket, "read")
        return SourceError(f"{where}: {words} (AWS_SKIP_SIGNATURE=true reads public buckets)")


class S3Objects:
    """The objects of one bucket whose keys begin with a prefix.

    A write that is killed leaves parts that nobody sees; a rule of the bucket for incomplete multipart uploads removes
    them. Every write is checked by the server against a SHA-256.

    Args:
        bucket: the bucket's name; it must exist.
        prefix: a key that stands before all others, or nothing.

    Raises:
        StorageError: the environment's settings make no sense.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            self._store = _client(bucket, prefix, REQUEST_SECONDS, RETRIES)
            self._asked = _client(bucket, prefix, QUESTION_SECONDS, QUESTION_RETRIES)
        except _FAILURES as error:
            raise StorageError(f"{self._url}: the AWS_* environment makes no sense: {message_of(str(error))}") from None

    @property
    def url(self) -> str:
        """The address."""
        return self._url

    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        """Store a small object; see `ObjectStore`."""
        checked_key(key)
        if not only_new:
            with self._told(key, "written"):
                interruptible(lambda: obstore.put(self._store, key, data, use_multipart=False))
            return
        for _ in range(TRIES):
            if self._created(key, data):
                return
            # It may be our own: the answer to it was lost, and the client tried again.
            there = self._content(key)
            if there == data:
                return
            if there is not None:
                break
        raise ObjectExists(f"{self._url}/{key}: is there already, with other content")

    def put_stream(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """Store an object from pieces, which are made while earlier ones are sent; see `ObjectStore`."""
        whole = _whole(pieces, size, f"{self._url}/{checked_key(key)}")
        if size <= PART:
            self.put(key, b"".join(whole))
            return
        part = max(PART, -(-size // MOST_PARTS))

        def send(taken: Iterator[bytes]) -> None:
            with self._told(key, "written"):
                obstore.put(self._store, key, taken, use_multipart=True, chunk_size=part, max_concurrency=PARTS)

        pumped(whole, send)

    def get(self, key: str) -> bytes:
        """A small object's content; ObjectMissing."""
        content = self._content(checked_key(key))
        if content is None:
            raise self._missing(key)
        return content

    def stream(self, key: str) -> Iterator[bytes]:
        """An object's content in pieces of some MiB, a few of which are fetched ahead; ObjectMissing."""
        found = self._head(checked_key(key))
        if found is None:
            raise self._missing(key)
        return self._pieces(key, found["size"], found["e_tag"])

    def info(self, key: str) -> StoredObject | None:
        """What is under a key, if anything."""
        found = self._head(checked_key(key))
        return None if found is None else StoredObject(key, found["size"], found["last_modified"].timestamp())

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix`; keys that cannot be ours are passed over."""
        folder = folder_of(checked_prefix(prefix))
        with self._told(prefix, "listed"):
            pages = obstore.list(self._asked, folder or None, chunk_size=PAGE)
        while True:
            with self._told(prefix, "listed"):
                page = interruptible(lambda: next(pages, None))
            if page is None:
                return
            for meta in page:
                if meta["path"].startswith(prefix) and safe_key(meta["path"]):
                    yield StoredObject(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens when there is none. ObjectLocked when it must stay."""
        checked_key(key)
        with self._told(key, "deleted"):
            try:
                interruptible(lambda: obstore.delete(self._asked, key))
            except _FAILURES as error:
                text = str(error)
                if is_held(text):
                    raise ObjectLocked(
                        f"{self._url}/{key}: cannot be deleted: the bucket's retention or policy holds it "
                        f"({message_of(text)}); try again when that is over"
                    ) from None
                if not isinstance(error, FileNotFoundError) or code_of(text) == "NoSuchBucket":
                    raise

    def sweep(self, older_than: float) -> int:  # noqa: ARG002 - the bucket's own rule knows an age
        """Nothing is done: the bucket does it by itself, see above."""
        return 0

    def _created(self, key: str, data: bytes) -> bool:
        with self._told(key, "written"):
            try:
                interruptible(lambda: obstore.put(self._store, key, data, mode="create"))
            except AlreadyExistsError:
                return False
        return True

    def _content(self, key: str) -> bytes | None:
        """A small object's content, if there is one; reads no more than that."""

        def fetched() -> bytes | None:
            result = obstore.get(self._store, key)
            return bytes(result.bytes()) if result.meta["size"] <= SMALL else None

        with self._told(key, "read"):
            try:
                content = interruptible(fetched)
            except FileNotFoundError as error:
                if code_of(str(error)) == "NoSuchBucket":
                    raise
                return None
        if content is None:
            raise StorageError(f"{self._url}/{key}: has more bytes than such an object may have ({SMALL})")
        return content

    def _head(self, key: str) -> obstore.ObjectMeta | None:
        with self._told(key, "read"):
            try:
                return interruptible(lambda: obstore.head(self._asked, key))
            except FileNotFoundError:
                # An answer without content cannot say whether it is the bucket that is missing.
                return self._probed(key)

    def _probed(self, key: str) -> obstore.ObjectMeta | None:
        try:
            return interruptible(lambda: obstore.get(self._asked, key, options={"range": (0, 1)}).meta)
        except FileNotFoundError as error:
            if code_of(str(error)) == "NoSuchBucket":
                raise
            return None

    def _pieces(self, key: str, size: int, etag: str | None) -> Iterator[bytes]:
        ahead: deque[Future[bytes]] = deque()
        starts = iter(range(0, size, PART))

        def fetch(start: int) -> Future[bytes]:
            return started(lambda: _read(self._store, key, start, min(start + PART, size), etag))

        for start in starts:
            ahead.append(fetch(start))
            if len(ahead) == PARTS:
                yield self._arrived(key, ahead.popleft())
        while ahead:
            yield self._arrived(key, ahead.popleft())

    def _arrived(self, key: str, piece: Future[bytes]) -> bytes:
        with self._told(key, "read"):
            try:
                return piece.result()
            except PreconditionError:
                raise StorageError(f"{self._url}/{key}: has changed while it was read; try again") from None

    @contextmanager
    def _told(self, key: str, done: str) -> Iterator[None]:
        """The client's errors in the operator's words."""
        try:
            yield
        except FileNotFoundError as error:
            if code_of(str(error)) == "NoSuchBucket":
                raise StorageError(f"{self._url}: {words_for(str(error), self._bucket, done)}") from None
            raise self._missing(key) from None
        except _FAILURES as error:
            raise StorageError(f"{self._url}/{key}: {words_for(str(error), self._bucket, done)}") from None

    def _missing(self, key: str) -> ObjectMissing:
        return ObjectMissing(f"{self._url}/{key}: there is no such object")


def _client(bucket: str, prefix: str, seconds: float, retries: int) -> S3Store:
    """A client; what it raises, or ValueError, when the environment makes no sense."""
    check_environment(os.environ)
    # Plain http happens only where the operator's own endpoint says so; the default endpoints are https.
    return S3Store(
        bucket,
        prefix=prefix or None,
        checksum_algorithm="SHA256",
        # Not every provider has it, and its answers hide why an object stays.
        disable_bulk_delete=True,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=seconds),
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
    )


def _read(store: S3Store, key: str, start: int, end: int, etag: str | None) -> bytes:
    """A part of an object; PreconditionError when it no longer has that ETag."""
    return bytes(obstore.get(store, key, options={"range": (start, end), "if_match": etag}).bytes())


def _whole(pieces: Iterable[bytes], size: int, where: str) -> Iterator[bytes]:
    """The pieces, as long as they are no more than `size` bytes; StorageError when they are, or are fewer."""
    done = 0
    for piece in pieces:
        done += len(piece)
        if done > size:
            break
        yield piece
    if done != size:
        raise StorageError(f"{where}: got {'more' if done > size else done} bytes instead of {size}")
