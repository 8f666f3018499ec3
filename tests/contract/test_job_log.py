"""What every job log must do, in SQLite and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.job_logs import NO_LIMITS, new_job, redis_log, sqlite_log
from tests.redis_server import RedisProcess

from stoker.store.jobs import (
    ENDED,
    MAX_SUBMITTED,
    POSITIONS,
    WORKER_LOST,
    Beat,
    Idempotency,
    IdempotencyMismatch,
    JobLog,
    NewJob,
    QueueFull,
    QueueLimits,
)


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


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


async def submit(log: JobLog, *jobs: NewJob, now: float = 100.0) -> None:
    await log.submit(jobs, limits=NO_LIMITS, now=now)


async def test_the_life_of_a_job(log: JobLog) -> None:
    wanted = new_job(custom_id="c", batch="b", callback=b"{}", request=b"\x00\xff\r\n")
    submission = await log.submit([wanted], limits=NO_LIMITS, now=100)
    assert not submission.replayed
    (queued,) = submission.jobs
    assert (queued.state, queued.created, queued.request, queued.custom_id) == ("queued", 100, b"\x00\xff\r\n", "c")
    assert await log.get(wanted.id) == queued
    (claimed,) = await log.claim("w1", 10, 5, now=101)
    running = await log.get(wanted.id)
    assert claimed.job == running
    assert running is not None
    assert (running.state, running.attempts, running.started, running.worker) == ("running", 1, 101, "w1")
    assert await log.claim("w2", 10, 5, now=102) == []
    assert await log.heartbeat([Beat(wanted.id, claimed.token, b"50%")], 10, now=105) == ["held"]
    assert await log.finish(wanted.id, claimed.token, "succeeded", result=b"\x01answer", now=106)
    ended = await log.get(wanted.id)
    assert ended is not None
    assert (ended.state, ended.finished, ended.result, ended.progress) == ("succeeded", 106, b"\x01answer", b"50%")
    assert not await log.finish(wanted.id, claimed.token, "failed", error=b"late", now=107)
    assert await log.heartbeat([Beat(wanted.id, claimed.token)], 10, now=107) == ["lost"]
    assert await log.get(wanted.id) == ended


async def test_what_there_is_not(log: JobLog) -> None:
    assert await log.get("none") is None
    assert await log.position("none") is None
    assert await log.cancel("none") is None
    assert not await log.finish("none", "token", "succeeded")
    assert await log.retry("none", "token", b"") == "lost"
    assert not await log.release("none", "token")
    assert await log.heartbeat([Beat("none", "token")], 1) == ["lost"]
    assert await log.oldest_due_s() == 0
    assert (await log.page()).jobs == ()


async def test_tenants_take_turns(log: JobLog) -> None:
    await submit(log, *(new_job("many") for _ in range(6)))
    await submit(log, new_job("few"), new_job("one"), new_job("few"), now=101)
    claimed = [await log.claim("w", 60, 1, now=102) for _ in range(5)]
    assert [one.job.tenant for (one,) in claimed] == ["many", "few", "one", "many", "few"]
    rest = await log.claim("w", 60, 100, now=102)
    assert [one.job.tenant for one in rest] == ["many"] * 4
    ids = [one.job.id for (one,) in claimed] + [one.job.id for one in rest]
    mine = [one for one in ids if one in {job.id for job in (await log.page(tenant="many")).jobs}]
    assert mine == sorted(mine)  # oldest first


async def test_tenants_that_come_due_together_take_turns_too(log: JobLog) -> None:
    await submit(log, *(new_job(tenant, not_before=110) for tenant in "abcabc"))
    assert await log.claim("w", 60, 1, now=109) == []
    claimed = [await log.claim("w", 60, 1, now=110) for _ in range(6)]
    assert "".join(one.job.tenant for (one,) in claimed) == "abcabc"


async def test_a_lost_worker_s_job_is_done_by_another_and_recorded_once(log: JobLog) -> None:
    await submit(log, new_job(max_attempts=2))
    (first,) = await log.claim("dies", 10, 1, now=100)
    assert await log.claim("waits", 10, 1, now=109) == []
    (second,) = await log.claim("takes over", 10, 1, now=110)
    assert (second.job.id, second.job.attempts) == (first.job.id, 2)
    assert await log.heartbeat([Beat(first.job.id, first.token)], 10, now=111) == ["lost"]
    assert not await log.finish(first.job.id, first.token, "succeeded", result=b"stale", now=111)
    assert await log.finish(second.job.id, second.token, "succeeded", result=b"good", now=112)
    job = await log.get(first.job.id)
    assert job is not None
    assert (job.state, job.result) == ("succeeded", b"good")


async def test_a_job_that_kills_its_workers_fails(log: JobLog) -> None:
    await submit(log, new_job(max_attempts=2))
    for now in (100, 110):
        assert len(await log.claim("w", 10, 1, now=now)) == 1
    assert await log.claim("w", 10, 1, now=120) == []
    (job,) = (await log.page(bodies=True)).jobs
    assert (job.state, job.error, job.attempts, job.finished) == ("failed", WORKER_LOST, 2, 120)


async def test_retries_wait_and_end_in_the_dead_letters(log: JobLog) -> None:
    await submit(log, new_job(max_attempts=2))
    (claimed,) = await log.claim("w", 10, 1, now=100)
    assert await log.retry(claimed.job.id, claimed.token, b"busy", not_before=130, now=101) == "queued"
    assert await log.retry(claimed.job.id, claimed.token, b"busy", now=101) == "lost"
    assert await log.claim("w", 10, 1, now=129) == []
    (again,) = await log.claim("w", 10, 1, now=130)
    assert (again.job.attempts, again.job.error) == (2, b"busy")
    assert await log.retry(again.job.id, again.token, b"still busy", now=131) == "failed"
    (dead,) = (await log.page(states=["failed"], bodies=True)).jobs
    assert dead.error == b"still busy"


async def test_a_success_forgets_the_errors_before(log: JobLog) -> None:
    await submit(log, new_job())
    (claimed,) = await log.claim("w", 10, 1, now=100)
    await log.retry(claimed.job.id, claimed.token, b"busy", now=101)
    (again,) = await log.claim("w", 10, 1, now=102)
    await log.finish(again.job.id, again.token, "succeeded", result=b"", now=103)
    job = await log.get(again.job.id)
    assert job is not None
    assert (job.result, job.error) == (b"", None)


async def test_a_stopping_worker_gives_back_what_it_has(log: JobLog) -> None:
    await submit(log, new_job(max_attempts=1), new_job())
    (claimed,) = await log.claim("stops", 10, 1, now=100)
    assert await log.release(claimed.job.id, claimed.token, now=101)
    assert not await log.release(claimed.job.id, claimed.token, now=101)
    (again,) = await log.claim("starts", 10, 1, now=102)
    assert (again.job.id, again.job.attempts) == (claimed.job.id, 1)  # in its old place


async def test_cancelling(log: JobLog) -> None:
    jobs = [new_job() for _ in range(3)]
    await submit(log, *jobs)
    (first,) = await log.claim("w", 10, 1, now=100)
    assert await log.cancel(jobs[1].id, now=101) == "cancelled"
    assert await log.cancel(first.job.id, now=101) == "running"
    assert await log.heartbeat([Beat(first.job.id, first.token)], 10, now=102) == ["cancelled"]
    assert await log.finish(first.job.id, first.token, "cancelled", now=103)
    assert await log.cancel(first.job.id, now=104) == "cancelled"
    (second,) = await log.claim("w", 10, 5, now=105)
    assert second.job.id == jobs[2].id
    await log.cancel(second.job.id, now=105)
    assert await log.claim("w", 10, 1, now=115) == []  # its worker died: nobody begins it again
    assert {job.state for job in (await log.page()).jobs} == {"cancelled"}


async def test_a_cancelled_job_is_not_tried_again(log: JobLog) -> None:
    await submit(log, new_job(), new_job())
    first, second = await log.claim("w", 10, 2, now=100)
    for one in (first, second):
        await log.cancel(one.job.id, now=101)
    assert await log.retry(first.job.id, first.token, b"busy", now=102) == "cancelled"
    assert await log.release(second.job.id, second.token, now=102)
    assert (await log.counts())["cancelled"] == 2


async def test_times_before_and_after(log: JobLog) -> None:
    early, late = new_job(not_before=150), new_job(expires_at=120)
    await submit(log, early, late)
    assert await log.collect(now=119) == await log.collect(now=119)
    assert (await log.collect(now=120)).expired == 1
    assert await log.claim("w", 10, 5, now=149.999) == []
    (claimed,) = await log.claim("w", 10, 5, now=150)
    assert claimed.job.id == early.id
    job = await log.get(late.id)
    assert job is not None
    assert (job.state, job.finished) == ("expired", 120)


async def test_an_overdue_job_is_never_started(log: JobLog) -> None:
    await submit(log, *(new_job(f"t{n % 7}", expires_at=120) for n in range(700)))
    await submit(log, new_job("t0"), now=110)
    (claimed,) = await log.claim("w", 10, 5, now=130)  # more of them than one sweep sees to
    assert claimed.job.expires_at is None
    assert (await log.counts())["expired"] == 700


async def test_limits_hold_for_all_or_nothing(log: JobLog) -> None:
    limits = QueueLimits(per_tenant=3, total=5)
    await log.submit([new_job("a"), new_job("a")], limits=limits)
    with pytest.raises(QueueFull) as refused:
        await log.submit([new_job("a"), new_job("a")], limits=limits)
    assert (refused.value.scope, refused.value.status) == ("tenant", 429)
    await log.submit([new_job("b"), new_job("b")], limits=limits)
    with pytest.raises(QueueFull) as refused:
        await log.submit([new_job("c"), new_job("d")], limits=limits)
    assert refused.value.scope == "total"
    assert (await log.counts())["queued"] == 4
    assert len(await log.claim("w", 10, 1)) == 1  # what runs is queued no more
    await log.submit([new_job("c"), new_job("d")], limits=limits)


@pytest.mark.parametrize(("per_tenant", "total", "let_in"), [(1000, 70, 70), (30, 70, 60)])
async def test_limits_are_exact_under_concurrency(log: JobLog, per_tenant: int, total: int, let_in: int) -> None:
    async def one(number: int) -> bool:
        try:
            await log.submit([new_job(f"t{number % 2}")], limits=QueueLimits(per_tenant, total))
        except QueueFull:
            return False
        return True

    assert sum(await asyncio.gather(*(one(number) for number in range(300)))) == let_in
    assert (await log.counts())["queued"] == let_in
    assert max([(await log.counts(f"t{n}"))["queued"] for n in (0, 1)]) <= per_tenant


async def test_a_key_gives_the_same_jobs_again(log: JobLog) -> None:
    key = Idempotency("ann", "k", "one body", ttl=60)
    first = await log.submit([new_job(), new_job()], limits=NO_LIMITS, idempotency=key, now=100)
    (claimed,) = await log.claim("w", 10, 1, now=101)
    again = await log.submit([new_job()], limits=QueueLimits(1, 1), idempotency=key, now=102)
    assert again.replayed
    assert [job.id for job in again.jobs] == [job.id for job in first.jobs]
    assert [job.state for job in again.jobs] == ["running", "queued"]
    other = Idempotency("ann", "k", "another body", ttl=60)
    with pytest.raises(IdempotencyMismatch) as refused:
        await log.submit([new_job()], limits=NO_LIMITS, idempotency=other, now=103)
    assert refused.value.status == 422
    bob = Idempotency("bob", "k", "another body", ttl=60)
    assert not (await log.submit([new_job("bob")], limits=NO_LIMITS, idempotency=bob, now=103)).replayed
    assert not (await log.submit([new_job()], limits=NO_LIMITS, idempotency=other, now=160)).replayed
    assert claimed.job.id == first.jobs[0].id


async def test_one_key_at_the_same_moment_makes_one_job(log: JobLog) -> None:
    key = Idempotency("ann", "k", "body")
    submissions = await asyncio.gather(*(log.submit([new_job()], limits=NO_LIMITS, idempotency=key) for _ in range(50)))
    assert sum(not submission.replayed for submission in submissions) == 1
    assert len({submission.jobs[0].id for submission in submissions}) == 1
    assert (await log.counts())["queued"] == 1


async def test_a_refused_submission_leaves_its_key_free(log: JobLog) -> None:
    key = Idempotency("ann", "k", "body")
    with pytest.raises(QueueFull):
        await log.submit([new_job(), new_job()], limits=QueueLimits(1, 1), idempotency=key)
    assert not (await log.submit([new_job()], limits=NO_LIMITS, idempotency=key)).replayed


async def test_a_replay_of_jobs_that_are_gone_is_empty(log: JobLog) -> None:
    key = Idempotency("ann", "k", "body", ttl=1000)
    await log.submit([new_job(keep_s=10)], limits=NO_LIMITS, idempotency=key, now=100)
    (claimed,) = await log.claim("w", 10, 1, now=100)
    await log.finish(claimed.job.id, claimed.token, "succeeded", result=b"r", now=101)
    assert (await log.collect(now=110.9)).removed == 0
    assert (await log.collect(now=111)).removed == 1
    replay = await log.submit([new_job()], limits=NO_LIMITS, idempotency=key, now=120)
    assert (replay.replayed, replay.jobs) == (True, ())


async def test_a_submission_may_be_repeated(log: JobLog) -> None:
    jobs = [new_job(), new_job()]
    await submit(log, jobs[0])
    (claimed,) = await log.claim("w", 10, 1, now=101)
    again = await log.submit(jobs, limits=QueueLimits(1, 1), now=102)
    assert [job.state for job in again.jobs] == ["running", "queued"]
    assert again.jobs[0] == claimed.job
    assert sum((await log.counts()).values()) == 2


@pytest.mark.parametrize(
    "jobs",
    [
        [],
        [new_job()] * 2,
        [new_job(max_attempts=0)],
        [new_job(batch="")],
        [new_job(id=str(number)) for number in range(MAX_SUBMITTED + 1)],
    ],
    ids=["none", "twice the same", "no attempts", "no batch", "too many"],
)
async def test_nonsense_is_refused(log: JobLog, jobs: list[NewJob]) -> None:
    with pytest.raises(ValueError):
        await log.submit(jobs, limits=NO_LIMITS)
    assert sum((await log.counts()).values()) == 0


async def test_more_nonsense(log: JobLog) -> None:
    for most in (0, 257):
        with pytest.raises(ValueError):
            await log.claim("w", 10, most)
    for options in ({"limit": 0}, {"limit": 1001}, {"cursor": "not one"}):
        with pytest.raises(ValueError):
            await log.page(**options)  # type: ignore[arg-type]


async def test_pages(log: JobLog) -> None:
    jobs = [new_job("a" if n % 3 else "b", batch=None if n % 2 else "even") for n in range(25)]
    for start in range(0, 25, 5):
        await submit(log, *jobs[start : start + 5])
    claimed = await log.claim("w", 10, 5, now=101)
    seen: list[str] = []
    cursor = None
    while True:
        page = await log.page(cursor=cursor, limit=10)
        seen += [job.id for job in page.jobs]
        await submit(log, new_job())  # newer ones do not disturb
        if (cursor := page.cursor) is None:
            break
    assert seen == [job.id for job in reversed(jobs)]
    running = await log.page(states=["running"], oldest_first=True, bodies=True)
    assert [job.id for job in running.jobs] == sorted(one.job.id for one in claimed)
    assert all(job.request for job in running.jobs)
    mine = await log.page(tenant="b", limit=1000)
    assert [job.id for job in mine.jobs] == [job.id for job in reversed(jobs) if job.tenant == "b"]
    assert not any(job.request for job in mine.jobs)
    even = await log.page(batch="even", limit=1000)
    assert [job.id for job in even.jobs] == [job.id for job in reversed(jobs) if job.batch == "even"]
    assert (await log.page(states=[], limit=5)).jobs == ()


async def test_counts_and_places(log: JobLog) -> None:
    jobs = [new_job(f"t{n % 3}", batch="b" if n < 4 else None) for n in range(10)]
    for at, job in enumerate(jobs):
        await submit(log, job, now=100 + at)
    assert [await log.position(job.id) for job in jobs] == list(range(10))
    assert await log.oldest_due_s(now=150) == 50
    (claimed,) = await log.claim("w", 60, 1, now=150)
    assert await log.position(claimed.job.id) is None
    assert await log.position(jobs[9].id) == 8
    await log.finish(claimed.job.id, claimed.token, "succeeded", now=151)
    assert (await log.batch_counts("b"))["succeeded"] == 1
    assert (await log.batch_counts("b"))["queued"] == 3
    assert (await log.counts("t0"))["queued"] == 3
    assert sum((await log.counts("nobody")).values()) == 0


async def test_far_places_are_not_counted(log: JobLog) -> None:
    jobs = [new_job() for _ in range(POSITIONS + 3)]
    for start in (0, 500, 1000):
        await submit(log, *jobs[start : start + 500])
    assert await log.position(jobs[POSITIONS].id) == POSITIONS
    assert await log.position(jobs[POSITIONS + 1].id) is None


async def test_what_is_over_is_collected(log: JobLog) -> None:
    await submit(log, *(new_job(batch="b", keep_s=10) for _ in range(450)))
    claimed = await log.claim("w", 60, 225, now=101) + await log.claim("w", 60, 225, now=101)
    await asyncio.gather(*(log.finish(one.job.id, one.token, "succeeded", now=102) for one in claimed))
    assert (await log.collect(now=111.9)).removed == 0
    removed, more = 0, True
    while more:
        collected = await log.collect(now=112)
        removed, more = removed + collected.removed, collected.more
        assert collected.removed <= 200
    assert removed == 450
    assert sum((await log.counts()).values()) == 0
    assert sum((await log.batch_counts("b")).values()) == 0
    assert await log.get(claimed[0].job.id) is None


async def test_callbacks_are_due_when_a_job_ends_however_it_ends(log: JobLog) -> None:
    jobs = [new_job(callback=b"url"), new_job(callback=b"url", expires_at=110), new_job(), new_job(callback=b"url")]
    await submit(log, *jobs)
    (claimed,) = await log.claim("w", 100, 1, now=101)
    assert await log.due_callbacks(30, 10, now=101) == []
    await log.finish(claimed.job.id, claimed.token, "succeeded", result=b"r", now=102)
    await log.cancel(jobs[3].id, now=103)
    await log.collect(now=110)
    due = await log.due_callbacks(30, 10, now=110)
    assert [(job.id, job.state) for job in due] == [
        (jobs[0].id, "succeeded"),
        (jobs[3].id, "cancelled"),
        (jobs[1].id, "expired"),
    ]
    assert (due[0].result, due[0].callback) == (b"r", b"url")
    assert await log.due_callbacks(30, 10, now=139) == []  # another has them
    await log.settle_callback(jobs[0].id, b"delivered")
    await log.settle_callback(jobs[3].id, b"refused", again_at=200)
    assert [job.id for job in await log.due_callbacks(30, 10, now=140)] == [jobs[1].id]
    (again,) = await log.due_callbacks(30, 1, now=200)
    assert (again.id, again.deliveries) == (jobs[1].id, None)
    assert [job.deliveries for job in await log.due_callbacks(30, 10, now=200)] == [b"refused"]


async def test_a_claim_that_nobody_waits_for_is_given_back(log: JobLog) -> None:
    await submit(log, *(new_job(max_attempts=1) for _ in range(3)))
    claiming = asyncio.create_task(log.claim("leaves", 60, 2, now=101))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    assert claiming.cancelled()
    async with asyncio.timeout(30):
        while len(jobs := await log.claim("stays", 60, 3, now=101)) < 3:
            for one in jobs:
                await log.release(one.job.id, one.token, now=101)
            await asyncio.sleep(0.01)
    assert all(one.job.attempts == 1 for one in jobs)


async def test_work_is_shared_without_losing_or_doubling_any(log: JobLog) -> None:
    await submit(log, *(new_job(f"t{n % 5}") for n in range(300)))
    done: list[str] = []

    async def worker(name: str) -> None:
        while claimed := await log.claim(name, 60, 7):
            for one in claimed:
                assert await log.finish(one.job.id, one.token, "succeeded", result=name.encode())
                done.append(one.job.id)

    await asyncio.gather(*(worker(f"w{n}") for n in range(6)))
    assert len(done) == len(set(done)) == 300
    counted = await log.counts()
    assert (counted["succeeded"], sum(counted[state] for state in counted if state not in ENDED)) == (300, 0)


async def test_the_store_is_well(log: JobLog) -> None:
    await log.ping()
    assert log.description.startswith(("SQLite in /", "Redis at /"))
