"""Values and counters in Redis (or Valkey), which replicas share. The only module that speaks to it.

Every operation ends within the time limit, connecting included, or raises StoreError. Errors name the server by host
and port, or socket, and never hold the URL's password. Redis 6 or newer, or Valkey. Counters carry one hash tag, so
that on a cluster a taking's keys lie together. A full Redis should evict by `volatile-lru`: it spares jobs, which
have no lifetime while they wait, and counters in use; an evicted counter is a forgotten one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stoker.errors import ConfigError
from stoker.store.protocols import HOLD_WAIT_S, MICRO, Claim, Hold, Outcome, Standing, StoreError, Window, corrections

CONNECTIONS = 32
"""Connections at most; more operations than that at once wait for one another."""
_GRACE_S = 0.005
_SCAN = 1000
_RENEWALS_EACH = 500  # holds that one script renews, so that it stays short
_PROBE_S = 60

T = TypeVar("T")


class RedisServer:
    """One Redis, its connections and its time limit.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with what redis-py takes in the query.
        prefix: what all names begin with.
        timeout: seconds for an operation, > 0.

    Raises:
        ConfigError: when the URL cannot be understood.
    """

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        self.prefix = prefix
        self.timeout = timeout
        try:
            self.name = _server_name(url)
            # One attempt: the caller has better to do than to wait for a second. RESP2 spares a handshake.
            pool = ConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                socket_timeout=None,
                socket_connect_timeout=None,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
            )
        except (ValueError, TypeError):
            raise ConfigError(
                "store.redis: not a URL of Redis; write redis://host:port/0, rediss://host:port/0 or unix:///path",
                param="store.redis",
            ) from None  # what urllib says may quote the password
        self._secret: str | None = pool.connection_kwargs.get("password")
        self.client: Redis = Redis.from_pool(pool)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._failures = 0

    async def ask(self, operation: str, answer: Callable[[], Awaitable[T]]) -> T:
        """The answer, within the time limit; raises StoreError."""
        seen = self._failures
        async with self._turns:
            if self._failures != seen:  # it failed while this one stood in line: not a second wait
                raise StoreError("down", f"Redis at {self.name} failed a moment ago")
            try:
                async with _patience(self.timeout):
                    return await answer()
            except (TimeoutError, RedisTimeoutError):
                raise self._failed(operation, "timeout", f"no answer within {self.timeout * 1000:g} ms") from None
            except (RedisConnectionError, OSError) as error:
                raise self._failed(operation, "connection", self._clean(error)) from None
            except RedisError as error:
                raise self._failed(operation, "response", self._clean(error)) from None

    async def probe(self) -> None:
        """Raise StoreError unless Redis takes a write, which one that is read-only or full does not."""
        await self.ask("probe", lambda: self.client.set(f"{self.prefix}probe", b"1", ex=_PROBE_S))

    async def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(RedisError, OSError):
            await self.client.aclose()
            await self.client.connection_pool.disconnect()

    def _failed(self, operation: str, reason: str, what: str) -> StoreError:
        self._failures += 1
        return StoreError(reason, f"Redis at {self.name} failed to {operation}: {what}")

    def _clean(self, error: Exception) -> str:
        """What the server said, without the password: it quotes commands that it does not know, logging in included."""
        text = str(error)[:300] or type(error).__name__
        return text.replace(self._secret, "***") if self._secret else text


class RedisKeyValue:
    """Values in Redis; how much memory they may take is Redis's own setting (`maxmemory`)."""

    entries = 0
    octets = 0

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._prefix = f"{server.prefix}kv:"

    async def get(self, key: str) -> bytes | None:
        """The value, or None; raises StoreError."""
        found = await self._server.ask("get", lambda: self._server.client.get(self._prefix + key))
        return found.encode() if isinstance(found, str) else found  # a str only in the types: nothing is decoded

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for `ttl` seconds, at least a millisecond; raises StoreError."""
        milliseconds = max(1, int(ttl * 1000))
        await self._server.ask("set", lambda: self._server.client.set(self._prefix + key, value, px=milliseconds))

    async def delete(self, key: str) -> None:
        """Forget a value, if it is there; raises StoreError."""
        await self._server.ask("delete", lambda: self._server.client.unlink(self._prefix + key))

    async def delete_prefix(self, prefix: str) -> int:
        """Forget all whose key begins with `prefix`; walks all of Redis, each step within the time limit."""
        client, pattern = self._server.client, re.sub(r"([*?\[\]\\^-])", r"\\\1", self._prefix + prefix) + "*"
        cursor, deleted = 0, 0
        while True:
            cursor, keys = await self._server.ask("scan", partial(client.scan, cursor, match=pattern, count=_SCAN))
            if keys:
                deleted += await self._server.ask("delete", partial(client.unlink, *keys))
            if not int(cursor):
                return deleted

    async def close(self) -> None:
        """The server's connections are closed by whoever opened it."""


