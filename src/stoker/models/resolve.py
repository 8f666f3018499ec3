"""From what a user writes after `serve` or `doctor` to a file and its identity: a path, a stored name, or an address.

A path is used where it is. Its digest, which takes a second for each gigabyte or two, is remembered with the file's
size, times and inode, and taken again when one of them has changed.
"""

from __future__ import annotations

import json
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stoker.errors import ModelFileError
from stoker.models import sources
from stoker.models.gguf import read_header
from stoker.models.names import name_from_file, parse_reference
from stoker.models.partial import Progress, hash_file, write_atomically
from stoker.models.registry import ModelRegistry, StoredModel
from stoker.types import ModelIdentity

MAX_REMEMBERED: Final = 256
SETTLED_SECONDS: Final = 2.0
"""A file changed more recently might change again within the clock's tick, unnoticed; its digest is not remembered."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model file that is there, and what it is known by; `ref` names it, and will name no other version later."""

    path: Path
    identity: ModelIdentity
    ref: str


def open_model(text: str, registry: ModelRegistry, data_dir: Path, progress: Progress | None = None) -> ResolvedModel:
    """Find the model that a user means.

    Args:
        text: an existing file's path; a stored `name` or `name@version`; or an address, stored on first use (and taken
            from the store, without a look at the network, from then on).
        registry: the stored models.
        data_dir: where digests of files outside the store are remembered.
        progress: who is told how fetching or hashing goes.

    Raises:
        ModelFileError: nothing matches (with a list of what is there), or the file is no usable model.
        SourceError: an address cannot be fetched.
    """
    path = sources.local_path(text)
    there = _kind(path)
    if sources.is_address(text) and there is None:
        source = sources.parse(text)
        known = registry.from_source(source)
        return _stored(registry.resolve(known.ref) if known is not None else registry.add(source, progress=progress))
    if there == "file":
        return _in_place(path, DigestMemory(data_dir), progress)
    reference = parse_reference(text)
    if there is not None and reference is None:
        raise ModelFileError(f"{text}: is a {there}; name the .gguf file itself")
    if reference is None or text.endswith(".gguf"):
        raise ModelFileError(f"{text}: there is no such file; {registry.inventory()}. {_forms()}")
    try:
        return _stored(registry.resolve(text))
    except ModelFileError as error:
        raise ModelFileError(f"{error.message}. {_forms()}") from None


def _kind(path: Path) -> str | None:
    """`file`, `directory` or `special file`; None when nothing is there that can be seen."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "special file"


def _forms() -> str:
    return f"A model is named by a stored name or {', '.join(sources.ADDRESS_FORMS)}."


def _stored(model: StoredModel) -> ResolvedModel:
    identity = ModelIdentity(model.name, model.version, model.digest, int(model.added))
    return ResolvedModel(model.path, identity, model.ref)


def _in_place(path: Path, memory: DigestMemory, progress: Progress | None) -> ResolvedModel:
    # First the header: a file that is no model need not be hashed.
    read_header(path)
    try:
        digest = memory.digest(path.resolve(), progress)
        changed = path.stat().st_mtime
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    identity = ModelIdentity(name_from_file(path.name), digest[:12], digest, max(0, int(changed)))
    return ResolvedModel(path, identity, str(path))


class DigestMemory:
    """Digests of files outside the store. A convenience: when it cannot be read or written, files are hashed again."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "models" / "digests.json"

    def digest(self, path: Path, progress: Progress | None = None) -> str:
        """SHA-256 of a file, in hexadecimal; raises OSError when it cannot be read."""
        before = _stamp(path)
        entries = self._load()
        known = entries.get(str(path))
        if isinstance(known, dict) and known.get("stamp") == before and isinstance(known.get("digest"), str):
            return str(known["digest"])
        digest = hash_file(path, None if progress is None else progress.update)
        if _stamp(path) == before and time.time() - path.stat().st_mtime > SETTLED_SECONDS:
            entries.pop(str(path), None)
            self._save({**entries, str(path): {"stamp": before, "digest": digest}})
        return digest

    def _load(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _save(self, entries: dict[str, Any]) -> None:
        # The latest stay: a dictionary keeps the order in which entries were made.
        kept = dict(list(entries.items())[-MAX_REMEMBERED:])
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(kept).encode())
        except OSError:
            return


def _stamp(path: Path) -> list[int]:
    """What changes when a file does."""
    info = path.stat()
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
