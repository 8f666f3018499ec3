"""Both job logs against one model in plain Python: states, attempts, fairness, limits, keys, expiry, callbacks.

The model is what a job log means, as simply as it can be said. After every step both must show the same jobs as it.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.job_logs import redis_log, sqlite_log
from tests.redis_server import RedisProcess

from stoker.errors import StokerError
from stoker.store.jobs import (
    ENDED,
    STATES,
    WORKER_LOST,
    Beat,
    Idempotency,
    IdempotencyMismatch,
    Job,
    JobLog,
    NewJob,
    QueueFull,
    QueueLimits,
)

START = 1_000.0
KEEP_S = 50.0


@dataclass
class Entry:
    """A job, and what of it is nobody else's business."""

    job: Job
    due: float
    token: int | None = None
    lease: float = 0.0
    callback_at: float | None = None


@dataclass
class Model:
    entries: dict[str, Entry] = field(default_factory=dict)
    ring: list[str] = field(default_factory=list)
    asleep: dict[str, float] = field(default_factory=dict)
    keys: dict[str, tuple[str, float, list[str]]] = field(default_factory=dict)
    tokens: Iterator[int] = field(default_factory=itertools.count)

    def queue(self, tenant: str | None = None) -> list[Entry]:
        queued = [e for e in self.entries.values() if e.job.state == "queued" and tenant in {None, e.job.tenant}]
        return sorted(queued, key=lambda entry: (entry.due, entry.job.id))

    def enter(self, entries: list[Entry], now: float) -> None:
        for tenant in dict.fromkeys(entry.job.tenant for entry in entries):
            due = min(entry.due for entry in entries if entry.job.tenant == tenant)
            if tenant in self.ring:
                continue
            if due <= now:
                self.ring.append(tenant)
                self.asleep.pop(tenant, None)
            else:
                self.asleep[tenant] = min(due, self.asleep.get(tenant, due))

    def seat(self, tenant: str, now: float) -> None:
        self.ring.remove(tenant)
        queue = self.queue(tenant)
        if queue and queue[0].due <= now:
            self.ring.append(tenant)
        elif queue:
            self.asleep[tenant] = queue[0].due

    def submit(
        self, jobs: list[NewJob], limits: QueueLimits, key: Idempotency | None, now: float
    ) -> tuple[list[Job], bool]:
        if key is not None and key.key in self.keys and self.keys[key.key][1] > now:
            fingerprint, _, ids = self.keys[key.key]
            if fingerprint != key.fingerprint:
                raise IdempotencyMismatch
            return [self.entries[job_id].job for job_id in ids if job_id in self.entries], True
        fresh = [job for job in jobs if job.id not in self.entries]
        for tenant in {job.tenant for job in fresh}:
            if len(self.queue(tenant)) + sum(job.tenant == tenant for job in fresh) > limits.per_tenant:
                raise QueueFull("tenant", limits.per_tenant)
        if fresh and len(self.queue()) + len(fresh) > limits.total:
            raise QueueFull("total", limits.total)
        new = []
        for job in fresh:
            fields = {name: getattr(job, name) for name in NewJob.__slots__}
            new.append(Entry(Job(**fields, created=now), max(now, job.not_before or now)))
            self.entries[job.id] = new[-1]
        self.enter(new, now)
        if key is not None:
            self.keys[key.key] = (key.fingerprint, now + key.ttl, [job.id for job in jobs])
        return [self.entries[job.id].job for job in jobs], False

    def end(self, entry: Entry, state: Any, now: float) -> None:
        entry.job = replace(entry.job, state=state, finished=now, cancelling=False)
        entry.token = None
        entry.callback_at = None if entry.job.callback is None else now

    def back(self, entry: Entry) -> None:
        entry.job = replace(entry.job, state="queued")
        entry.token = None

    def sweep(self, now: float) -> tuple[int, int]:
        lost = [e for e in self.entries.values() if e.job.state == "running" and e.lease <= now]
        lost.sort(key=lambda entry: (entry.lease, entry.job.id))
        again = []
        for entry in lost:
            if entry.job.cancelling:
                self.end(entry, "cancelled", now)
            elif entry.job.attempts >= entry.job.max_attempts:
                self.end(entry, "failed", now)
                entry.job = replace(entry.job, error=WORKER_LOST)
            else:
                self.back(entry)
                again.append(entry)
        self.enter(again, now)
        overdue = [e for e in self.queue() if e.job.expires_at is not None and e.job.expires_at <= now]
        for entry in overdue:
            self.end(entry, "expired", now)
        return len(overdue), len(lost)

    def claim(self, worker: str, lease_s: float, most: int, now: float) -> list[Entry]:
        self.sweep(now)
        for tenant in sorted((t for t, wake in self.asleep.items() if wake <= now), key=lambda t: (self.asleep[t], t)):
            del self.asleep[tenant]
            self.ring.append(tenant)
        claimed: list[Entry] = []
        while self.ring and len(claimed) < most:
            tenant = self.ring[0]
            entry = next((e for e in self.queue(tenant) if e.due <= now), None)
            if entry is not None:
                attempts = entry.job.attempts + 1
                entry.job = replace(
                    entry.job, state="running", attempts=attempts, started=now, worker=worker, progress=None
                )
                entry.token, entry.lease = next(self.tokens), now + lease_s
                claimed.append(entry)
            self.seat(tenant, now)
        return claimed

    def held(self, job_id: str, token: int) -> Entry | None:
        entry = self.entries.get(job_id)
        return entry if entry is not None and entry.token == token else None

    def beat(self, job_id: str, token: int, progress: bytes | None, lease: float) -> str:
        entry = self.held(job_id, token)
        if entry is None:
            return "lost"
        entry.lease = lease
        entry.job = replace(entry.job, progress=progress or entry.job.progress)
        return "cancelled" if entry.job.cancelling else "held"

    def finish(
        self, job_id: str, token: int, state: Any, now: float, *, result: bytes | None, error: bytes | None
    ) -> bool:
        entry = self.held(job_id, token)
        if entry is None:
            return False
        self.end(entry, state, now)
        entry.job = replace(entry.job, result=result, error=error)
        return True

    def retry(self, job_id: str, token: int, error: bytes, not_before: float | None, now: float) -> str:
        entry = self.held(job_id, token)
        if entry is None:
            return "lost"
        entry.job = replace(entry.job, error=error)
        if entry.job.cancelling or entry.job.attempts >= entry.job.max_attempts:
            self.end(entry, "cancelled" if entry.job.cancelling else "failed", now)
            return entry.job.state
        self.back(entry)
        entry.due = max(entry.due, not_before or 0)
        self.enter([entry], now)
        return "queued"

    def release(self, job_id: str, token: int, now: float) -> bool:
        entry = self.held(job_id, token)
        if entry is None:
            return False
        entry.job = replace(entry.job, attempts=entry.job.attempts - 1, started=None, progress=None)
        if entry.job.cancelling:
            self.end(entry, "cancelled", now)
        else:
            self.back(entry)
            self.enter([entry], now)
        return True

    def cancel(self, job_id: str, now: float) -> str | None:
        entry = self.entries.get(job_id)
        if entry is None:
            return None
        if entry.job.state == "queued":
            self.end(entry, "cancelled", now)
        elif entry.job.state == "running":
            entry.job = replace(entry.job, cancelling=True)
        return entry.job.state

    def callbacks(self, lease_s: float, most: int, now: float) -> list[Job]:
        due = [e for e in self.entries.values() if e.callback_at is not None and e.callback_at <= now]
        due.sort(key=lambda entry: (entry.callback_at, entry.job.id))
        for entry in due[:most]:
            entry.callback_at = now + lease_s
        return [entry.job for entry in due[:most]]

    def settle(self, job_id: str, note: bytes, again_at: float | None) -> None:
        entry = self.entries.get(job_id)
        if entry is not None and entry.job.finished is not None:
            entry.job = replace(entry.job, deliveries=note)
            entry.callback_at = again_at

    def collect(self, now: float) -> tuple[int, int, int]:
        expired, lost = self.sweep(now)
        over = [e for e in self.entries.values() if e.job.finished is not None and e.job.finished + e.job.keep_s <= now]
        for entry in over:
            del self.entries[entry.job.id]
        return len(over), expired, lost


