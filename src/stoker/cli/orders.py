"""What the verbs ask of POST /jobs: orders made from bodies, and from the lines of a JSONL file."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from stoker.errors import ConfigError

ENDPOINTS: Final[Mapping[str, str]] = {
    "text": "/query",
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
"""By the field that only its bodies have."""
LONGEST_LINE: Final = 32 * 1024 * 1024
LONGEST_NOTE: Final = 256
"""Characters of a custom_id that go into a job's metadata, for people who look at lists."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line to send: its name within the file, what POST /jobs is given for it, and what tells that apart from
    another line's (24 hexadecimal digits).
    """

    number: int
    custom_id: str
    order: bytes
    fingerprint: str

    def key(self, digest: str, salt: str) -> str:
        """The Idempotency-Key of this line of the file with that SHA-256; `salt` tells runs of it apart."""
        named = f"{digest}\0{self.custom_id}\0{self.fingerprint}\0{salt}"
        return f"stoker-batch-{hashlib.sha256(named.encode()).hexdigest()[:40]}"


def endpoint_of(body: Mapping[str, Any]) -> str | None:
    """The route that a body is meant for; None when it has the fields of none."""
    return next((endpoint for field, endpoint in ENDPOINTS.items() if field in body), None)


def digest_of(path: Path) -> str:
    """SHA-256 of a file; raises ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def lines_of(path: Path, model: str | None) -> Iterator[Line]:
    """The lines to send, one at a time; `model` is asked where a line names none.

    Raises:
        ConfigError: the file or a line cannot be read; the message says which line and what may stand there.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(raw) > LONGEST_LINE:
                raise ConfigError(f"{path}:{number}: longer than {LONGEST_LINE >> 20} MiB; is this file JSONL?")
            text = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if text.strip():
                try:
                    yield _understood(text, number, model)
                except _BadLine as error:
                    raise ConfigError(f"{path}:{number}: {error}") from None


def refuse_doubles(path: Path, lines: Iterable[Line]) -> int:
    """The number of lines; raises ConfigError when two have one custom_id, or there are none."""
    seen: dict[str, int] = {}
    for line in lines:
        if line.custom_id in seen:
            first = seen[line.custom_id]
            raise ConfigError(f"{path}:{line.number}: custom_id {line.custom_id!r} is that of line {first}, too")
        seen[line.custom_id] = line.number
    if not seen:
        raise ConfigError(f"{path}: holds no request; write one JSON object on each line")
    return len(seen)


class _BadLine(Exception):
    """What is wrong with a line."""


def _understood(raw: bytes, number: int, model: str | None) -> Line:
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _BadLine(f"no JSON ({error})") from None
    if not isinstance(given, dict):
        raise _BadLine("no JSON object")
    endpoint, body = _openai(given) if "body" in given else _simple(given)
    custom_id = given.get("custom_id", f"line-{number}")
    if not isinstance(custom_id, str) or not custom_id:
        raise _BadLine("custom_id: must be a text that is not empty")
    if model is not None and body.get("model") is None:
        body = {**body, "model": model}
    asked = {"endpoint": endpoint, "request": body}
    fingerprint = hashlib.sha256(orjson.dumps(asked)).hexdigest()[:24]
    order = orjson.dumps({**asked, "metadata": {"custom_id": custom_id[:LONGEST_NOTE]}})
    return Line(number, custom_id, order, fingerprint)


def _openai(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Route and body of a line in OpenAI's batch form."""
    if "custom_id" not in given:
        raise _BadLine("custom_id: missing; a line with a body has one, to find its answer by")
    if given.get("method", "POST") != "POST":
        raise _BadLine(f"method: must be POST, not {given['method']!r}")
    url, body = given.get("url"), given["body"]
    if not isinstance(url, str) or not url.startswith("/"):
        raise _BadLine(f"url: must be one of {', '.join(ENDPOINTS.values())}")
    if not isinstance(body, dict):
        raise _BadLine("body: must be an object")
    return url, body


def _simple(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    body = {name: value for name, value in given.items() if name != "custom_id"}
    endpoint = endpoint_of(body)
    if endpoint is None:
        raise _BadLine('needs "text", "messages", "prompt" or "input", or OpenAI\'s "custom_id", "url" and "body"')
    return endpoint, body
