"""How errors look on the wire: OpenAI's envelope under /v1, RFC 9457 problems everywhere else."""

from __future__ import annotations

import math
from http import HTTPStatus

import orjson

from stoker.errors import StokerError

PROBLEM_TYPE = b"application/problem+json"
JSON_TYPE = b"application/json"


def openai_error(error: StokerError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return orjson.dumps(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def problem(error: StokerError) -> bytes:
    """A problem object of RFC 9457, with the machine-readable `code` and the field at fault as extensions."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if error.param is not None:
        document["param"] = error.param
    return orjson.dumps(document)


def for_path(path: str, error: StokerError) -> tuple[bytes, bytes]:
    """The body and content type of an error on a path."""
    return (openai_error(error), JSON_TYPE) if path.startswith("/v1") else (problem(error), PROBLEM_TYPE)


def retry_headers(error: StokerError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` in whole seconds (RFC 9110), when the error knows it; else that trying again is pointless.

    OpenAI's clients try every 5xx again by themselves, unless `x-should-retry` says otherwise.
    """
    if error.retry_after is None:
        final = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status == HTTPStatus.TOO_MANY_REQUESTS
        return [(b"x-should-retry", b"false")] if final else []
    return [(b"retry-after", str(max(1, math.ceil(error.retry_after))).encode())]