ids = st.integers(0, 40).map(lambda number: f"{number:04d}")
tenants = st.sampled_from(["ann", "bob", "cyd%s:"])
later = st.one_of(st.none(), st.integers(1, 30))


class Machine(RuleBasedStateMachine):
    """Does the same to both logs and to the model."""

    def __init__(self, valkey: RedisProcess, directory: Path) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.model = Model()
        self.now = START
        valkey.command("FLUSHALL")
        place = Path(tempfile.mkdtemp(dir=directory))
        self.logs: list[JobLog] = [
            self.run(self.stack.enter_async_context(opened)) for opened in (sqlite_log(place), redis_log(valkey))
        ]
        self.claims: list[tuple[str, int, list[str]]] = []

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    def both(self, ask: Any) -> Any:
        """What both logs answer, which must be the same; refusals are answers too."""

        def one(log: JobLog) -> Any:
            try:
                return self.run(ask(log))
            except StokerError as error:
                return type(error), error.message

        first, second = (one(log) for log in self.logs)
        assert first == second
        return first

    @initialize()
    def begin(self) -> None:
        assert self.both(lambda log: log.counts()) == dict.fromkeys(STATES, 0)

    @rule(
        wanted=st.lists(st.tuples(ids, tenants, later, later), min_size=1, max_size=5, unique_by=lambda job: job[0]),
        attempts=st.integers(1, 3),
        batch=st.sampled_from([None, "b1"]),
        callback=st.sampled_from([None, b"url"]),
        per_tenant=st.integers(1, 12),
        key=st.one_of(st.none(), st.tuples(st.sampled_from("kl"), st.sampled_from("fg"))),
    )
    def submit(self, *, wanted: Any, attempts: int, batch: Any, callback: Any, per_tenant: int, key: Any) -> None:
        jobs = [
            NewJob(
                job_id,
                tenant,
                "/query",
                job_id.encode(),
                attempts,
                None if wait is None else self.now + wait,
                None if life is None else self.now + life,
                KEEP_S,
                batch and f"{batch}{tenant}",
                None if batch is None else f"custom-{job_id}",
                callback,
            )
            for job_id, tenant, wait, life in wanted
        ]
        limits = QueueLimits(per_tenant, 20)
        unique = None if key is None else Idempotency("ann", *key, ttl=40.0)
        try:
            expected: Any = self.model.submit(jobs, limits, unique, self.now)
        except StokerError as error:
            expected = type(error), error.message
        got = self.both(lambda log: log.submit(jobs, limits=limits, idempotency=unique, now=self.now))
        assert got == expected if isinstance(got, tuple) else (list(got.jobs), got.replayed) == expected

    @rule(most=st.integers(1, 6), lease_s=st.integers(1, 20))
    def claim(self, most: int, lease_s: int) -> None:
        expected = self.model.claim("worker", lease_s, most, self.now)
        claimed = [self.run(log.claim("worker", lease_s, most, self.now)) for log in self.logs]
        for got in claimed:
            assert [one.job for one in got] == [entry.job for entry in expected]
        for entry, *ours in zip(expected, *claimed, strict=True):
            assert entry.token is not None
            self.claims.append((entry.job.id, entry.token, [one.token for one in ours]))

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 10), lease_s=st.integers(1, 20), progress=st.sampled_from([None, b"half"]))
    def beat(self, which: int, lease_s: int, progress: bytes | None) -> None:
        some = {claim[0]: claim for claim in self.claims[-1 - which % len(self.claims) :][:3]}.values()
        expected = [self.model.beat(job_id, token, progress, self.now + lease_s) for job_id, token, _ in some]
        for log, at in zip(self.logs, itertools.count()):
            beats = [Beat(job_id, tokens[at], progress) for job_id, _, tokens in some]
            assert self.run(log.heartbeat(beats, lease_s, self.now)) == expected

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 10), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, which: int, state: Any) -> None:
        job_id, token, tokens = self.claims[-1 - which % len(self.claims)]
        result, error = (b"result", None) if state == "succeeded" else (None, b"error")
        expected = self.model.finish(job_id, token, state, self.now, result=result, error=error)
        for log, ours in zip(self.logs, tokens, strict=True):
            done = self.run(log.finish(job_id, ours, state, result=result, error=error, now=self.now))
            assert done == expected
            assert not self.run(log.finish(job_id, ours, "failed", error=b"twice", now=self.now))

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 10), wait=later)
    def retry(self, which: int, wait: int | None) -> None:
        job_id, token, tokens = self.claims[-1 - which % len(self.claims)]
        at = None if wait is None else self.now + wait
        expected = self.model.retry(job_id, token, b"again", at, self.now)
        for log, ours in zip(self.logs, tokens, strict=True):
            assert self.run(log.retry(job_id, ours, b"again", at, self.now)) == expected

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 10))
    def release(self, which: int) -> None:
        job_id, token, tokens = self.claims[-1 - which % len(self.claims)]
        expected = self.model.release(job_id, token, self.now)
        for log, ours in zip(self.logs, tokens, strict=True):
            assert self.run(log.release(job_id, ours, self.now)) == expected

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        expected = self.model.cancel(job_id, self.now)
        assert self.both(lambda log: log.cancel(job_id, self.now)) == expected

    @rule(most=st.integers(1, 4), lease_s=st.integers(1, 20))
    def call_back(self, most: int, lease_s: int) -> None:
        expected = self.model.callbacks(lease_s, most, self.now)
        assert self.both(lambda log: log.due_callbacks(lease_s, most, self.now)) == expected

    @rule(job_id=ids, wait=later)
    def settle(self, job_id: str, wait: int | None) -> None:
        again_at = None if wait is None else self.now + wait
        self.model.settle(job_id, b"noted", again_at)
        self.both(lambda log: log.settle_callback(job_id, b"noted", again_at))

    @rule()
    def collect(self) -> None:
        expected = self.model.collect(self.now)
        got = self.both(lambda log: log.collect(self.now))
        assert (got.removed, got.expired, got.taken_back, got.more) == (*expected, False)

    @rule(seconds=st.sampled_from([1 / 64, 1, 5, 15, 60]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        tenant=st.one_of(st.none(), tenants),
        states=st.lists(st.sampled_from(STATES), min_size=1, max_size=6),
        batch=st.sampled_from([None, "b1ann"]),
        limit=st.integers(1, 5),
        oldest_first=st.booleans(),
    )
    def page(self, tenant: Any, states: Any, batch: Any, limit: int, oldest_first: bool) -> None:
        wanted = [
            replace(entry.job, request=b"", callback=None, result=None, error=None, deliveries=None)
            for _, entry in sorted(self.model.entries.items(), reverse=not oldest_first)
            if tenant in {None, entry.job.tenant} and entry.job.state in states and batch in {None, entry.job.batch}
        ]
        options = {"tenant": tenant, "states": states, "batch": batch, "limit": limit, "oldest_first": oldest_first}
        listed: list[Job] = []
        cursor = None
        while True:
            page = self.both(lambda log: log.page(cursor=cursor, **options))  # noqa: B023
            assert len(page.jobs) <= limit
            listed += page.jobs
            cursor = page.cursor
            if cursor is None:
                break
        if batch is None or tenant in {None, "ann"}:
            assert listed == wanted
        else:
            assert not listed

    @invariant()
    def the_same_is_kept(self) -> None:
        entries = sorted(self.model.entries.items())
        page = self.both(lambda log: log.page(bodies=True, oldest_first=True))
        assert list(page.jobs) == [entry.job for _, entry in entries]
        for tenant in (None, "ann", "cyd%s:"):
            mine = [entry.job.state for _, entry in entries if tenant in {None, entry.job.tenant}]
            counted = self.both(lambda log: log.counts(tenant))  # noqa: B023
            assert counted == {state: mine.count(state) for state in STATES}
        batch = [entry.job.state for _, entry in entries if entry.job.batch == "b1ann"]
        assert self.both(lambda log: log.batch_counts("b1ann")) == {state: batch.count(state) for state in STATES}

    @invariant()
    def places_are_told(self) -> None:
        queue = self.model.queue()
        for place, entry in list(enumerate(queue))[:: max(1, len(queue) - 1)]:
            assert self.both(lambda log: log.position(entry.job.id)) == place  # noqa: B023
        age = max(0.0, self.now - queue[0].due) if queue else 0.0
        assert self.both(lambda log: log.oldest_due_s(self.now)) == pytest.approx(age, abs=1e-6)
        for entry in self.model.entries.values():
            if entry.job.state in ENDED:
                assert self.both(lambda log: log.position(entry.job.id)) is None  # noqa: B023
                break


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


def test_both_do_what_the_model_does(valkey: RedisProcess, tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: Machine(valkey, tmp_path),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
