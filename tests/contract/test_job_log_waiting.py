"""Who waits for work, for an end or for events learns of it at once, in this process and in another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.job_logs import NO_LIMITS, SOON_S, new_job, redis_log, sqlite_log
from tests.redis_server import RedisProcess

from stoker.store.jobs import EVENT_OCTETS_KEPT, EVENTS_KEPT, Claimed, Event, JobLog, NewJob
from stoker.store.protocols import StoreError

LONG_S = 600.0  # a test that waits so long has failed by its own time limit


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest_asyncio.fixture(params=["sqlite", "redis", "two processes on sqlite", "two replicas on redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[JobLog, JobLog]]:
    """Where something happens, and where it is waited for."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(2 if request.param.startswith("two") else 1):
            if request.param.endswith("sqlite"):
                opened.append(await stack.enter_async_context(sqlite_log(tmp_path)))
            else:
                valkey = request.getfixturevalue("valkey")
                opened.append(await stack.enter_async_context(redis_log(valkey)))
        if request.param.endswith("redis"):
            valkey.command("FLUSHALL")
        yield opened[0], opened[-1]


@pytest_asyncio.fixture(params=["sqlite", "redis"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobLog]:
    if request.param == "sqlite":
        async with sqlite_log(tmp_path) as opened:
            yield opened
        return
    valkey = request.getfixturevalue("valkey")
    valkey.command("FLUSHALL")
    async with redis_log(valkey) as opened:
        yield opened


async def submit(log: JobLog, *jobs: NewJob) -> None:
    await log.submit(jobs, limits=NO_LIMITS)


async def claim(log: JobLog) -> Claimed:
    (claimed,) = await log.claim("w", LONG_S, 1)
    return claimed


async def begun(task: asyncio.Task) -> None:
    """Let it come to where it waits."""
    await asyncio.sleep(0.05)
    assert not task.done()


async def read(log: JobLog, job_id: str, after: int, into: list[Event]) -> None:
    async for event in log.follow(job_id, after):
        into.append(event)  # noqa: PERF401 - seen while it grows


async def test_a_worker_hears_of_a_fresh_job(pair: tuple[JobLog, JobLog]) -> None:
    here, there = pair
    waiting = asyncio.create_task(there.wait_work(LONG_S))
    await begun(waiting)
    await submit(here, new_job())
    async with asyncio.timeout(SOON_S):
        assert await waiting
    assert len(await there.claim("w", 10, 5)) == 1


async def test_a_worker_hears_of_what_comes_back(log: JobLog) -> None:
    await submit(log, new_job(), new_job())
    first, second = await claim(log), await claim(log)
    for back in (log.retry(first.job.id, first.token, b"busy"), log.release(second.job.id, second.token)):
        waiting = asyncio.create_task(log.wait_work(LONG_S))
        await begun(waiting)
        await back
        async with asyncio.timeout(SOON_S):
            assert await waiting
        await claim(log)


async def test_there_is_work_already(log: JobLog) -> None:
    await submit(log, new_job())
    assert await log.wait_work(0)
    await claim(log)
    assert not await log.wait_work(0)
    assert not await log.wait_work(0.02)


async def test_a_worker_wakes_when_a_job_is_due_or_a_lease_has_ended(log: JobLog) -> None:
    await submit(log, new_job(not_before=time.time() + 0.3))
    assert await log.claim("w", 0.3, 1) == []
    async with asyncio.timeout(SOON_S):
        assert await log.wait_work(LONG_S)
        (claimed,) = await log.claim("dies", 0.3, 1)
        assert await log.wait_work(LONG_S)
        (again,) = await log.claim("lives", 10, 1)
    assert (again.job.id, again.job.attempts) == (claimed.job.id, 2)


@pytest.mark.parametrize("how", ["finish", "cancel", "expire"])
async def test_an_end_is_heard_of(pair: tuple[JobLog, JobLog], how: str) -> None:
    here, there = pair
    job = new_job(expires_at=time.time() + LONG_S)
    await submit(here, job)
    claimed = await claim(here) if how == "finish" else None
    waiting = asyncio.create_task(there.wait_ended(job.id, LONG_S))
    await begun(waiting)
    if claimed is not None:
        await here.finish(job.id, claimed.token, "succeeded", result=b"r")
    elif how == "cancel":
        await here.cancel(job.id)
    else:
        await here.collect(now=time.time() + LONG_S)
    async with asyncio.timeout(SOON_S):
        ended = await waiting
    assert ended is not None
    assert ended.state == {"finish": "succeeded", "cancel": "cancelled", "expire": "expired"}[how]


async def test_an_end_that_does_not_come(log: JobLog) -> None:
    job = new_job()
    await submit(log, job)
    waited = await log.wait_ended(job.id, 0.02)
    assert waited is not None
    assert waited.state == "queued"
    assert await log.wait_ended("none", LONG_S) is None
    await log.cancel(job.id)
    ended = await log.wait_ended(job.id, LONG_S)
    assert ended is not None
    assert ended.state == "cancelled"


async def test_many_wait_for_many(log: JobLog) -> None:
    jobs = [new_job() for _ in range(60)]
    await submit(log, *jobs)
    waiting = [asyncio.create_task(log.wait_ended(job.id, LONG_S)) for job in jobs for _ in range(3)]
    await begun(waiting[0])
    for one in await log.claim("w", LONG_S, 60):
        await log.finish(one.job.id, one.token, "succeeded", result=one.job.id.encode())
    async with asyncio.timeout(SOON_S):
        ended = await asyncio.gather(*waiting)
    assert all(job is not None and job.result == job.id.encode() for job in ended)


async def test_callbacks_are_heard_of(pair: tuple[JobLog, JobLog]) -> None:
    here, there = pair
    waiting = asyncio.create_task(there.wait_callbacks(LONG_S))
    await begun(waiting)
    job = new_job(callback=b"url")
    await submit(here, job)
    await here.cancel(job.id)
    async with asyncio.timeout(SOON_S):
        assert await waiting
        assert len(await there.due_callbacks(0.2, 5)) == 1
        assert not await there.wait_callbacks(0)
        assert await there.wait_callbacks(LONG_S)  # whoever had it said nothing
        await there.due_callbacks(LONG_S, 5)
        waiting = asyncio.create_task(there.wait_callbacks(LONG_S))
        await begun(waiting)
        await here.settle_callback(job.id, b"no", again_at=time.time() + 0.2)
        assert await waiting
    await there.settle_callback(job.id, b"done")
    assert not await there.wait_callbacks(0)


async def test_events_reach_all_who_follow(log: JobLog) -> None:
    job = new_job()
    await submit(log, job)
    early: list[Event] = []
    following = asyncio.create_task(read(log, job.id, 0, early))
    await begun(following)
    claimed = await claim(log)
    assert await log.append(job.id, claimed.token, [b"one", b"two"])
    late: list[Event] = []
    joining = asyncio.create_task(read(log, job.id, 1, late))
    async with asyncio.timeout(SOON_S):
        while len(early) < 2 or len(late) < 1:
            await asyncio.sleep(0.001)
    assert await log.append(job.id, claimed.token, [b"\x00\r\n"])
    await log.finish(job.id, claimed.token, "succeeded")
    assert not await log.append(job.id, claimed.token, [b"late"])
    async with asyncio.timeout(SOON_S):
        await asyncio.gather(following, joining)
    assert early == [Event(1, 1, b"one"), Event(2, 1, b"two"), Event(3, 1, b"\x00\r\n")]
    assert late == early[1:]
    afterwards: list[Event] = []
    await read(log, job.id, 2, afterwards)
    assert afterwards == early[2:]


async def test_another_attempt_s_events_are_told_apart(log: JobLog) -> None:
    job = new_job()
    await submit(log, job)
    first = await claim(log)
    await log.append(job.id, first.token, [b"a"])
    await log.retry(job.id, first.token, b"busy")
    second = await claim(log)
    assert not await log.append(job.id, first.token, [b"stale"])
    await log.append(job.id, second.token, [b"b"])
    await log.cancel(job.id)
    assert await log.append(job.id, second.token, [b"c"])  # asked to end, not ended
    await log.finish(job.id, second.token, "cancelled")
    events: list[Event] = []
    await read(log, job.id, 0, events)
    assert events == [Event(1, 1, b"a"), Event(2, 2, b"b"), Event(3, 2, b"c")]


async def test_events_are_bounded(log: JobLog) -> None:
    jobs = [new_job(), new_job()]
    await submit(log, *jobs)
    many, large = await claim(log), await claim(log)
    for start in range(0, EVENTS_KEPT + 1000, 100):
        await log.append(many.job.id, many.token, [b"%d" % number for number in range(start, start + 100)])
    for _ in range(5):
        await log.append(large.job.id, large.token, [b"x" * (EVENT_OCTETS_KEPT * 2 // 7)])
    kept: dict[str, list[Event]] = {}
    for one in (many, large):
        await log.finish(one.job.id, one.token, "succeeded")
        await read(log, one.job.id, 0, kept.setdefault(one.job.id, []))
    assert [event.number for event in kept[many.job.id]][-1] == EVENTS_KEPT + 1000 + 4
    assert len(kept[many.job.id]) == EVENTS_KEPT
    assert [event.number for event in kept[large.job.id]] == [3, 4, 5]


async def test_following_what_is_not_there_ends(log: JobLog) -> None:
    events: list[Event] = []
    async with asyncio.timeout(SOON_S):
        await read(log, "none", 0, events)
    assert events == []


async def test_other_replicas_follow_too(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    async with redis_log(valkey) as here, redis_log(valkey) as there:
        job = new_job()
        await submit(here, job)
        claimed = await claim(here)
        events: list[Event] = []
        following = asyncio.create_task(read(there, job.id, 0, events))
        for number in range(600):
            await here.append(job.id, claimed.token, [b"%d" % number])
        await here.finish(job.id, claimed.token, "succeeded")
        async with asyncio.timeout(SOON_S):
            await following
        assert [event.data for event in events] == [b"%d" % number for number in range(600)]


async def test_those_who_wait_are_told_of_an_outage() -> None:
    with RedisProcess() as own:
        async with redis_log(own) as log:
            job = new_job()
            await submit(log, job)
            waits = (log.wait_ended(job.id, LONG_S), read(log, job.id, 0, []), log.wait_callbacks(LONG_S))
            waiting = [asyncio.create_task(wait) for wait in waits]
            await begun(waiting[0])
            own.kill()
            async with asyncio.timeout(SOON_S):
                failures = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(failure) for failure in failures] == [StoreError] * 3


async def test_those_who_wait_survive_a_broken_connection() -> None:
    with RedisProcess("--appendonly", "yes", "--appendfsync", "always") as own:
        async with redis_log(own) as log:
            job = new_job()
            await submit(log, job)
            waiting = asyncio.create_task(log.wait_ended(job.id, LONG_S))
            await begun(waiting)
            subscribers = own.command("PUBSUB", "NUMSUB", f"test:{{jobs}}:n:{job.id}")
            own.command("CLIENT", "KILL", "TYPE", "pubsub")
            async with asyncio.timeout(SOON_S):
                while own.command("PUBSUB", "NUMSUB", f"test:{{jobs}}:n:{job.id}") != subscribers:
                    await asyncio.sleep(0.01)
                await log.cancel(job.id)
                ended = await waiting
            assert ended is not None
            assert ended.state == "cancelled"
            async with asyncio.timeout(SOON_S):  # and none is left behind
                while b":0\r\n" not in own.command("PUBSUB", "NUMSUB", f"test:{{jobs}}:n:{job.id}"):
                    await asyncio.sleep(0.01)
