"""What an engine's child says: passed on to the log with the severity that it gave, its end kept for obituaries.

llama.cpp's lines begin with a time and a letter: `0.00.001.976 W srv  init: ...` (its common/log.cpp).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable

import structlog

LOG_TAIL_LINES = 40
LOG_LINE_BYTES = 2048
LOUD_LINES_A_SECOND = 20
"""Lines above debug level that are passed on in one second; an engine in trouble can say thousands."""

_LEVEL = re.compile(r"[\d.]+ ([DIWE]) ")
_LEVELS = {"D": logging.DEBUG, "I": logging.DEBUG, "W": logging.WARNING, "E": logging.ERROR}
_KNOWN = (
    "no API key is set",  # the socket is private
    "embeddings required but",  # every model may be asked for embeddings
    "model default pooling_type",  # the plan chose another
    "requires --cache-ram",
)
"""Warnings about what is meant to be so."""


def level_of(line: str) -> int:
    """The severity of a line, as the standard library counts; debug when it says none, or what it warns of is meant."""
    found = _LEVEL.match(line)
    if found is None or any(known in line for known in _KNOWN):
        return logging.DEBUG
    return _LEVELS[found[1]]


class Output:
    """One child's output.

    Args:
        log: names the engine in what it writes.
        clock: seconds, never going backwards.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._second = 0.0
        self._loud = 0

    async def follow(self, stream: asyncio.StreamReader | None) -> None:
        """Take in every line until the stream ends."""
        if stream is None:
            return
        rest = b""
        while data := await stream.read(16384):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.note(line)
            rest = rest[-LOG_LINE_BYTES:]
        if rest:
            self.note(rest)

    def note(self, line: bytes) -> None:
        """Take in one line."""
        text = line[:LOG_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if text:
            self._tail.append(text)
            self._log.log(self._bounded(level_of(text)), "engine output", line=text)

    def latest(self, lines: int) -> list[str]:
        """The last few lines."""
        return list(self._tail)[-lines:]

    def last_words(self) -> str:
        """The last line that tells of an error, else the last one."""
        said = next((line for line in reversed(self._tail) if "error" in line.lower()), None)
        return said or (self._tail[-1] if self._tail else "it said nothing")

    def _bounded(self, level: int) -> int:
        """The level, lowered to debug when there was too much of it in this second."""
        if level <= logging.DEBUG:
            return level
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._loud = now, 0
        self._loud += 1
        return level if self._loud <= LOUD_LINES_A_SECOND else logging.DEBUG
