"""`kill -9` of those who work on a job log, and of Redis: nothing acknowledged is lost, no result comes twice."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.job_ledger import Child, Ledger
from tests.job_logs import NO_LIMITS, SOON_S, new_job, redis_log, sqlite_log
from tests.redis_server import RedisProcess

from stoker.store.jobs import JobLog, NewJob
from stoker.store.protocols import StoreError

KILLS = 20
LEASE_S = 0.4


@pytest.fixture
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_killed_workers_lose_nothing(kind: str, tmp_path: Path, valkey: RedisProcess) -> None:
    ledger = Ledger()
    place = str(tmp_path) if kind == "sqlite" else valkey.url
    chance = random.Random(7)
    for number in range(KILLS):
        with Child(ledger, kind, place, f"w{number}", str(LEASE_S)) as child:
            await asyncio.to_thread(child.wait_lines, 1)
            await asyncio.to_thread(child.wait, chance.uniform(0, 0.25))
    opened = sqlite_log(tmp_path) if kind == "sqlite" else redis_log(valkey)
    async with opened as log:
        assert await ledger.faults(log) == []
        async with asyncio.timeout(2 * SOON_S):
            await ledger.finish_all(log)
        assert await ledger.faults(log) == []
        # Those that were killed between an acknowledgement and its word, each with three workers.
        assert len(ledger.submitted - set(ledger.finished)) <= 3 * KILLS < len(ledger.submitted)
        jobs = [await log.get(job_id) for job_id in ledger.submitted]
        assert any(job is not None and job.attempts > 1 for job in jobs)  # some were in the hands of the dead
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "jobs.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_two_share_a_thousand_jobs_while_one_is_killed(kind: str, tmp_path: Path, valkey: RedisProcess) -> None:
    ledger = Ledger()
    place = str(tmp_path) if kind == "sqlite" else valkey.url
    opened = sqlite_log(tmp_path) if kind == "sqlite" else redis_log(valkey)
    async with opened as log:
        jobs = [new_job(f"t{number % 4}") for number in range(1000)]
        await log.submit(jobs, limits=NO_LIMITS)
        ledger.submitted = {job.id for job in jobs}
        with (
            Child(ledger, kind, place, "victim", str(LEASE_S), "work") as victim,
            Child(ledger, kind, place, "survivor", str(LEASE_S), "work") as survivor,
        ):
            await asyncio.to_thread(victim.wait_lines, 100)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(survivor.wait_lines, 1)
            async with asyncio.timeout(2 * SOON_S):
                while (await log.counts())["succeeded"] < len(jobs):
                    await asyncio.sleep(0.05)
            killed = time.monotonic()
            while len(ledger.finished) < len(jobs) - 3 and time.monotonic() < killed + SOON_S:  # the last words
                await asyncio.sleep(0.01)
        assert await ledger.faults(log) == []
        by_victim = sum(result.startswith("victim") for result in ledger.finished.values())
        assert 0 < by_victim < len(jobs)
        # The victim may have been killed between an acknowledgement and its word: of at most three workers.
        assert len(ledger.finished) >= len(jobs) - 3


async def test_a_durable_redis_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with RedisProcess("--appendonly", "yes", "--appendfsync", "always") as valkey:
        acknowledged: list[str] = []
        async with redis_log(valkey) as log:
            chance = random.Random(3)
            for _ in range(5):
                killing = asyncio.create_task(asyncio.sleep(chance.uniform(0.02, 0.15)))
                submitting = [asyncio.create_task(submit_until_it_fails(log, acknowledged)) for _ in range(8)]
                await killing
                await asyncio.to_thread(valkey.kill)
                async with asyncio.timeout(2 * SOON_S):
                    await asyncio.gather(*submitting)
                await asyncio.to_thread(valkey.start)
                jobs = [await log.get(job_id) for job_id in acknowledged]
                assert all(job is not None and job.state == "queued" for job in jobs)
            assert acknowledged


async def submit_until_it_fails(log: JobLog, acknowledged: list[str]) -> None:
    """Note every job that was acknowledged."""
    while True:
        job = new_job()
        try:
            await log.submit([job], limits=NO_LIMITS)
        except StoreError:
            return
        acknowledged.append(job.id)


async def test_what_is_acknowledged_is_in_the_files(tmp_path: Path) -> None:
    """A copy of them, taken the moment after the acknowledgement, has the job; and SQLite waits for the disk."""
    async with sqlite_log(tmp_path / "log") as log:
        for number in range(20):
            job: NewJob = new_job()
            await log.submit([job], limits=NO_LIMITS)
            copy = tmp_path / f"copy{number}"
            copy.mkdir()
            for name in ("jobs.db", "jobs.db-wal"):
                (copy / name).write_bytes((tmp_path / "log" / name).read_bytes())
            async with sqlite_log(copy) as restored:
                assert await restored.get(job.id) is not None
        writer = sqlite3.connect(tmp_path / "log" / "jobs.db")
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        writer.close()
        assert await log._writer.write("look", lambda db, _: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["jobs.db"]  # closed in good order
