"""Generations that several callers follow at once: one flight for each key, live for all of them.

A flight is a task of its own, so that no caller carries it: the first one may leave without cutting the others off, and
a late one hears what has been said so far before it follows. The last one to leave ends the generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from stoker.errors import DeadlineExceeded, StokerError
from stoker.types import Chunk

Source = Callable[[], AsyncGenerator[Chunk]]
Landed = Callable[[Sequence[Chunk]], Awaitable[None]]


class Flight:
    """One generation and its followers.

    Args:
        source: makes the generation.
        landed: told of all chunks when it has come to its end; until it returns others may still join.
        forgotten: called when nobody may join any more.
    """

    def __init__(self, source: Source, landed: Landed, forgotten: Callable[[], None]) -> None:
        self.followers = 0
        self.said: list[Chunk] = []
        self._over = False
        self._error: StokerError | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self.task = asyncio.create_task(self._fly(source, landed))
        self._forgotten = forgotten

    @property
    def open(self) -> bool:
        """Whether another follower may still join: it flies, or ended well."""
        return self._error is None and not self.task.cancelled() and not self.task.cancelling()

    async def _fly(self, source: Source, landed: Landed) -> None:
        try:
            await self._collect(source)
            if self._error is None:
                await landed(self.said)
        finally:
            self._forgotten()

    async def _collect(self, source: Source) -> None:
        try:
            async with aclosing(source()) as chunks:
                async for chunk in chunks:
                    self.said.append(chunk)
                    self._wake()
        except StokerError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - a defect reaches every follower, as it would have reached a caller
            self._error = StokerError(f"an unexpected error: {error!r}")
        finally:
            self._over = True
            self._wake()

    async def follow(self, deadline: float) -> AsyncGenerator[Chunk]:
        """Everything from the beginning, live; raises what the generation raised, or DeadlineExceeded at `deadline`."""
        self.followers += 1
        try:
            number = 0
            while True:
                if number < len(self.said):
                    number += 1
                    yield self.said[number - 1]
                elif self._over:
                    break
                else:
                    await self._news(deadline)
            if self._error is not None:
                raise self._error
        finally:
            self.followers -= 1
            if not self.followers and not self._over:
                self.task.cancel()
                await asyncio.wait({self.task})  # its slot is free before the last one is gone

    async def _news(self, deadline: float) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(news)
        # `loop.time` is `time.monotonic`, by which deadlines go; a bare timer costs less than a timeout scope.
        timer = asyncio.get_running_loop().call_at(deadline, _expire, news)
        try:
            await news
        finally:
            timer.cancel()
            self._waiting.discard(news)

    def _wake(self) -> None:
        for news in self._waiting:
            if not news.done():
                news.set_result(None)


def _expire(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_exception(DeadlineExceeded("the deadline passed while the answer was being generated"))


class Flights:
    """All flights of this process, by key; as many as there are generations, which the engines' lines bound."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: str) -> Flight | None:
        """The flight of a key that can be joined."""
        flight = self._flights.get(key)
        return flight if flight is not None and flight.open else None

    def start(self, key: str, source: Source, landed: Landed) -> Flight:
        """A new flight; others find it until it has ended."""
        flight = Flight(source, landed, lambda: self._forget(key, flight))
        self._flights[key] = flight
        return flight

    def _forget(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
