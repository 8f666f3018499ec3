"""Files that are whole or not there: written beside, flushed, renamed. All of this blocks, and belongs in a thread."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson

from stoker.models.partial import sync_directory

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600


def make_directory(path: Path) -> None:
    """A directory for this user alone, with those above it, unless it is there."""
    path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Put a document in the place of the one before; a crash leaves one of the two, whole."""
    beside = path.with_name(f"{path.name}.new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
    try:
        write_all(handle, orjson.dumps(document))
        os.fsync(handle)
    finally:
        os.close(handle)
    beside.replace(path)
    sync_directory(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, or None when there is none."""
    try:
        document: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return document


def write_all(handle: int, data: bytes | bytearray | memoryview) -> None:
    """Write everything; the system may take it in several pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def remove(*paths: Path) -> None:
    """Remove those files that are there, in this order."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def names_in(path: Path) -> list[str]:
    """The names in a directory, sorted; none when it is not there."""
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 - names are all that is wanted
    except FileNotFoundError:
        return []
