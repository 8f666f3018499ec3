"""Hears what the job log's scripts publish in Redis, and rings this process's bells.

One connection for all topics. While it is broken, everybody is rung once at each attempt to mend it, and looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

from stoker.store.bells import CALLBACKS, WORK, Bell, Bells

RETRY_S: Final = 1.0
_PING_S: Final = 5.0
_ALWAYS: Final = (WORK, CALLBACKS)


class PubSub(Protocol):
    """What is used of redis-py's."""

    async def subscribe(self, *channels: str) -> Any: ...

    async def unsubscribe(self, *channels: str) -> Any: ...

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None: ...  # noqa: ASYNC109 - theirs

    async def ping(self) -> Any: ...

    async def aclose(self) -> None: ...


class RedisEars:
    """Subscriptions for those who wait in this process.

    Args:
        bells: what is rung.
        prefix: what the names of channels begin with, before the topic.
        connect: makes a connection that subscribes.
        failures: what that raises when the server is away.
        patience_s: seconds for the server to take a command.
    """

    def __init__(
        self,
        bells: Bells,
        prefix: str,
        connect: Callable[[], PubSub],
        failures: tuple[type[Exception], ...],
        patience_s: float,
    ) -> None:
        self._bells = bells
        self._prefix = prefix
        self._connect = connect
        self._failures = failures
        self._patience_s = patience_s
        self._pubsub: PubSub | None = None
        self._unconfirmed: Counter[str] = Counter()
        self._heard: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, topic: str) -> AsyncIterator[Bell]:
        """A bell that is rung at news of the topic, from when the block begins."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="hear-job-log")
        try:
            with self._bells.watch(topic) as bell:
                await self._begin(topic)
                yield bell
        finally:
            if topic not in _ALWAYS and not self._bells.watched(topic):
                await self._end(topic)

    async def close(self) -> None:
        """Hear no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _begin(self, topic: str) -> None:
        heard = self._heard.get(topic)
        if heard is None:
            heard = self._heard[topic] = asyncio.Event()
            if self._pubsub is not None:
                self._unconfirmed[topic] += 1
                await self._told(self._pubsub.subscribe(self._prefix + topic))
        # Without an answer it will be subscribed when the connection is mended, and all are rung then.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await heard.wait()

    async def _end(self, topic: str) -> None:
        self._heard.pop(topic, None)
        if self._pubsub is not None:
            await self._told(self._pubsub.unsubscribe(self._prefix + topic))

    async def _told(self, command: Awaitable[Any]) -> None:
        with contextlib.suppress(TimeoutError, *self._failures):  # the listener notices, and begins anew
            async with asyncio.timeout(self._patience_s):
                await command

    async def _listen(self) -> None:
        while True:
            pubsub = self._connect()
            try:
                await self._greet(pubsub)
                await self._hear(pubsub)
            except Exception:  # noqa: BLE001, S110 - whatever it was, those who wait must not wait for ever
                pass
            finally:
                self._pubsub = None
                self._unconfirmed.clear()
                for heard in self._heard.values():
                    heard.clear()
                with contextlib.suppress(*self._failures):
                    await pubsub.aclose()
            self._bells.ring_all()
            await asyncio.sleep(RETRY_S)

    async def _greet(self, pubsub: PubSub) -> None:
        topics: set[str] = set()
        async with asyncio.timeout(self._patience_s):
            while missing := {*_ALWAYS, *self._heard} - topics:  # more of them come while they are subscribed
                topics |= missing
                self._unconfirmed.update(missing)
                await pubsub.subscribe(*(self._prefix + topic for topic in missing))
        self._pubsub = pubsub
        self._bells.ring_all()

    async def _hear(self, pubsub: PubSub) -> None:
        silent = False
        while True:
            message = await pubsub.get_message(timeout=_PING_S)
            if message is None:
                if silent:
                    raise TimeoutError
                silent = True
                async with asyncio.timeout(self._patience_s):
                    await pubsub.ping()
                continue
            silent = False
            topic = (message["channel"] or b"").decode().removeprefix(self._prefix)
            if message["type"] == "message":
                self._bells.ring((topic,))
            elif message["type"] == "subscribe":
                self._confirm(topic)

    def _confirm(self, topic: str) -> None:
        self._unconfirmed[topic] -= 1
        if self._unconfirmed[topic] <= 0:
            del self._unconfirmed[topic]
            heard = self._heard.get(topic)
            if heard is not None:
                heard.set()
