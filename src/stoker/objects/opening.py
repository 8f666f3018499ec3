"""From an address to the place for objects that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from stoker.errors import ConfigError
from stoker.objects.directory import DirectoryObjects
from stoker.objects.keys import safe_key
from stoker.objects.s3 import S3Objects
from stoker.objects.store import ObjectStore

FORMS: Final = "s3://bucket/prefix, file:///directory or a directory"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


def open_objects(address: str) -> ObjectStore:
    """The store at an address; nothing is asked or made there yet.

    Raises:
        ConfigError: it is none.
        StorageError: the environment's settings for S3 make no sense.
    """
    if not address.strip() or not address.isprintable():
        raise ConfigError(f"an address is empty or has control characters; write {FORMS}")
    scheme = _SCHEME.match(address)
    match scheme[1].lower() if scheme else "":
        case "":
            return DirectoryObjects(_home(Path(address)))
        case "s3":
            return _bucket(address)
        case "file":
            return DirectoryObjects(_directory(address))
        case other:
            raise ConfigError(f"objects cannot be kept in {other}: addresses; write {FORMS}")


def _bucket(address: str) -> S3Objects:
    bucket, _, prefix = address[len("s3://") :].partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket:
        # Not shown: what stands before it may be a secret.
        raise ConfigError("an address holds no credentials; S3's come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not address[2:].startswith("://") or not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{address[:200]!r} names no bucket; write s3://bucket/prefix")
    if prefix and not safe_key(prefix):
        raise ConfigError(
            f"{address[:200]!r}: {prefix[:100]!r} cannot stand before keys: only letters, digits and ._-/ may, and no "
            "part may be empty or begin with a dot"
        )
    return S3Objects(bucket, prefix)


def _directory(address: str) -> Path:
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path)
    if not address[4:].startswith("://") or parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise ConfigError(f"{address[:200]!r} names no directory of this host; write file:///directory")
    if not path.startswith("/") or not path.isprintable():
        raise ConfigError(f"{address[:200]!r} names no directory; write file:///directory")
    return Path(path)


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{str(path)[:200]!r}: there is no such home directory; write the whole path") from None
