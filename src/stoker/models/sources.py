"""Where models come from: an address is parsed into a typed value, then located, then fetched.

Parsing is pure. `locate` asks the source what it has (size, promised digest) without moving the file; the transfer
that it returns brings the bytes into a `Partial`, resuming where that stands. Everything here blocks: call it from a
thread.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from yarl import URL

from stoker.errors import SourceError
from stoker.models.download import Target, download, is_loopback
from stoker.models.partial import CHUNK, Partial
from stoker.objects.s3 import BucketReader, ObjectChanged, ObjectInfo

ADDRESS_FORMS: Final = (
    "a file's path",
    "https://host/file.gguf",
    "hf:org/repo/file.gguf[@revision]",
    "s3://bucket/key.gguf",
    "python:package/file.gguf",
)
S3_PIECE: Final = 8 << 20
"""Bytes of one request to a bucket."""

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_REPOSITORY_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PACKAGE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PathSource:
    """A file on this machine."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A file on a web server. `url` may hold credentials and signatures, which the label leaves out."""

    url: str = field(repr=False)
    insecure: bool = False

    @property
    def label(self) -> str:
        parsed = URL(self.url).with_user(None)
        return str(parsed.with_query(None).with_fragment(None)) + ("?..." if parsed.query_string else "")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file in a Hugging Face repository; without a revision the main branch's."""

    repository: str
    file: str
    revision: str | None = None

    @property
    def label(self) -> str:
        return f"hf:{self.repository}/{self.file}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class BucketSource:
    """An object in S3 or what speaks its protocol."""

    bucket: str
    key: str

    @property
    def label(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file inside a Python package that is installed here; the package is never imported."""

    package: str
    file: str

    @property
    def label(self) -> str:
        return f"python:{self.package}/{self.file}"


Source = PathSource | HttpSource | HubSource | BucketSource | PackageSource


@dataclass(frozen=True, slots=True)
class Located:
    """What a source has: its size in bytes and its SHA-256 where it says them, and how to bring it."""

    size: int | None
    digest: str | None
    transfer: Callable[[Partial], None]


def is_address(text: str) -> bool:
    """Whether a text has the form `scheme:...` and so is neither a path nor a stored name."""
    return _SCHEME.match(text) is not None


def local_path(text: str) -> Path:
    """The absolute path that a text means, with `~` replaced and symbolic links left alone."""
    # Path.expanduser raises for an unknown user, and Path has no abspath.
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111


def parse(text: str, *, insecure_http: bool = False) -> Source:
    """The typed form of an address or path.

    Args:
        text: what the user wrote; ADDRESS_FORMS lists the forms.
        insecure_http: allow http:// to hosts other than this one.

    Raises:
        SourceError: the text has none of the forms; the message says which part is wrong.
    """
    if not text or not text.isprintable():
        raise SourceError(f"{text!r} is not an address; write one of: {', '.join(ADDRESS_FORMS)}")
    match = _SCHEME.match(text)
    if match is None:
        return PathSource(local_path(text))
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme in {"http", "https"}:
        return _parse_http(text, insecure_http=insecure_http)
    if scheme == "hf":
        return _parse_hub(text, rest.removeprefix("//"))
    if scheme == "s3":
        return _parse_bucket(text, rest)
    if scheme == "python":
        return _parse_package(text, rest)
    raise SourceError(
        f"{text}: addresses of the kind {scheme!r} are not known; write one of: {', '.join(ADDRESS_FORMS)} "
        f"(for a file of this name: ./{text})"
    )


def _parse_http(text: str, *, insecure_http: bool) -> HttpSource:
    try:
        url = URL(text)
        host, scheme = url.host, url.scheme
    except ValueError as error:
        # The text may hold a password: it is not repeated.
        raise SourceError(f"the web address is malformed ({str(error)[:100]}); write https://host/file.gguf") from None
    if not host or not _last_part(url.path):
        raise SourceError(f"{scheme}://{host or ''}: the address names no file; write https://host/path/file.gguf")
    if scheme == "http" and not insecure_http and not is_loopback(host):
        raise SourceError(
            f"http://{host}: plain http can be altered on its way; use https, "
            "or --insecure-http together with --sha256 if there is no other"
        )
    return HttpSource(str(url.with_fragment(None)), insecure=insecure_http)


def _parse_hub(text: str, rest: str) -> HubSource:
    address, _, revision = rest.rpartition("@") if "@" in rest else (rest, "", "")
    parts = address.split("/")
    well_formed = len(parts) > 2 and all(_REPOSITORY_PART.fullmatch(part) for part in parts[:2])  # noqa: PLR2004 - org, repo, file
    if not well_formed or not _is_inside(parts[2:]) or ("@" in rest and not _is_revision(revision)):
        raise SourceError(f"{text}: write hf:org/repo/file.gguf or hf:org/repo/file.gguf@revision")
    return HubSource(f"{parts[0]}/{parts[1]}", "/".join(parts[2:]), revision or None)


def _parse_bucket(text: str, rest: str) -> BucketSource:
    bucket, _, key = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not _BUCKET.fullmatch(bucket) or not _is_inside(key.split("/")):
        raise SourceError(f"{text}: write s3://bucket/key.gguf (a bucket's name has 3 to 63 of a-z, 0-9, '.', '-')")
    return BucketSource(bucket, key)


def _parse_package(text: str, rest: str) -> PackageSource:
    package, _, file = rest.partition("/")
    if not _PACKAGE.fullmatch(package) or not _is_inside(file.split("/")):
        raise SourceError(f"{text}: write python:package/file.gguf, with a top-level package's import name")
    return PackageSource(package, file)


def _is_inside(parts: list[str]) -> bool:
    """Whether path parts name something below where they start."""
    return bool(parts) and all(part not in {"", ".", ".."} and "\\" not in part for part in parts)


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def key_of(source: Source) -> str:
    """What tells one source from another, as 64 hexadecimal digits; passwords in addresses do not count."""
    identity = source.label
    if isinstance(source, HttpSource):
        identity = str(URL(source.url).with_user(None))
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def filename_of(source: Source) -> str:
    """The last part of the address, from which a model's name is made when none is given."""
    match source:
        case PathSource(path):
            return path.name
        case HttpSource(url, _):
            return _last_part(URL(url).path)
        case HubSource(_, file, _) | BucketSource(_, file) | PackageSource(_, file):
            return PurePosixPath(file).name


def locate(source: Source) -> Located:
    """Ask the source what it has; nothing is moved yet.

    Raises:
        SourceError: it is not there, not accessible, or not a file.
    """
    match source:
        case PathSource(path):
            return _locate_file(path, source.label)
        case PackageSource(package, file):
            return _locate_file(find_in_package(package, file), source.label)
        case HttpSource(url, insecure):
            target = Target(url, insecure=insecure)
            return Located(None, None, lambda partial: download(target, partial))
        case BucketSource(bucket, key):
            reader = BucketReader(bucket)
            info = reader.info(key)
            return Located(info.size, None, lambda partial: _read_object(reader, key, info, partial))
        case HubSource():
            return _locate_on_hub(source)


def find_in_package(package: str, file: str) -> Path:
    """The path of a file inside an installed top-level package, found without importing it; raises SourceError."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise SourceError(
            f"python:{package}: no such package in the Python that runs Stoker ({sys.prefix}); install it there"
        )
    for place in spec.submodule_search_locations or ():
        candidate = Path(place, *file.split("/"))
        if candidate.is_file():
            return candidate
    raise SourceError(f"python:{package}/{file}: the package is installed, but holds no such file")


def _locate_file(path: Path, label: str) -> Located:
    try:
        info = path.stat()
    except (OSError, ValueError) as error:
        raise SourceError(f"{label}: cannot be read ({_why(error)}); check the path") from None
    if not stat.S_ISREG(info.st_mode):
        raise SourceError(f"{label}: is not a regular file; name a .gguf file")
    return Located(info.st_size, None, lambda partial: _copy(path, label, partial))


def _copy(path: Path, label: str, partial: Partial) -> None:
    """Copy a local file, sharing its blocks where the file system can. A hard link would change with the original."""
    partial.restart(None)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"{label}: cannot be read ({_why(error)}); check its permissions") from None
    try:
        before = os.fstat(descriptor)
        if not partial.clone(descriptor):
            partial.expect(before.st_size)
            while data := _read(descriptor, label):
                partial.write(data)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or partial.size != after.st_size:
        raise SourceError(f"{label}: was changed while it was copied; run the command again when it is finished")


def _read(descriptor: int, label: str) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError as error:
        raise SourceError(f"{label}: cannot be read ({_why(error)})") from None


def _read_object(reader: BucketReader, key: str, info: ObjectInfo, partial: Partial) -> None:
    """Bring an object piece by piece; every piece must be of the version that was located."""
    if partial.validator is None or partial.validator != info.etag or partial.size > info.size:
        partial.restart(info.etag)
    partial.expect(info.size)
    while partial.size < info.size:
        try:
            piece = reader.read(key, partial.size, min(partial.size + S3_PIECE, info.size), info.etag)
        except ObjectChanged:
            partial.restart(None)
            raise
        if not piece:
            raise SourceError(f"{partial.label}: the store sent nothing; run the command again")
        partial.write(piece)


def _locate_on_hub(source: HubSource) -> Located:
    """Ask the hub for the commit, size and digest; the bytes are then fetched by our own download.

    The library's own download starts again from nothing after an interruption, so it only answers the questions that
    need to know the hub: addresses, tokens, revisions and their errors. It reads HF_ENDPOINT and HF_TOKEN.
    """
    # Imported where it is needed: it costs 0.3 s, which only these addresses have to pay.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # noqa: PLC0415

    try:
        metadata: Any = get_hf_file_metadata(
            hf_hub_url(source.repository, source.file, revision=source.revision), library_name="stoker"
        )
        pinned = hf_hub_url(source.repository, source.file, revision=metadata.commit_hash or source.revision)
        headers = build_hf_headers(library_name="stoker")
    except Exception as error:  # noqa: BLE001 - the errors of its HTTP client come from a module that differs between releases
        raise _hub_error(source, error) from None
    digest = metadata.etag if metadata.etag and _SHA256.fullmatch(metadata.etag) else None
    token = headers.pop("authorization", None)
    target = Target(
        pinned,
        headers={"User-Agent": headers.get("user-agent", "stoker")},
        secret_headers={"Authorization": token} if token else {},
        insecure=pinned.startswith("http://"),
    )
    return Located(metadata.size, digest, lambda partial: download(target, partial))


def _hub_error(source: HubSource, error: Exception) -> SourceError:
    """The library's error in the operator's words."""
    page = f"{source.repository}" + (f" at {source.revision}" if source.revision else "")
    remedies = {
        "GatedRepoError": f"{page} is gated: accept its terms on its page, and set HF_TOKEN",
        "RepositoryNotFoundError": f"there is no repository {page}, or it is private: check the name, or set HF_TOKEN",
        "RevisionNotFoundError": f"{source.repository} has no revision {quote(source.revision or 'main')!r}",
        "RemoteEntryNotFoundError": f"{page} has no file {source.file!r}; its page lists the files",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it to fetch",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in remedies:
            return SourceError(f"{source.label}: {remedies[kind.__name__]}")
    lines = str(error).strip().splitlines()
    said = lines[0][:200] if lines else type(error).__name__
    return SourceError(f"{source.label}: the hub cannot be asked ({said}); check the network, HF_ENDPOINT and HF_TOKEN")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
