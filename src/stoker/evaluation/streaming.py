"""Reads a streamed chat answer, as OpenAI's servers write them, piece by piece. Nothing here waits for a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import orjson

LONGEST_EVENT: Final = 4 * 2**20
LONGEST_ANSWER: Final = 2**20
"""Characters."""
LONGEST_ERROR: Final = 300


class TooLong(Exception):
    """More came than any answer needs."""


class Stream(Protocol):
    """Where bytes come from."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """Pieces as they come."""
        ...


async def events(stream: Stream) -> AsyncIterator[bytes]:
    """The `data:` fields of server-sent events, one a line; raises TooLong for an event without end."""
    rest = b""
    async for piece in stream.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_EVENT:
            raise TooLong("the server sent an event without end")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


class Heard:
    """What has come of one answer; `accept` takes events in order, at instants of `time.perf_counter()`."""

    __slots__ = ("_length", "_pieces", "began", "done", "error", "finish_reason", "first", "tokens")

    def __init__(self, began: float) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self.began = began
        self.first: float | None = None
        self.tokens: int | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.error: str | None = None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._pieces)

    def accept(self, data: bytes, now: float) -> None:
        """Take in one event; raises TooLong."""
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.error = "the server sent an event that is not JSON"
            return
        if not isinstance(event, dict):
            self.error = "the server sent an event that is no object"
            return
        if event.get("error"):
            self.error = f"the answer broke off: {_message(event)}"
            return
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.tokens = usage["completion_tokens"]
        choices = event.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            self._choice(choices[0], now)

    def trouble(self) -> str | None:
        """Why this is no whole answer; None when it is."""
        if self.error is None and not self.done and self.finish_reason is None:
            return "the answer broke off" if self.first is not None else "the server closed without an answer"
        return self.error

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            piece = delta.get("content")
            if piece or delta.get("reasoning_content") or delta.get("tool_calls"):
                self.first = now if self.first is None else self.first
            if isinstance(piece, str):
                self._pieces.append(piece)
                self._length += len(piece)
        if self._length > LONGEST_ANSWER:
            raise TooLong(f"the answer is longer than {LONGEST_ANSWER:,} characters")
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason = reason[:40]


def refusal_in(status: int, raw: bytes) -> str:
    """An error response in words, from OpenAI's envelope, an RFC 9457 problem, or as it is; bounded."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = raw[:LONGEST_ERROR].decode("utf-8", "replace").strip()
    said = _message(body) if isinstance(body, dict) else str(body)
    return f"HTTP {status}: {said}"[:LONGEST_ERROR] if said else f"HTTP {status}"


def _message(body: dict[str, Any]) -> str:
    error = body.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("code")
    return str(error or body.get("detail") or body.get("message") or "no reason given")[:LONGEST_ERROR]
