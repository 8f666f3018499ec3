"""The stored models: files kept by digest, found by `name@version`.

Under the data directory: `models/blobs/<sha256>` are the files, read-only; `models/refs/<name>/<version>.json` says
which name is which digest; `models/partial/` is where fetches are under way. A name appears only when its file is
whole, checked and synced, so that a crash at any instant leaves either the old state or the new one. Everything here
blocks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from stoker.errors import ModelFileError, SourceError
from stoker.models import sources
from stoker.models.gguf import GgufHeader, read_header
from stoker.models.names import Reference, check_name, name_from_file, next_version, parse_reference, printable
from stoker.models.partial import Partial, Progress, Quiet, cannot_write, hash_file, sync_directory, write_atomically

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_UNREADABLE: Final = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    SourceError,
)
"""What an entry that makes no sense may be met with."""


@dataclass(frozen=True, slots=True)
class HeaderSummary:
    """What a listing says of a model, from its GGUF header; text is safe to print."""

    architecture: str
    name: str
    file_type: str
    parameters: int
    layers: int
    context_train: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the registry. `size` is in bytes, `added` in unix seconds; `source` holds no credentials."""

    name: str
    version: str
    digest: str
    path: Path
    size: int
    source: str
    source_key: str
    added: float
    header: HeaderSummary

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a stored file hashes to now; None when it is not there."""

    model: StoredModel
    actual: str | None

    @property
    def ok(self) -> bool:
        return self.actual == self.model.digest


class ModelRegistry:
    """The models under one data directory. Safe for several threads and processes at once.

    Args:
        data_dir: made when something is first stored; reading never writes.
    """

    def __init__(self, data_dir: Path) -> None:
        root = data_dir / "models"
        self._root = root
        self._blobs = root / "blobs"
        self._refs = root / "refs"
        self._partial = root / "partial"

    def list(self) -> tuple[StoredModel, ...]:
        """Every stored model, by name, older versions first; raises ModelFileError for an unreadable entry."""
        return tuple(sorted(self._entries("*"), key=lambda model: (model.name, model.added, model.version)))

    def resolve(self, ref: str) -> StoredModel:
        """The model that `name@version` means, or the newest one added under `name`.

        Raises:
            ModelFileError: nothing is stored under that name, or its file is missing or cut short.
        """
        model = self.find(ref)
        try:
            size = model.path.stat().st_size
        except OSError:
            raise ModelFileError(_damaged(model, "is missing")) from None
        if size != model.size:
            raise ModelFileError(_damaged(model, f"has {size:,} bytes instead of {model.size:,}"))
        return model

    def find(self, ref: str) -> StoredModel:
        """As `resolve`, without a look at the file."""
        reference = parse_reference(ref)
        named = self._entries(reference.name) if reference is not None else ()
        candidates = [m for m in named if reference is not None and reference.version in {None, m.version}]
        if not candidates:
            raise ModelFileError(f"{ref}: no stored model of that name; {self.inventory()}")
        return max(candidates, key=lambda model: model.added)

    def from_source(self, source: sources.Source) -> StoredModel | None:
        """The newest model that was added from this very address, if one was."""
        key = sources.key_of(source)
        return max((m for m in self.list() if m.source_key == key), key=lambda model: model.added, default=None)

    def inventory(self) -> str:
        """One sentence about what is stored, for messages."""
        names = [model.ref for model in self.list()]
        if not names:
            return "none is stored yet, `stoker models add ADDRESS` stores one"
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")  # noqa: PLR2004 - a message, not a listing
        return f"stored: {shown}"

    def add(
        self,
        source: sources.Source,
        *,
        name: str | None = None,
        version: str | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> StoredModel:
        """Fetch, check and store a model; what was stored already is not fetched again where the digest is known.

        Args:
            source: where from.
            name: what to call it; by default after the file.
            version: by default "1", then "2" and so on.
            sha256: the digest that the file must have, in hexadecimal.
            progress: who is told how it goes.

        Returns: the stored model; the existing one when that name holds that file already.

        Raises:
            SourceError: it cannot be fetched, has another digest, or there is no room. The next call resumes a
                download that broke.
            ModelFileError: it is truncated, corrupt or not GGUF (nothing is left behind), or the name is taken or
                unusable.
        """
        wanted = Reference(name or name_from_file(sources.filename_of(source)), version)
        check_name(wanted.name)
        if version is not None:
            check_name(version, "version")
        expected = None if sha256 is None else _checked_digest(sha256)
        began = time.time()
        watcher = progress or Quiet()
        located = sources.locate(source)
        if located.digest is not None and expected not in {None, located.digest}:
            raise SourceError(
                f"{source.label}: its source promises SHA-256 {located.digest}, --sha256 says {expected}; "
                "nothing was fetched"
            )
        promised = expected or located.digest
        if promised is not None and self._has(promised):
            return self._enter(wanted, source, promised, read_header(self._blobs / promised), lambda: None)
        with Partial.open(self._partial, sources.key_of(source), source.label, watcher) as partial:
            twin = self._stored_since(began, source) if partial.waited else None
            if twin is not None and promised in {None, twin.digest}:
                return self._enter(wanted, source, twin.digest, read_header(twin.path), lambda: None)
            header = _bring(source, located, partial, promised)
            digest = partial.digest()
            return self._enter(wanted, source, digest, header, lambda: partial.publish(self._blobs / digest))

    def verify(self, ref: str, progress: Progress | None = None) -> VerifyResult:
        """Hash a stored file again; raises ModelFileError for an unknown name or a file that cannot be read."""
        model = self.find(ref)
        try:
            actual = hash_file(model.path, None if progress is None else progress.update)
        except FileNotFoundError:
            actual = None
        except OSError as error:
            raise ModelFileError(f"{model.path}: cannot be read ({error.strerror})") from None
        return VerifyResult(model, actual)

    def remove(self, ref: str) -> StoredModel:
        """Forget a model, and delete its file when no other name needs it; raises ModelFileError for unknown names."""
        with self.locked():
            model = self.find(ref)
            path = self._ref_path(model.name, model.version)
            path.unlink()
            sync_directory(path.parent)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
            self._collect_garbage()
        return model

    def _enter(
        self, wanted: Reference, source: sources.Source, digest: str, header: GgufHeader, publish: Callable[[], None]
    ) -> StoredModel:
        """Give a digest a name, with its file in place first."""
        with self.locked():
            siblings = tuple(self._entries(wanted.name))
            same = [m for m in siblings if m.digest == digest and wanted.version in {None, m.version}]
            taken = next((m for m in siblings if m.version == wanted.version and m.digest != digest), None)
            if taken is not None:
                raise ModelFileError(
                    f"{taken.ref} is another file already (SHA-256 {taken.digest[:12]}, this one {digest[:12]}); "
                    "a version never changes: choose another --version, or remove the old one first"
                )
            # Also over a file that is there: it may have been damaged since, this one has just been checked.
            publish()
            if not self._blob(digest).exists():
                raise SourceError(f"{source.label}: its file was removed meanwhile; run the command again")
            if same:
                return same[-1]
            newest = max((model.added for model in siblings), default=0.0)
            model = StoredModel(
                name=wanted.name,
                version=wanted.version or next_version(frozenset(m.version for m in siblings)),
                digest=digest,
                path=self._blob(digest),
                size=header.file_bytes,
                source=source.label,
                source_key=sources.key_of(source),
                # A clock that was set back must not make an older version the newest.
                added=max(time.time(), newest + 0.001),
                header=summarise(header),
            )
            try:
                self._write(model)
            finally:
                self._collect_garbage()
        return model

    def _has(self, digest: str) -> bool:
        """Whether a file of that digest is stored, whole."""
        try:
            return hash_file(self._blob(digest)) == digest
        except OSError:
            return False

    def _stored_since(self, began: float, source: sources.Source) -> StoredModel | None:
        """What another process stored from the same source while this one waited for it."""
        twin = self.from_source(source)
        return twin if twin is not None and twin.added >= began and twin.path.exists() else None

    def _entries(self, name: str) -> Iterator[StoredModel]:
        """The entries under a name (`*`: every name), in no order."""
        for path in self._refs.glob(f"{name}/*.json"):
            try:
                yield self._read(path)
            except FileNotFoundError:
                continue  # removed while we looked

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest

    def _ref_path(self, name: str, version: str) -> Path:
        return self._refs / name / f"{version}.json"

    def _read(self, path: Path) -> StoredModel:
        """One entry; raises ModelFileError when it makes no sense, FileNotFoundError when it is gone."""
        try:
            entry: dict[str, Any] = json.loads(path.read_bytes())
            digest = _checked_digest(entry["digest"])
            return StoredModel(
                name=path.parent.name,
                version=path.name.removesuffix(".json"),
                digest=digest,
                path=self._blob(digest),
                size=int(entry["size"]),
                source=str(entry["source"]),
                source_key=str(entry["source_key"]),
                added=float(entry["added"]),
                header=HeaderSummary(**{field.name: entry["header"][field.name] for field in fields(HeaderSummary)}),
            )
        except FileNotFoundError:
            raise
        except _UNREADABLE as error:
            raise ModelFileError(
                f"{path}: this entry of the model registry cannot be read ({type(error).__name__}); delete it, "
                "then add the model again"
            ) from None

    def _write(self, model: StoredModel) -> None:
        path = self._ref_path(model.name, model.version)
        fresh = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            sync_directory(self._refs)
        write_atomically(path, encode_entry(model))

    def _collect_garbage(self) -> None:
        """Delete files that no name needs. Only under the lock: there, no file is about to get its first name."""
        if not self._blobs.is_dir():
            return
        needed = {model.digest for model in self.list()}
        for blob in self._blobs.iterdir():
            if blob.name not in needed:
                blob.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the registry: names and files change under this lock only. It cannot be taken twice."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._refs.mkdir(exist_ok=True)
            descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise cannot_write(self._root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise cannot_write(self._root, error) from error
        finally:
            os.close(descriptor)


def _bring(source: sources.Source, located: sources.Located, partial: Partial, promised: str | None) -> GgufHeader:
    """Fetch into `partial` and check what arrived; a file that is refused is gone afterwards."""
    try:
        located.transfer(partial)
        digest = partial.digest()
        if promised not in {None, digest}:
            partial.discard()
            raise SourceError(
                f"{source.label}: has SHA-256 {digest}, expected {promised}: it is damaged, or not the file that was "
                "meant; nothing was stored"
            )
        return read_header(partial.path)
    except ModelFileError as error:
        partial.discard()
        # The header's reader names the file under way; the user knows the source.
        reason = error.message.removeprefix(f"{partial.path}: ").removeprefix(f"{source.label}: ")
        raise ModelFileError(f"{source.label}: {reason}; nothing was stored") from None


def _checked_digest(sha256: str) -> str:
    digest = sha256.strip().lower().removeprefix("sha256:")
    if not _DIGEST.fullmatch(digest):
        raise SourceError(f"--sha256 {sha256[:80]!r}: a SHA-256 has 64 hexadecimal digits")
    return digest


def encode_entry(model: StoredModel) -> bytes:
    """The content of a model's entry under `refs/`."""
    entry = {
        "digest": model.digest,
        "size": model.size,
        "source": model.source,
        "source_key": model.source_key,
        "added": model.added,
        "header": asdict(model.header),
    }
    return json.dumps(entry, indent=1).encode()


def summarise(header: GgufHeader) -> HeaderSummary:
    """What a listing says of a model."""
    return HeaderSummary(
        architecture=printable(header.architecture),
        name=printable(header.name or ""),
        file_type=printable(header.file_type),
        parameters=header.parameters,
        layers=header.layers,
        context_train=header.context_train,
    )


def _damaged(model: StoredModel, what: str) -> str:
    return (
        f"{model.ref}: its file {model.path} {what}; remove it and add it again: "
        f"`stoker models remove {model.ref}`, `stoker models add {model.source}`"
    )
