"""API keys at rest: how one is made and hashed, and the file in which `stoker keys` keeps them.

A key is 256 random bits, so that one round of SHA-256 hides it as well as a slow hash would hide a password; the file
holds nothing that can be used to ask. It is written beside and renamed, readable by its owner alone, under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml

from stoker.config import KeyConfig, Settings, load_keys
from stoker.errors import ConfigError, StartupError

KEY_PREFIX: Final = "sk-stoker-"
FILE_NAME: Final = "keys.yaml"
HEADER: Final = "# API keys of Stoker, by their hashes. `stoker keys create|list|revoke` writes this file.\n"


def new_key() -> str:
    """A fresh key: a prefix by which scanners of leaked secrets know it, and 256 random bits in base64url."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What is kept of a key: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def file_of(settings: Settings) -> Path:
    """Where the keys file is, or would be."""
    return settings.keys_file or settings.data_dir / FILE_NAME


def read_keys(path: Path) -> tuple[KeyConfig, ...] | None:
    """The keys in a file; None when there is no file. Raises ConfigError for one that is wrong."""
    keys = load_keys(path)
    if keys is not None:
        refuse_doubles(keys, str(path))
    return keys


def refuse_doubles(keys: Sequence[KeyConfig], where: str) -> None:
    """Raise ConfigError when two keys have one name, or one hash."""
    for what in ("name", "hash"):
        values = [getattr(key, what) for key in keys]
        double = next((value for value in values if values.count(value) > 1), None)
        if double is not None:
            raise ConfigError(f"{where}: keys: the {what} {double!r} is there twice; every key needs its own")


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[KeyConfig]]:
    """The keys in a file, to be changed: what the list holds at the end is written, unless an error came between.

    Raises:
        ConfigError: the file is wrong.
        StartupError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(read_keys(path) or ())
            yield keys
            refuse_doubles(keys, str(path))
            _write(path, keys)
    except OSError as error:
        raise StartupError(f"{path}: the keys cannot be written ({error.strerror}); is the directory yours?") from None


def _write(path: Path, keys: Sequence[KeyConfig]) -> None:
    document = {"keys": [key.model_dump(mode="json", exclude_unset=True, exclude_none=True) for key in keys]}
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
            file.flush()
            os.fsync(file.fileno())
        Path(beside).rename(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
