"""The job log in a SQLite file: for one gateway and the commands beside it, on a local disk.

What is acknowledged has reached the disk (WAL, `synchronous=FULL`), so that neither a killed process nor a power
failure loses it. Events live in the memory of the process that runs the job. Other processes may use the file at the
same time; what they do is noticed within a second. Leases go by this host's clock: one that jumps ahead ends them
early, which costs a second execution and never a second result.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from stoker.store import sqlite_moves, sqlite_rows
from stoker.store.bells import CALLBACKS, WORK, Bell, Bells
from stoker.store.handover import Handover
from stoker.store.job_events import EventBooks
from stoker.store.jobs import (
    ENDED,
    STATES,
    Beat,
    Claimed,
    Collected,
    EndState,
    Event,
    Held,
    Idempotency,
    Job,
    NewJob,
    Page,
    QueueLimits,
    Retried,
    State,
    Submission,
    check_claim,
    check_list,
    check_submission,
    decode_cursor,
)
from stoker.store.protocols import MICRO, StoreError
from stoker.store.sqlite_claim import Claim, claim
from stoker.store.sqlite_file import SqliteFile
from stoker.store.sqlite_moves import Ending
from stoker.store.sqlite_rows import Listing, micro
from stoker.store.sqlite_submit import Submit, submit_all
from stoker.store.sqlite_writer import SqliteWriter

FILE_NAME: Final = "jobs.db"
TIMEOUT_S: Final = 5.0
_POLL_S = 1.0
_RECHECK_S = 15.0

T = TypeVar("T")


async def open_sqlite_jobs(directory: Path, timeout_s: float = TIMEOUT_S) -> SqliteJobs:
    """The job log in `jobs.db` in a directory, made if it is missing; raises StoreError.

    Args:
        directory: on a local disk.
        timeout_s: seconds within which every operation ends, > 0.
    """
    # Another process's lock is given up on in time to say so.
    log = SqliteJobs(SqliteFile(directory / FILE_NAME, timeout_s * 0.8), timeout_s)
    await log.start()
    return log


class SqliteJobs:
    """A `JobLog`; use it from the event loop in which it was made, after `start`.

    Args:
        file: the database.
        timeout: seconds within which every operation ends, > 0.
    """

    def __init__(self, file: SqliteFile, timeout: float = TIMEOUT_S) -> None:
        self._file = file
        self._bells = Bells()
        self._books = EventBooks()
        self._writer: SqliteWriter[Submit] = SqliteWriter(file, timeout, submit_all, self._rung)
        self._handover = Handover(self.release)
        self._version = 0
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the file; raises StoreError."""
        await self._writer.start()
        self._version = await self._writer.write("look", _version)

    @property
    def description(self) -> str:
        """Where the log is kept."""
        return f"SQLite in {self._file.path}"

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
        answer: Submission = await self._writer.gather("submit", Submit(jobs, limits, idempotency, _instant(now)))
        return answer

    async def claim(self, worker: str, lease_s: float, most: int, now: float | None = None) -> list[Claimed]:
        """Start up to `most` due jobs."""
        check_claim(most)
        return await self._handover.hand(self._claim(worker, lease_s, most, now))

    async def heartbeat(self, beats: Sequence[Beat], lease_s: float, now: float | None = None) -> list[Held]:
        """Renew leases."""
        lease = _instant(now) + micro(lease_s)
        return await self._writer.write("heartbeat", lambda db, _: sqlite_moves.heartbeat(db, beats, lease))

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
        ending = Ending(job_id, token, state, result, error, _instant(now))
        done = await self._writer.write("finish", partial(sqlite_moves.finish, ending=ending))
        return self._attempt_over(job_id, done, done)

    async def retry(
        self, job_id: str, token: str, error: bytes, not_before: float | None = None, now: float | None = None
    ) -> Retried:
        """Queue a job whose attempt failed again, or end it."""
        at, instant = micro(not_before or 0), _instant(now)
        state = await self._writer.write(
            "retry",
            lambda db, rings: sqlite_moves.retry(db, rings, (job_id, token), error, not_before=at, now=instant),
        )
        return self._attempt_over(job_id, state != "lost", state)

    async def release(self, job_id: str, token: str, now: float | None = None) -> bool:
        """Give a job back."""
        instant = _instant(now)
        done = await self._writer.write(
            "release", lambda db, rings: sqlite_moves.release(db, rings, (job_id, token), instant)
        )
        return self._attempt_over(job_id, done, done)

    async def cancel(self, job_id: str, now: float | None = None) -> State | None:
        """Cancel a queued job, ask a running one to end."""
        instant = _instant(now)
        return await self._writer.write("cancel", lambda db, rings: sqlite_moves.cancel(db, rings, job_id, instant))

    async def get(self, job_id: str) -> Job | None:
        """The whole job."""
        return await self._writer.read("get", lambda db: sqlite_rows.get(db, job_id))

    async def position(self, job_id: str) -> int | None:
        """How many queued jobs are due before it."""
        return await self._writer.read("position", lambda db: sqlite_rows.position(db, job_id))

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
        """Jobs by id."""
        check_list(limit)
        after = None if cursor is None else decode_cursor(cursor)
        listing = Listing(tenant, states, batch, after, limit, oldest_first, bodies)
        return await self._writer.read("list jobs", lambda db: sqlite_rows.page(db, listing))

    async def counts(self, tenant: str | None = None) -> Mapping[State, int]:
        """Jobs by state."""
        whose = "" if tenant is None else f"t{tenant}"
        return await self._writer.read("count", lambda db: sqlite_rows.counts(db, whose))

    async def batch_counts(self, batch: str) -> Mapping[State, int]:
        """A batch's jobs by state."""
        return await self._writer.read("count", lambda db: sqlite_rows.counts(db, f"b{batch}"))

    async def oldest_due_s(self, now: float | None = None) -> float:
        """For how long the oldest due job has waited."""
        due = await self._writer.read("look", sqlite_rows.first_due)
        return 0.0 if due is None else max(0.0, (_instant(now) - due) / MICRO)

    async def wait_work(self, timeout_s: float) -> bool:
        """Wait until `claim` may find a job."""
        return await self._wait_due(WORK, sqlite_rows.next_work, timeout_s)

    async def wait_callbacks(self, timeout_s: float) -> bool:
        """Wait until a callback may be due."""
        return await self._wait_due(CALLBACKS, sqlite_rows.next_callback, timeout_s)

    async def wait_ended(self, job_id: str, timeout_s: float) -> Job | None:
        """The job once it has ended."""
        limit = asyncio.get_running_loop().time() + timeout_s
        with self._watch(job_id) as bell:
            while True:
                bell.hush()
                if await self._over(job_id) or not await bell.heard(limit - asyncio.get_running_loop().time()):
                    return await self.get(job_id)

    async def append(self, job_id: str, token: str, data: Sequence[bytes]) -> bool:
        """Tell those who follow a running job."""
        written = self._books.append(job_id, token, data)
        if written:
            self._bells.ring((job_id,))
        return written

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events of a job that runs in this process."""
        seen: int | None = None
        with self._watch(job_id) as bell:
            while True:
                bell.hush()
                stirs = self._books.stirs(job_id)
                unsure = stirs is None or stirs != seen
                over = unsure and await self._over(job_id)
                for event in self._books.since(job_id, after):
                    after = event.number
                    yield event
                if over:
                    return
                seen = stirs if await bell.heard(_RECHECK_S) else None

    async def due_callbacks(self, lease_s: float, most: int, now: float | None = None) -> list[Job]:
        """Ended jobs whose callback is due."""
        instant = _instant(now)
        return await self._writer.write(
            "claim callbacks", lambda db, _: sqlite_moves.due_callbacks(db, instant + micro(lease_s), most, instant)
        )

    async def settle_callback(self, job_id: str, deliveries: bytes, again_at: float | None = None) -> None:
        """Note what became of a delivery."""
        at = None if again_at is None else micro(again_at)
        await self._writer.write(
            "settle a callback", lambda db, rings: sqlite_moves.settle_callback(db, rings, job_id, deliveries, at)
        )

    async def collect(self, now: float | None = None) -> Collected:
        """Remove what is past its time."""
        instant = _instant(now)
        collected = await self._writer.write("collect", lambda db, rings: sqlite_moves.collect(db, rings, instant))
        if collected.removed:
            await self._writer.write("vacuum", lambda db, _: sqlite_moves.vacuum(db))
        return collected

    async def ping(self) -> None:
        """Raise StoreError unless the file takes a write."""
        write = "INSERT OR REPLACE INTO probe (id, at) VALUES (1, ?)"
        await self._writer.write("take a write", lambda db, _: db.execute(write, (_instant(None),)).rowcount)

    async def warnings(self) -> list[str]:
        """Nothing: the file is durable."""
        return []

    async def close(self) -> None:
        """Finish what was begun, and close the file."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await self._handover.close()
        await self._writer.close()
        self._bells.ring_all()
        self._books.clear()

    async def _claim(self, worker: str, lease_s: float, most: int, now: float | None) -> list[Claimed]:
        token = secrets.token_hex(8)
        more = True
        jobs: list[Job] = []
        while more and not jobs:
            instant = _instant(now)
            wanted = Claim(worker, token, most, instant + micro(lease_s), instant)
            jobs, more = await self._writer.write("claim", partial(claim, wanted=wanted))
        for job in jobs:
            self._books.open(job.id, token, job.attempts)
        return [Claimed(job, token) for job in jobs]

    async def _wait_due(self, topic: str, next_: Callable[[sqlite3.Connection], int | None], timeout_s: float) -> bool:
        limit = asyncio.get_running_loop().time() + timeout_s
        with self._watch(topic) as bell:
            while True:
                bell.hush()
                at = await self._writer.read("look", next_)
                wait = float("inf") if at is None else (at - _instant(None)) / MICRO
                if wait <= 0:
                    return True
                left = limit - asyncio.get_running_loop().time()
                if left <= 0:
                    return False
                await bell.heard(min(wait, left))

    async def _over(self, job_id: str) -> bool:
        """Whether a job has ended, or is not there."""
        state = await self._writer.read("look", lambda db: sqlite_rows.state(db, job_id))
        return state is None or state in ENDED

    def _attempt_over(self, job_id: str, over: bool, answer: T) -> T:
        if over:
            self._books.end(job_id)
        return answer

    def _rung(self, rings: set[str]) -> None:
        for topic in rings:
            self._books.stir(topic)
        self._bells.ring(rings)

    @contextlib.contextmanager
    def _watch(self, topic: str) -> Iterator[Bell]:
        with self._bells.watch(topic) as bell:
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll(), name="poll-job-log")
            yield bell

    async def _poll(self) -> None:
        """Notice what other processes write, for as long as somebody waits for news."""
        while self._bells.topics:
            await asyncio.sleep(_POLL_S)
            with contextlib.suppress(StoreError):  # whoever reads or writes next is told
                version = await self._writer.write("look", _version)
                if version != self._version:
                    self._version = version
                    self._rung(set(self._bells.topics))


def _version(db: sqlite3.Connection, _: set[str]) -> int:
    """Changes whenever another connection has written."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def _instant(now: float | None) -> int:
    return micro(time.time() if now is None else now)
