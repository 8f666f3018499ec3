"""Which keys objects may have: what is safe as a path in a directory and plain in an S3 address."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 512
LONGEST_PART: Final = 200
_PART: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART})*")


def safe_key(key: str) -> bool:
    """Whether it is one: parts between slashes, none empty or beginning with a dot, and nowhere `..`."""
    return (
        len(key) <= LONGEST
        and ".." not in key
        and _KEY.fullmatch(key) is not None
        and max(map(len, key.split("/"))) <= LONGEST_PART
    )


def checked_key(key: str) -> str:
    """The key itself; ValueError when it is none."""
    if not safe_key(key):
        raise ValueError(f"{key[:80]!r} is no key of an object")
    return key


def checked_prefix(prefix: str) -> str:
    """The beginning of keys itself, which may be empty; ValueError when no key can begin so."""
    if not safe_key(f"{prefix}x"):
        raise ValueError(f"no key of an object begins with {prefix[:80]!r}")
    return prefix


def folder_of(prefix: str) -> str:
    """The longest whole path in a beginning of keys: `a/b` of `a/b/c`, nothing of `a`."""
    return prefix.rpartition("/")[0]
