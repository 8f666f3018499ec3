"""The lines of batches' files, in OpenAI's form: those that ask, and those that answer. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from stoker.errors import StokerError
from stoker.jobs.envelope import unpack_error
from stoker.store.jobs import Job

ENVELOPE_OCTETS: Final = 8192
"""Bytes of a line beside the body of its request."""
MAX_ID_CHARS: Final = 512
_BOM: Final = b"\xef\xbb\xbf"
_OVER: Final[Mapping[str, str]] = {
    "batch_expired": "the batch expired before this request was answered",
    "batch_cancelled": "the batch was cancelled before this request was answered",
    "cancelled": "the request was cancelled",
    "result_lost": "the request's result is no longer kept",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A request: its line's number from 1, the caller's name for it, its body, and the offset behind the line."""

    number: int
    custom_id: str
    body: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line; `line` is None for what is wrong with the file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineTooLong(Exception):
    """A line that is longer than any request may be; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


async def split(
    pieces: AsyncIterator[bytes], most: int, offset: int = 0, number: int = 0
) -> AsyncGenerator[tuple[int, bytes, int]]:
    """Lines that hold something: number, text, and the offset behind each. Raises LineTooLong.

    Args:
        pieces: the file from `offset` on, where a line begins.
        most: bytes that a line may have.
        offset: where `pieces` begin.
        number: of the line before.
    """
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            number += 1
            offset += len(text) + 1
            if len(text) > most:
                raise LineTooLong(number)
            if text.strip():
                yield number, text, offset
        if len(rest) > most:
            raise LineTooLong(number + 1)
    if rest.strip():
        yield number + 1, rest, offset + len(rest)


def read_line(number: int, text: bytes, end: int, endpoint: str, most: int) -> Line | Fault:
    """The request of a line that asks `endpoint` with a body of at most `most` bytes, or what is wrong with it."""
    try:
        document = orjson.loads(text.removeprefix(_BOM) if number == 1 else text)
    except orjson.JSONDecodeError:
        return Fault("invalid_json_line", "the line is not valid JSON", number)
    if not isinstance(document, dict):
        return Fault("invalid_json_line", "the line is no JSON object", number)
    fault = _fault_of(document, endpoint)
    if fault is not None:
        return replace(fault, line=number)
    raw = orjson.dumps(document["body"])
    if len(raw) > most:
        return Fault("body_too_large", f"has more than the {most} bytes that requests may have", number, "body")
    return Line(number, document["custom_id"], raw, end)


def _fault_of(document: dict[str, Any], endpoint: str) -> Fault | None:
    custom_id = document.get("custom_id")
    if not (isinstance(custom_id, str) and 1 <= len(custom_id) <= MAX_ID_CHARS):
        return Fault("invalid_custom_id", f"a text of 1 to {MAX_ID_CHARS} characters is needed", param="custom_id")
    if document.get("method") != "POST":
        return Fault("invalid_method", "only POST is offered", param="method")
    if document.get("url") != endpoint:
        return Fault("mismatched_url", f"must be the batch's endpoint, {endpoint}", param="url")
    if not isinstance(document.get("body"), dict):
        return Fault("invalid_body", "must be the JSON object that the endpoint takes", param="body")
    return None


def digest(custom_id: str) -> bytes:
    """A short stand-in for a name."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def answered(job: Job) -> tuple[bytes, bool]:
    """The line of an ended job, and whether it succeeded; the result stands in it byte for byte."""
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    if job.state == "succeeded":
        body = orjson.Fragment(job.result or b"null")
        response = {"status_code": 200, "request_id": job.id, "body": body}
    elif job.state == "failed":
        told = unpack_error(job.error or b'{"code":"internal_error","message":"no error was recorded"}')
        status = told.pop("status")
        response = {"status_code": status, "request_id": job.id, "body": {"error": {"param": None, **told}}}
    else:
        code = "batch_expired" if job.state == "expired" else "cancelled"
        error = {"code": code, "message": _OVER[code]}
    document = {"id": f"batch_req_{job.id}", "custom_id": job.custom_id, "response": response, "error": error}
    return orjson.dumps(document) + b"\n", job.state == "succeeded"


def refused(batch: str, line: Line, error: StokerError) -> bytes:
    """The line of a request that was not taken in."""
    told = {"code": error.code, "message": error.message, "type": error.type, "param": error.param}
    request = f"{batch}_{line.number}"
    response = {"status_code": error.status, "request_id": request, "body": {"error": told}}
    document = {"id": f"batch_req_{request}", "custom_id": line.custom_id, "response": response, "error": None}
    return orjson.dumps(document) + b"\n"


def left_over(batch: str, line: Line, code: str) -> bytes:
    """The line of a request that has no answer: `batch_expired`, `batch_cancelled` or `result_lost`."""
    error = {"code": code, "message": _OVER[code]}
    document = {"id": f"batch_req_{batch}_{line.number}", "custom_id": line.custom_id, "response": None, "error": error}
    return orjson.dumps(document) + b"\n"


def name_of(line: bytes) -> str | None:
    """The `custom_id` of a line of ours."""
    custom_id: str | None = orjson.loads(line).get("custom_id")
    return custom_id
