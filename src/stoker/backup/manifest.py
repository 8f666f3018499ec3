"""What a snapshot holds, as a document that proves itself. Pure.

A manifest lists files with their digests; the files' content lies elsewhere in the repository, under these digests. It
may come from a damaged or hostile place: what cannot be right is refused before anything is written by its word.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast, get_args

from stoker.errors import OperatorError

Kind = Literal["model", "registry", "configuration", "secrets", "rollouts", "jobs"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FORMAT: Final = 1
MAX_BYTES: Final = 64 << 20
"""No honest manifest is larger; a model takes some 400 bytes of it."""

_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PLACES: Final[Mapping[Kind, re.Pattern[str]]] = {
    "model": re.compile(r"models/blobs/[0-9a-f]{64}"),
    "registry": re.compile(rf"models/refs/{_NAME}/{_NAME}\.json"),
    "configuration": re.compile(rf"stoker\.yaml|keys\.yaml|configured/{_NAME}"),
    "secrets": re.compile(r"secrets/(stoker|keys|original)\.yaml"),
    "rollouts": re.compile(rf"rollouts/{_NAME}\.json"),
    "jobs": re.compile(r"jobs/jobs\.db"),
}
"""Where files of a kind may be: nothing else is ever written by a manifest's word."""


class DamagedSnapshot(OperatorError):
    """A snapshot's manifest, or an object that it needs, is not what it should be."""

    code = "damaged_snapshot"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a snapshot.

    `path` is where it belongs below the data directory; `size` and `sha256` are the file's own; `stored` is the digest
    of the object that holds it, which differs from `sha256` only when it is sealed.
    """

    path: str
    kind: Kind
    size: int
    sha256: str
    stored: str
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot holds. Times are Unix seconds.

    `host` made it, with Stoker's `version`, in `seconds`; `sent_bytes` of it were new to the repository. Until
    `locked_until` no rule removes it.
    """

    id: str
    created: float
    host: str
    version: str
    tags: tuple[str, ...]
    entries: tuple[Entry, ...]
    locked_until: float | None = None
    seconds: float = 0.0
    sent_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of all files, each content counted once."""
        return sum({entry.sha256: entry.size for entry in self.entries}.values())

    @property
    def objects(self) -> frozenset[str]:
        """Digests of the objects that it needs."""
        return frozenset(entry.stored for entry in self.entries)


def new_id(created: float) -> str:
    """A name for a snapshot: its time to the second in UTC, and chance."""
    return f"{datetime.fromtimestamp(created, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of a snapshot's name."""
    return _ID.fullmatch(text) is not None


def id_time(snapshot: str) -> float:
    """The time that a snapshot's name tells, in Unix seconds; 0 for a time that never was."""
    try:
        return datetime.strptime(snapshot[:16], "%Y%m%dT%H%M%S%z").timestamp()
    except ValueError:
        return 0.0


def encode(manifest: Manifest) -> bytes:
    """The document of a manifest: JSON in one fixed form, with its own digest in it."""
    return encode_document({"format": FORMAT, **asdict(manifest)})


def decode(snapshot: str, data: bytes) -> Manifest:
    """The manifest in a document.

    Raises:
        DamagedSnapshot: it is damaged, another snapshot's, from a newer Stoker, or names what no snapshot may.
    """
    try:
        return _manifest(decode_document(data), snapshot)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"lacks or garbles {error}" if isinstance(error, (KeyError, TypeError)) else str(error)
        raise DamagedSnapshot(
            f"snapshot {snapshot}: its manifest {reason}; use another snapshot (`stoker backup list`)"
        ) from None


def encode_document(document: Mapping[str, Any]) -> bytes:
    """JSON in one fixed form, with the SHA-256 of the rest in it."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def decode_document(data: bytes) -> dict[str, Any]:
    """The content of such a document, without the digest; ValueError when it is not as it was written."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON: it is damaged") from None
    if not isinstance(document, dict) or "sha256" not in document:
        raise ValueError("is damaged: it has no digest")
    try:
        fits = data == encode_document(document)
    except RecursionError:
        fits = False
    if not fits:
        raise ValueError("is damaged: its digest does not fit")
    del document["sha256"]
    return document


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _manifest(document: Mapping[str, Any], snapshot: str) -> Manifest:
    if document.get("format") != FORMAT:
        raise ValueError(f"has the format {document.get('format')!r:.20}, this Stoker reads {FORMAT}")
    if document["id"] != snapshot:
        raise ValueError(f"is the manifest of {document['id']!r:.60}")
    lock = document["locked_until"]
    entries = tuple(_entry(entry) for entry in _list(document["entries"], "entries"))
    _check_paths(entries)
    return Manifest(
        id=snapshot,
        created=_number(document["created"], "created"),
        host=_text(document["host"], "host"),
        version=_text(document["version"], "version"),
        tags=tuple(_text(tag, "tags") for tag in _list(document["tags"], "tags")),
        entries=entries,
        locked_until=None if lock is None else _number(lock, "locked_until"),
        seconds=_number(document["seconds"], "seconds"),
        sent_bytes=_whole(document["sent_bytes"], "sent_bytes"),
    )


def _entry(document: Mapping[str, Any]) -> Entry:
    path = document["path"]
    kind = document["kind"]
    if kind not in KINDS:
        raise ValueError(f"names the unknown kind {kind!r:.40}")
    if not isinstance(path, str) or not _PLACES[cast("Kind", kind)].fullmatch(path):
        raise ValueError(f"names a path where no {kind} belongs: {path!r:.100}")
    entry = Entry(
        path=path,
        kind=cast("Kind", kind),
        size=_whole(document["size"], "size"),
        sha256=_digest(document["sha256"]),
        stored=_digest(document["stored"]),
        sealed=document["sealed"] is True,
    )
    if entry.sealed != (kind == "secrets") or (entry.stored != entry.sha256 and not entry.sealed):
        raise ValueError(f"contradicts itself about {path}")
    if kind == "model" and not path.endswith(entry.sha256):
        raise ValueError(f"gives {path} another file's content")
    return entry


def _check_paths(entries: tuple[Entry, ...]) -> None:
    """Every path may be there once."""
    seen: set[str] = set()
    for entry in entries:
        if entry.path in seen:
            raise ValueError(f"names {entry.path} twice")
        seen.add(entry.path)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"has no usable {name}")  # noqa: TRY004 - of a document, not of a call
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:  # noqa: PLR2004 - generous for a name
        raise ValueError(f"has no usable {name}")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("has a digest that is none")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:  # noqa: PLR2004 - the year 33,658
        raise ValueError(f"has no usable {name}")
    return float(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise ValueError(f"has no usable {name}")
    return value
