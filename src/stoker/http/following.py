"""A job as server-sent events: how it stands, what it says, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson

from stoker.admission.auth import Caller
from stoker.errors import StokerError
from stoker.http.envelope import problem
from stoker.jobs.desk import JobDesk
from stoker.jobs.document import job_document
from stoker.store.jobs import Event, Job

LOOK_S: Final = 2.0
"""How often a job that says nothing is looked at."""
STILL_HERE: Final = b": no news\n\n"
"""A comment, for proxies that close connections on which nothing is said."""


async def told(desk: JobDesk, job: Job, caller: Caller, after: int) -> AsyncGenerator[bytes]:
    """Events `progress` when the job's state, position or attempt changed; `token` with what the answer's stream would
    hold, numbered by `id`; `end` with the whole job, after which nothing comes.

    Args:
        desk: where the job is.
        job: as it stands.
        caller: who listens.
        after: the number of the last event that this one has had.
    """
    said = _Progress(desk)
    listening = _Listening(desk, job.id, after)
    try:
        yield await said.of(job)
        while not listening.over:
            event = await listening.next(LOOK_S)
            if event is None or event.attempt != said.attempt:
                news = await said.of(await desk.get(job.id, caller))
                if news or not listening.over:
                    yield news or STILL_HERE
            if event is not None:
                said.attempt = event.attempt
                yield _event("token", event.data, event.number)
        yield _event("end", orjson.dumps(job_document(await desk.get(job.id, caller))))
    except StokerError as error:
        yield _event("error", problem(error))
    finally:
        await listening.close()


class _Progress:
    """Tells how a job stands, once for each change."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk
        self._last: dict[str, Any] = {}
        self.attempt = 0

    async def of(self, job: Job) -> bytes:
        """The event, or nothing when there is no news."""
        now = {"state": job.state, "position": await self._desk.position(job), "attempts": job.attempts}
        if now == self._last:
            return b""
        self._last = now
        self.attempt = job.attempts
        return _event("progress", orjson.dumps({"id": job.id, **now}))


class _Listening:
    """A job's events, one by one and with patience; a wait that was too long loses none."""

    def __init__(self, desk: JobDesk, job_id: str, after: int) -> None:
        self._events = desk.follow(job_id, after)
        self._next: asyncio.Future[Event] | None = None
        self.over = False

    async def next(self, patience_s: float) -> Event | None:
        """The next event; None when none comes in time, or none any more."""
        if self.over:
            return None
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._events))
        done, _ = await asyncio.wait({self._next}, timeout=patience_s)
        if not done:
            return None
        ready, self._next = self._next, None
        try:
            return ready.result()
        except StopAsyncIteration:
            self.over = True
            return None

    async def close(self) -> None:
        """Listen no more."""
        if self._next is not None:
            self._next.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, StokerError):
                await self._next
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()


def _event(name: str, data: bytes, number: int | None = None) -> bytes:
    numbered = b"" if number is None else b"id: %d\n" % number
    return numbered + b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
