"""The job log in Redis (or Valkey), which replicas share; each change is one script.

Durable as Redis is told to be: with `appendonly yes` and `appendfsync always` what is acknowledged has reached the
disk; with `everysec` a power failure may lose the last second, and without an append-only file a restart loses all.
Jobs have no lifetime of their own in Redis and are removed by `collect`, so that `maxmemory-policy volatile-lru` (or
`noeviction`) never evicts one; `allkeys-lru` does. Idempotency keys and events have lifetimes.

Times go by Redis's own clock, by which all replicas agree however far theirs are apart; only `not_before` and
`expires_at` are as whoever submitted them read the time. All names carry one hash tag, so that they lie together.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from stoker.store.bells import CALLBACKS, WORK, Bells
from stoker.store.handover import Handover
from stoker.store.jobs import (
    ENDED,
    EVENT_OCTETS_KEPT,
    EVENTS_KEPT,
    POSITIONS,
    STATES,
    WORKER_LOST,
    Beat,
    Claimed,
    Collected,
    EndState,
    Event,
    Held,
    Idempotency,
    IdempotencyMismatch,
    Job,
    NewJob,
    Page,
    QueueFull,
    QueueLimits,
    Retried,
    State,
    Submission,
    as_stored,
    check_claim,
    check_list,
    check_submission,
    decode_cursor,
    encode_cursor,
)
from stoker.store.protocols import MICRO, StoreError
from stoker.store.redis import RedisServer
from stoker.store.redis_ears import RedisEars
from stoker.store.redis_rows import SUMMARY, Argument, beating, micro, paired, submission, to_job, to_summary

_MAX_REMOVED: Final = 200
_EVENTS_MS: Final = 3_600_000
_READ_EVENTS: Final = 256
_RECHECK_S: Final = 15.0
_SCRIPTS: Final = ("submit", "claim", "beat", "move", "collect", "callbacks", "append")


class RedisJobs:
    """A `JobLog`; use it from one event loop.

    Args:
        server: whose time limit, in seconds, holds for every operation; closed by whoever opened it.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._base = f"{server.prefix}{{jobs}}:"
        library = _text("job_log")
        self._scripts = {name: server.client.register_script(library + _text(f"job_{name}")) for name in _SCRIPTS}
        self._bells = Bells()
        pool = server.client.connection_pool
        # Beside the server's connections: one that listens must not take the place of one that asks.
        self._ear = ConnectionPool(connection_class=pool.connection_class, **pool.connection_kwargs)
        listen: Callable[[], Any] = Redis(connection_pool=self._ear).pubsub
        self._ears = RedisEars(self._bells, f"{self._base}n:", listen, (RedisError, OSError), server.timeout)
        self._handover = Handover(self.release)

    @property
    def description(self) -> str:
        """Where the log is kept."""
        return f"Redis at {self._server.name}"

    async def submit(
        self,
        jobs: Sequence[NewJob],
        *,
        limits: QueueLimits,
        idempotency: Idempotency | None = None,
        now: float | None = None,
    ) -> Submission:
        """Queue all jobs or none."""
        check_submission(jobs)
        word, *rest = await self._run("submit", now, submission(jobs, limits, idempotency))
        if word == b"mismatch":
            raise IdempotencyMismatch
        if word == b"tenant":
            raise QueueFull("tenant", limits.per_tenant)
        if word == b"total":
            raise QueueFull("total", limits.total)
        if word == b"replayed":
            return Submission(tuple(await self._whole([job_id.decode() for job_id in rest])), replayed=True)
        created, known = int(rest[0]) / MICRO, {job_id.decode() for job_id in rest[1:]}
        stored = {job.id: job for job in await self._whole(known)} if known else {}
        return Submission(tuple(stored.get(job.id) or as_stored(job, created) for job in jobs))

    async def claim(self, worker: str, lease_s: float, most: int, now: float | None = None) -> list[Claimed]:
        """Start up to `most` due jobs."""
        check_claim(most)
        return await self._handover.hand(self._claim(worker, lease_s, most, now))

    async def heartbeat(self, beats: Sequence[Beat], lease_s: float, now: float | None = None) -> list[Held]:
        """Renew leases."""
        answers: list[bytes] = await self._run("beat", now, [micro(lease_s), *beating(beats)])
        return [answer.decode() for answer in answers]  # type: ignore[misc]  # only those words

    async def finish(
        self,
        job_id: str,
        token: str,
        state: EndState,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
        now: float | None = None,
    ) -> bool:
        """Record the end of a running job."""
        outcome: list[Argument] = [state]
        for name, value in (("result", result), ("error", error)):
            outcome += [] if value is None else [name, value]
        return bool(await self._move("finish", now, job_id, token, *outcome) == b"ok")

    async def retry(
        self, job_id: str, token: str, error: bytes, not_before: float | None = None, now: float | None = None
    ) -> Retried:
        """Queue a job whose attempt failed again, or end it."""
        answer = await self._move("retry", now, job_id, token, error, micro(not_before or 0))
        return answer.decode()  # type: ignore[no-any-return]  # only those words

    async def release(self, job_id: str, token: str, now: float | None = None) -> bool:
        """Give a job back."""
        return bool(await self._move("release", now, job_id, token) == b"ok")

    async def cancel(self, job_id: str, now: float | None = None) -> State | None:
        """Cancel a queued job, ask a running one to end."""
        answer = await self._move("cancel", now, job_id, "")
        return None if answer is None else answer.decode()

    async def get(self, job_id: str) -> Job | None:
        """The whole job."""
        return next(iter(await self._whole([job_id])), None)

    async def position(self, job_id: str) -> int | None:
        """How many queued jobs are due before it."""
        name = f"{self._base}q"
        rank = await self._server.ask("look", lambda: self._server.client.zrank(name, job_id))
        return rank if isinstance(rank, int) and rank <= POSITIONS else None

    async def page(
        self,
        *,
        tenant: str | None = None,
        states: Sequence[State] = STATES,
        batch: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
        bodies: bool = False,
    ) -> Page:
        """Jobs by id; one that moves meanwhile may be left out."""
        check_list(limit)
        ids = await self._ids(self._indexes(tenant, states, batch), cursor, limit + 1, oldest_first)
        more = len(ids) > limit
        ids = ids[:limit]
        found = await (self._whole(ids) if bodies else self._summaries(ids))
        if any(tenant not in {None, job.tenant} for job in found):  # another tenant's batch
            return Page((), None)
        jobs = tuple(job for job in found if job.state in states)
        return Page(jobs, encode_cursor(ids[-1]) if more else None)

    async def counts(self, tenant: str | None = None) -> Mapping[State, int]:
        """Jobs by state."""
        return await self._counts(self._indexes(tenant, STATES, None))

    async def batch_counts(self, batch: str) -> Mapping[State, int]:
        """A batch's jobs by state."""
        return await self._counts(self._indexes(None, STATES, batch))

    async def oldest_due_s(self, now: float | None = None) -> float:
        """For how long the oldest due job has waited."""
        due, theirs = await self._first(("q",))
        return 0.0 if due is None else max(0.0, (theirs if now is None else now) - due)

    async def wait_work(self, timeout_s: float) -> bool:
        """Wait until `claim` may find a job."""
        return await self._wait_due(WORK, ("q", "l"), timeout_s)

    async def wait_callbacks(self, timeout_s: float) -> bool:
        """Wait until a callback may be due."""
        return await self._wait_due(CALLBACKS, ("c",), timeout_s)

    async def wait_ended(self, job_id: str, timeout_s: float) -> Job | None:
        """The job once it has ended."""
        limit = asyncio.get_running_loop().time() + timeout_s
        name = f"{self._base}j:{job_id}"
        async with self._ears.watch(job_id) as bell:
            while True:
                bell.hush()
                state = await self._server.ask("look", lambda: self._server.client.hget(name, "state"))
                if _over(state) or not await bell.heard(limit - asyncio.get_running_loop().time()):
                    return await self.get(job_id)

    async def append(self, job_id: str, token: str, data: Sequence[bytes]) -> bool:
        """Tell those who follow a running job."""
        bounds = [EVENTS_KEPT, EVENT_OCTETS_KEPT, _EVENTS_MS]
        return bool(await self._run("append", None, [job_id, token, *bounds, *data]))

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events of a job, whichever replica runs it."""
        async with self._ears.watch(job_id) as bell:
            while True:
                bell.hush()
                over, events = await self._server.ask("follow", lambda: self._events(job_id, after))  # noqa: B023 - awaited here
                for event in events:
                    after = event.number
                    yield event
                if len(events) == _READ_EVENTS:
                    continue
                if over:
                    return
                await bell.heard(_RECHECK_S)

    async def due_callbacks(self, lease_s: float, most: int, now: float | None = None) -> list[Job]:
        """Ended jobs whose callback is due."""
        return [to_job(paired(flat)) for flat in await self._run("callbacks", now, ["due", micro(lease_s), most])]

    async def settle_callback(self, job_id: str, deliveries: bytes, again_at: float | None = None) -> None:
        """Note what became of a delivery."""
        at = "" if again_at is None else micro(again_at)
        await self._run("callbacks", None, ["settle", job_id, deliveries, at])

    async def collect(self, now: float | None = None) -> Collected:
        """Remove what is past its time."""
        removed, expired, taken_back, more = await self._run("collect", now, [WORKER_LOST, _MAX_REMOVED])
        return Collected(removed, expired, taken_back, bool(more))

    async def ping(self) -> None:
        """Raise StoreError unless Redis takes a write."""
        await self._server.probe()

    async def warnings(self) -> list[str]:
        """What in Redis's settings endangers jobs; nothing where it does not tell them."""
        try:
            told: dict[str, Any] = await self._server.ask("tell its settings", self._server.client.info)
        except StoreError:
            return []
        return [f"Redis at {self._server.name} {text}" for text in _dangers(told)]

    async def close(self) -> None:
        """Hear no more; the server's connections are closed by whoever opened it."""
        await self._handover.close()
        await self._ears.close()
        await self._ear.disconnect()
        self._bells.ring_all()

    async def _claim(self, worker: str, lease_s: float, most: int, now: float | None) -> list[Claimed]:
        token = secrets.token_hex(8)
        more = True
        rows: list[list[bytes]] = []
        while more and not rows:
            more, *rows = await self._run("claim", now, [worker, token, micro(lease_s), most, WORKER_LOST])
        return [Claimed(to_job(paired(flat)), token) for flat in rows]

    async def _run(self, script: str, now: float | None, arguments: Sequence[Argument]) -> Any:
        told = ["" if now is None else micro(now), *arguments]
        return await self._server.ask(f"{script} jobs", lambda: self._scripts[script]([self._base], told))

    async def _move(self, what: str, now: float | None, job_id: str, token: str, *rest: Argument) -> Any:
        return await self._run("move", now, [what, job_id, token, *rest])

    async def _pipe(self, operation: str, fill: Callable[[Any], object]) -> list[Any]:
        """What several commands answer, sent at once."""

        async def answers() -> list[Any]:
            async with self._server.client.pipeline(transaction=False) as pipe:
                fill(pipe)
                return await pipe.execute()

        return await self._server.ask(operation, answers)

    async def _whole(self, ids: Sequence[str] | set[str]) -> list[Job]:
        rows = await self._pipe("get jobs", lambda pipe: [pipe.hgetall(f"{self._base}j:{job_id}") for job_id in ids])
        return [to_job(row) for row in rows if row]

    async def _summaries(self, ids: Sequence[str]) -> list[Job]:
        rows = await self._pipe(
            "list jobs", lambda pipe: [pipe.hmget(f"{self._base}j:{job_id}", SUMMARY) for job_id in ids]
        )
        return [job for row in rows if (job := to_summary(row)) is not None]

    def _indexes(self, tenant: str | None, states: Sequence[State], batch: str | None) -> list[str]:
        states = list(dict.fromkeys(states))
        if batch is not None:
            return [f"{self._base}b:{batch}:{state}" for state in states]
        return [f"{self._base}s:{state}" if tenant is None else f"{self._base}s:{state}:{tenant}" for state in states]

    async def _ids(self, indexes: Sequence[str], cursor: str | None, limit: int, oldest_first: bool) -> list[str]:
        start = "" if cursor is None else f"({decode_cursor(cursor)}"

        def fill(pipe: Any) -> None:
            for index in indexes:
                if oldest_first:
                    pipe.zrangebylex(index, start or "-", "+", 0, limit)
                else:
                    pipe.zrevrangebylex(index, start or "+", "-", 0, limit)

        ids = await self._pipe("list jobs", fill) if indexes else []
        return [job_id.decode() for job_id in islice(merge(*ids, reverse=not oldest_first), limit)]

    async def _counts(self, indexes: Sequence[str]) -> dict[State, int]:
        found = await self._pipe("count jobs", lambda pipe: [pipe.zcard(index) for index in indexes])
        return dict(zip(STATES, found, strict=True))

    async def _first(self, names: Sequence[str]) -> tuple[float | None, float]:
        """The lowest time in any of these indexes, and Redis's own time, in seconds."""
        *firsts, (seconds, rest) = await self._pipe(
            "look",
            lambda pipe: [*(pipe.zrange(f"{self._base}{name}", 0, 0, withscores=True) for name in names), pipe.time()],
        )
        return min((first[0][1] / MICRO for first in firsts if first), default=None), seconds + rest / MICRO

    async def _wait_due(self, topic: str, names: Sequence[str], timeout_s: float) -> bool:
        limit = asyncio.get_running_loop().time() + timeout_s
        async with self._ears.watch(topic) as bell:
            while True:
                bell.hush()
                at, now = await self._first(names)
                if at is not None and at <= now:
                    return True
                left = limit - asyncio.get_running_loop().time()
                if left <= 0:
                    return False
                await bell.heard(left if at is None else min(left, at - now))

    async def _events(self, job_id: str, after: int) -> tuple[bool, list[Event]]:
        async with self._server.client.pipeline(transaction=False) as pipe:
            pipe.hget(f"{self._base}j:{job_id}", "state")  # first: what is said before the end is read after this
            pipe.xrange(f"{self._base}e:{job_id}", f"{after + 1}-0", "+", _READ_EVENTS)
            state, entries = await pipe.execute()
        return _over(state), [_event(name, fields) for name, fields in entries]


def _over(state: Any) -> bool:
    """Whether a job has ended, or is not there."""
    return state is None or state.decode() in ENDED


def _dangers(info: Mapping[str, Any]) -> list[str]:
    dangers = []
    if not info.get("aof_enabled", 1):
        dangers.append("keeps no append-only file: a restart loses every job; set `appendonly yes`")
    if info.get("maxmemory") and str(info.get("maxmemory_policy", "")).startswith("allkeys"):
        dangers.append("may evict jobs when its memory is full; set `maxmemory-policy volatile-lru`")
    return dangers


def _event(name: bytes, fields: Mapping[bytes, bytes]) -> Event:
    return Event(int(name.partition(b"-")[0]), int(fields[b"a"]), fields[b"d"])


def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")