class RedisCounters:
    """Counts in Redis, each taking one script, by Redis's own clock.

    A background task renews live holds, so that those of a killed replica, and only those, run out after their `ttl_s`.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._prefix = f"{server.prefix}{{limits}}:"
        self._take = server.client.register_script(_script("take"))
        self._settle = server.client.register_script(_script("settle"))
        self._renew = server.client.register_script(_script("renew"))
        self._held: dict[tuple[str, str], Hold] = {}
        self._renewer: asyncio.Task[None] | None = None

    async def take(self, claims: Sequence[Claim], now: float | None = None) -> Outcome:
        """Grant all claims or none; raises StoreError."""
        arguments: list[str | int] = ["" if now is None else round(now * MICRO)]
        for claim in claims:
            arguments += _arguments(claim)
        reply: list[int] = await self._server.ask("take", lambda: self._take(self._keys(claims), arguments))
        granted, stamp = bool(reply[0]), reply[1]
        figures = zip(claims, reply[2::3], reply[3::3], reply[4::3], strict=True)
        standings = tuple(_standing(claim, granted, *figure) for claim, *figure in figures)
        if granted:
            self._keep([claim for claim in claims if isinstance(claim, Hold)])
        return Outcome(granted, tuple(claims), standings, stamp)

    async def settle(self, taken: Outcome, amounts: Mapping[str, int], now: float | None = None) -> None:  # noqa: ARG002
        """Correct windows of a taking; `now` does not matter here. Raises StoreError."""
        changes = corrections(taken, amounts)
        if changes and taken.stamp is not None:
            keys = self._keys([window for window, _ in changes])
            arguments = [taken.stamp, *(difference for _, difference in changes)]
            await self._server.ask("settle", lambda: self._settle(keys, arguments))

    async def release(self, taken: Outcome) -> None:
        """Give back the holds of a taking. If that fails with StoreError, they run out by themselves."""
        holds = [claim for claim in taken.claims if isinstance(claim, Hold)]
        self.abandon(taken)  # first: what is no longer renewed runs out in any case
        for hold in holds:
            await self._server.ask("release", partial(self._server.client.zrem, self._prefix + hold.key, hold.id))

    def abandon(self, taken: Outcome) -> None:
        """Renew its holds no more."""
        for claim in taken.claims:
            self._held.pop((claim.key, claim.id) if isinstance(claim, Hold) else ("", ""), None)

    async def close(self) -> None:
        """End the renewals; the server's connections are closed by whoever opened it."""
        self._held.clear()
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.gather(self._renewer, return_exceptions=True)
            self._renewer = None

    def _keys(self, claims: Iterable[Claim]) -> list[str]:
        return [self._prefix + claim.key for claim in claims]

    def _keep(self, holds: Sequence[Hold]) -> None:
        self._held.update({(hold.key, hold.id): hold for hold in holds})
        if holds and (self._renewer is None or self._renewer.done()):
            self._renewer = asyncio.create_task(self._renewals(), name="renew-holds")

    async def _renewals(self) -> None:
        while self._held:
            await asyncio.sleep(min(hold.ttl_s for hold in self._held.values()) / 3)
            with contextlib.suppress(StoreError):  # whoever takes next notices and tells
                await self._renew_all()

    async def _renew_all(self) -> None:
        holds = list(self._held.values())
        for start in range(0, len(holds), _RENEWALS_EACH):
            # Those released while the ones before were renewed must not come back.
            living = [hold for hold in holds[start : start + _RENEWALS_EACH] if (hold.key, hold.id) in self._held]
            pairs: list[str | int] = []
            for hold in living:
                pairs += [round(hold.ttl_s * MICRO), hold.id]
            await self._server.ask("renew", partial(self._renew, self._keys(living), pairs))


@contextlib.asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after `seconds`, and a moment in which the event loop reads what has come.

    A process that got no CPU for that long finds its timer run out and the answer waiting, both at once: then it was
    late, not the server.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + _GRACE_S))
        try:
            yield
        finally:
            timer.cancel()


def _arguments(claim: Claim) -> list[str | int]:
    if isinstance(claim, Window):
        return ["w", claim.limit, round(claim.window_s * MICRO), claim.amount]
    return ["h", claim.limit, round(claim.ttl_s * MICRO), claim.id]


def _standing(claim: Claim, granted: bool, remaining: int, reset: int, wait: int) -> Standing:
    if isinstance(claim, Hold):
        return Standing(remaining, 0.0, 0.0 if granted or remaining else HOLD_WAIT_S)
    return Standing(remaining, reset / MICRO, inf if wait < 0 else wait / MICRO)


def _script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")


def _server_name(url: str) -> str:
    """Host and port, or the socket's path."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = parts.hostname or "localhost"
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or 6379}"
