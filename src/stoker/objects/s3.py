"""Reads objects from S3 and what speaks its protocol; the only place that knows the S3 client.

Credentials, region and endpoint come from the standard `AWS_*` environment (`AWS_ENDPOINT_URL` for other providers,
`AWS_SKIP_SIGNATURE=true` for public buckets), which the client reads by itself. Everything here blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from stoker.errors import SourceError

RETRIES: Final = 5
RETRY_SECONDS: Final = 60
REQUEST_SECONDS: Final = 180


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
            # Plain http happens only where the operator's own endpoint says so; the default endpoints are https.
            self._store = S3Store(
                bucket,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=10),
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        except (BaseError, ValueError) as error:
            raise SourceError(f"s3://{bucket}: the AWS_* environment makes no sense: {_first_line(error)}") from None

    def info(self, key: str) -> ObjectInfo:
        """Size and ETag of an object; raises SourceError when it cannot be had."""
        try:
            meta = obstore.head(self._store, key)
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(key, error) from None
        return ObjectInfo(size=meta["size"], etag=meta["e_tag"])

    def read(self, key: str, start: int, end: int, etag: str | None) -> bytes:
        """The bytes `start` to `end` (exclusive) of an object.

        Raises:
            ObjectChanged: the object no longer has that ETag.
            SourceError: it cannot be had, after several tries.
        """
        try:
            result = obstore.get(self._store, key, options={"range": (start, end), "if_match": etag})
            return bytes(result.bytes())
        except PreconditionError:
            raise ObjectChanged(
                f"s3://{self._bucket}/{key}: has changed while it was read; run the command again"
            ) from None
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(key, error) from None

    def _explained(self, key: str, error: Exception) -> SourceError:
        """The client's error in the operator's words."""
        where = f"s3://{self._bucket}/{key}"
        if isinstance(error, FileNotFoundError):
            return SourceError(f"{where}: there is no such object or bucket; check the address and AWS_ENDPOINT_URL")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return SourceError(
                f"{where}: access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION "
                "(AWS_SKIP_SIGNATURE=true reads public buckets)"
            )
        return SourceError(f"{where}: cannot be read: {_first_line(error)}; check AWS_ENDPOINT_URL and AWS_REGION")


def _first_line(error: Exception) -> str:
    """The client's messages go on with a dump of its insides; the first line says it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
