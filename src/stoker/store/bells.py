"""Who waits for news of what, within one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator

WORK = "work"
"""News that a claim may find a job, or must look again when the next one is due."""
CALLBACKS = "callbacks"
"""News that a callback is due."""


class Bell:
    """Rung for one who waits; a ring before the waiting is not lost."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """There is news."""
        self._event.set()

    def hush(self) -> None:
        """Forget the news so far: call it before looking, so that what comes while one looks rings again."""
        self._event.clear()

    async def heard(self, timeout_s: float) -> bool:
        """Whether there was news within `timeout_s` seconds."""
        if self._event.is_set():
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._event.wait()
        return self._event.is_set()


class Bells:
    """Bells by topic. Nothing here waits; call it from the event loop only."""

    def __init__(self) -> None:
        self._bells: dict[str, set[Bell]] = {}

    @property
    def topics(self) -> list[str]:
        """What somebody waits for news of."""
        return list(self._bells)

    def watched(self, topic: str) -> bool:
        """Whether somebody waits for news of it."""
        return topic in self._bells

    @contextlib.contextmanager
    def watch(self, topic: str) -> Iterator[Bell]:
        """A bell that is rung at news of the topic, for as long as the block lasts."""
        bell = Bell()
        self._bells.setdefault(topic, set()).add(bell)
        try:
            yield bell
        finally:
            others = self._bells[topic]
            others.discard(bell)
            if not others:
                del self._bells[topic]

    def ring(self, topics: Iterable[str]) -> None:
        """There is news of these."""
        for topic in topics:
            for bell in self._bells.get(topic, ()):
                bell.ring()

    def ring_all(self) -> None:
        """There may be news of anything."""
        self.ring(list(self._bells))
