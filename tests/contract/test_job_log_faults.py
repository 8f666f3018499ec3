"""Job logs on full disks, in broken or locked files, behind a Redis that is away: words in time, no false promise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.job_logs import NO_LIMITS, SOON_S, new_job, redis_log, sqlite_log
from tests.redis_server import RedisProcess
from tests.small_disk import small_disk

from stoker.store import sqlite_file
from stoker.store.jobs import JobLog
from stoker.store.protocols import StoreError
from stoker.store.sqlite_jobs import SqliteJobs, open_sqlite_jobs

LARGE = b"x" * 200_000
SHORT_S = 0.3


@pytest.fixture
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "3m") as place:
        yield place


async def submit_until_it_fails(log: JobLog) -> tuple[list[str], StoreError]:
    acknowledged = []
    for _ in range(1000):
        job = new_job(request=LARGE)
        try:
            await log.submit([job], limits=NO_LIMITS)
        except StoreError as error:
            return acknowledged, error
        acknowledged.append(job.id)
    raise AssertionError("it never failed")


async def works(log: JobLog) -> None:
    job = new_job()
    await log.submit([job], limits=NO_LIMITS)
    assert await log.get(job.id) is not None
    await log.ping()


async def test_a_full_disk_takes_nothing_and_loses_nothing(disk: Path) -> None:
    async with sqlite_log(disk) as log:
        acknowledged, error = await submit_until_it_fails(log)
        assert error.reason in {"full", "io"}
        assert str(disk / "jobs.db") in error.message
        assert acknowledged
        with pytest.raises(StoreError):  # and so it goes on, and says so again
            await log.submit([new_job(request=LARGE)], limits=NO_LIMITS)
        assert [job.id for job in (await log.page(oldest_first=True)).jobs] == acknowledged
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        await works(log)
    async with sqlite_log(disk) as log:
        jobs = [await log.get(job_id) for job_id in acknowledged]
        assert all(job is not None and job.request == LARGE for job in jobs)


async def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        assert isinstance(log, SqliteJobs)
        await log._writer.write("limit", lambda db, _: db.execute("PRAGMA max_page_count = 200").fetchone())
        acknowledged, error = await submit_until_it_fails(log)
        assert (error.reason, error.status) == ("full", 503)
        assert "free some space" in error.message
        assert [job.id for job in (await log.page(oldest_first=True)).jobs] == acknowledged
        await log._writer.write("limit", lambda db, _: db.execute("PRAGMA max_page_count = 100000").fetchone())
        await works(log)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 30, b"\x00" * 8192])
async def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jobs.db").write_bytes(content)
    with pytest.raises(StoreError) as refused:
        await open_sqlite_jobs(tmp_path)
    assert refused.value.reason == "corrupt"
    assert str(tmp_path / "jobs.db") in refused.value.message
    assert (tmp_path / "jobs.db").read_bytes() == content


async def test_a_file_that_is_broken_off(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        await log.submit([new_job(request=LARGE) for _ in range(20)], limits=NO_LIMITS)
    path = tmp_path / "jobs.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError) as refused:
        async with sqlite_log(tmp_path) as log:
            await log.page(bodies=True)
    assert refused.value.reason == "corrupt"


async def test_a_file_that_is_damaged(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        await log.submit([new_job(request=LARGE) for _ in range(20)], limits=NO_LIMITS)
    path = tmp_path / "jobs.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        pages = "SELECT rootpage FROM sqlite_schema WHERE tbl_name IN ('jobs', 'bodies') AND rootpage"
        roots = db.execute(pages).fetchall()
    with path.open("r+b") as file:
        for (root,) in roots:
            file.seek((root - 1) * 4096)
            file.write(b"\xa5" * 4096)
    async with sqlite_log(tmp_path) as log:
        for ask in (log.page(bodies=True), log.claim("w", 10, 5), log.submit([new_job()], limits=NO_LIMITS)):
            with pytest.raises(StoreError) as refused:
                await ask
            assert refused.value.reason == "corrupt"
            assert "backup" in refused.value.message


async def test_a_file_that_is_put_in_order_is_taken_up_again(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        assert isinstance(log, SqliteJobs)
        await works(log)

        def fail(*_: object) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        with pytest.raises(StoreError):
            await log._writer.write("break", fail)
        assert log._writer._db is None
        await works(log)


async def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "jobs.db")
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    with pytest.raises(StoreError) as refused:
        await open_sqlite_jobs(tmp_path)
    assert "another program's" in refused.value.message


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        await works(log)
    db = sqlite3.connect(tmp_path / "jobs.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError) as refused:
        await open_sqlite_jobs(tmp_path)
    assert (refused.value.reason, "newer Stoker" in refused.value.message) == ("version", True)


async def test_a_file_of_an_older_version_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sqlite_log(tmp_path) as log:
        await works(log)
    change = Path(sqlite_file.__file__).parent / "test_change.sql"
    change.write_text("-- A change; and a comment.\nCREATE TABLE added (x);\nINSERT INTO added VALUES (1);\n")
    try:
        monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, change.name))
        for _ in range(2):  # once
            async with sqlite_log(tmp_path) as log:
                await works(log)
    finally:
        change.unlink()
    db = sqlite3.connect(tmp_path / "jobs.db")
    assert db.execute("SELECT count(*) FROM added").fetchone() == (1,)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()


async def test_two_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    logs = await asyncio.gather(*(open_sqlite_jobs(tmp_path) for _ in range(4)))
    for log in logs:
        await works(log)
        await log.close()


async def test_a_lock_is_not_waited_for_forever(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path, SHORT_S) as log:
        await works(log)
        other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(SOON_S):
            for ask in (log.submit([new_job()], limits=NO_LIMITS), log.claim("w", 1, 1), log.ping(), log.collect()):
                with pytest.raises(StoreError) as refused:
                    await ask
                assert refused.value.reason in {"locked", "timeout"}
            assert len((await log.page()).jobs) == 1  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        await works(log)
        assert len((await log.page()).jobs) == 2


async def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    hang = threading.Event()
    async with sqlite_log(tmp_path, SHORT_S) as log:
        assert isinstance(log, SqliteJobs)
        late = [asyncio.create_task(log._writer.write("hang", lambda *_: hang.wait()))]
        await asyncio.sleep(0.05)
        late += [asyncio.create_task(log.submit([new_job()], limits=NO_LIMITS)) for _ in range(3000)]
        async with asyncio.timeout(SOON_S):
            failures = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(failure, StoreError) and failure.reason == "timeout" for failure in failures)
        assert log._writer._inbox.qsize() <= 1024
        hang.set()
        async with asyncio.timeout(SOON_S):
            while True:
                with contextlib.suppress(StoreError):
                    await works(log)
                    break
        assert len((await log.page()).jobs) == 1  # what nobody waits for is not done


async def test_one_bad_change_spoils_no_other(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        assert isinstance(log, SqliteJobs)

        def bad(db: sqlite3.Connection, _: set[str]) -> None:
            db.execute("INSERT INTO jobs (id) VALUES ('incomplete')")

        def worse(db: sqlite3.Connection, _: set[str]) -> None:
            db.execute("INSERT INTO probe VALUES (7, 7)")
            raise ZeroDivisionError

        hold = threading.Event()
        asks: list[Any] = [log._writer.write("hold", lambda *_: hold.wait())]
        for _ in range(5):
            asks += [
                log.submit([new_job()], limits=NO_LIMITS),
                log._writer.write("x", bad),
                log._writer.write("y", worse),
            ]
        tasks = [asyncio.create_task(ask) for ask in asks]
        await asyncio.sleep(0.05)
        hold.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers[1:4]] == ["Submission", "StoreError", "ZeroDivisionError"]
        assert len((await log.page()).jobs) == 5
        assert await log._writer.read("z", lambda db: db.execute("SELECT count(*) FROM probe").fetchone()) == (0,)


async def test_the_files_are_their_owner_s(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with sqlite_log(tmp_path / "new" / "place") as log:
            await works(log)
            files = list((tmp_path / "new" / "place").iterdir())
            assert len(files) == 3
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
            assert stat.S_IMODE((tmp_path / "new" / "place").stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as refused:
        await open_sqlite_jobs(tmp_path / "file" / "jobs")
    assert str(tmp_path / "file" / "jobs") in refused.value.message


async def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = await open_sqlite_jobs(tmp_path)
    waiting = asyncio.create_task(log.wait_work(SOON_S))
    submitting = asyncio.create_task(log.submit([new_job()], limits=NO_LIMITS))
    await asyncio.sleep(0.05)
    await log.close()
    await log.close()
    assert (await submitting).jobs
    for ask in (log.get("x"), log.submit([new_job()], limits=NO_LIMITS)):
        with pytest.raises(StoreError) as refused:
            await ask
        assert refused.value.reason == "down"
    async with asyncio.timeout(SOON_S):
        await asyncio.gather(waiting, return_exceptions=True)


async def test_nothing_of_sqlite_runs_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_loop: list[str] = []

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if threading.current_thread() is threading.main_thread():
                on_the_loop.append(sql)
            return super().execute(sql, *arguments)

        def close(self) -> None:
            if threading.current_thread() is threading.main_thread():
                on_the_loop.append("close")
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite_file.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Watched))
    async with sqlite_log(tmp_path) as log:
        await works(log)
        (claimed,) = await log.claim("w", 10, 1)
        await log.append(claimed.job.id, claimed.token, [b"x"])
        await log.finish(claimed.job.id, claimed.token, "succeeded")
        await log.collect()
        assert not await log.wait_work(0.01)
    assert on_the_loop == []


async def test_free_space_goes_back_to_the_disk(tmp_path: Path) -> None:
    async with sqlite_log(tmp_path) as log:
        await log.submit([new_job(request=LARGE, keep_s=0) for _ in range(150)], limits=NO_LIMITS)
        for one in await log.claim("w", 10, 150):
            await log.finish(one.job.id, one.token, "succeeded")
        assert (await log.collect()).removed == 150
        await log.submit([new_job()], limits=NO_LIMITS)
    full = (tmp_path / "jobs.db").stat().st_size
    for _ in range(5):  # the file shrinks when its log is folded in, which a reader that is still there puts off
        async with sqlite_log(tmp_path) as log:
            for number in range(1, 12):
                await log.cancel((await log.page(states=["queued"])).jobs[0].id, now=number)
                await log.collect(now=1e10)
                await log.submit([new_job()], limits=NO_LIMITS)
        if (tmp_path / "jobs.db").stat().st_size < full:
            break
    assert (tmp_path / "jobs.db").stat().st_size < full


async def test_redis_is_away(valkey: RedisProcess) -> None:
    async with redis_log(valkey, SHORT_S) as log:
        await works(log)
        valkey.kill()
        async with asyncio.timeout(SOON_S):
            for ask in (log.submit([new_job()], limits=NO_LIMITS), log.claim("w", 1, 1), log.get("x"), log.collect()):
                with pytest.raises(StoreError) as refused:
                    await ask
                assert refused.value.reason == "connection"
                assert str(valkey.socket) in refused.value.message
            waits = (log.wait_work(SOON_S), log.wait_ended("x", SOON_S), log.wait_callbacks(SOON_S))
            for failure in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(failure, StoreError)
        valkey.start()
        await works(log)


async def test_redis_does_not_answer(valkey: RedisProcess) -> None:
    async with redis_log(valkey, SHORT_S) as log:
        await works(log)
        waiting = asyncio.create_task(log.wait_ended((await log.page()).jobs[0].id, SOON_S))
        await asyncio.sleep(0.05)
        valkey.pause()
        async with asyncio.timeout(SOON_S):
            for ask in (log.submit([new_job()], limits=NO_LIMITS), log.claim("w", 1, 1), log.wait_work(SOON_S)):
                with pytest.raises(StoreError) as refused:
                    await ask
                assert refused.value.reason == "timeout"
        valkey.resume()
        await works(log)
        await log.cancel((await log.page(oldest_first=True)).jobs[0].id)
        ended = await waiting
        assert ended is not None
        assert ended.state == "cancelled"


async def test_redis_is_full_or_only_reads(valkey: RedisProcess) -> None:
    async with redis_log(valkey) as log:
        await works(log)
        valkey.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreError) as refused:
            await log.submit([new_job()], limits=NO_LIMITS)
        assert refused.value.reason == "response"
        valkey.command("CONFIG", "SET", "maxmemory", "0")
        valkey.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreError):
            await log.submit([new_job()], limits=NO_LIMITS)
        valkey.command("REPLICAOF", "NO", "ONE")
        await works(log)
        assert (await log.counts())["queued"] == 2


async def test_redis_forgets_the_scripts(valkey: RedisProcess) -> None:
    async with redis_log(valkey) as log:
        await works(log)
        valkey.command("SCRIPT", "FLUSH")
        await works(log)


async def test_redis_s_clock_counts_not_the_replica_s(valkey: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async with redis_log(valkey) as log:
        monkeypatch.setattr(time, "time", lambda: 1.0)
        (job,) = (await log.submit([new_job()], limits=NO_LIMITS)).jobs
        seconds = int(valkey.command("TIME").split(b"\r\n")[2])
        assert abs(job.created - seconds) < SOON_S
        assert len(await log.claim("w", 10, 1)) == 1
        assert not await log.wait_work(0)


async def test_redis_s_settings_that_endanger_jobs_are_named(valkey: RedisProcess, tmp_path: Path) -> None:
    async with redis_log(valkey) as log, sqlite_log(tmp_path) as durable:
        assert ["append-only" in text for text in await log.warnings()] == [True]
        valkey.command("CONFIG", "SET", "appendonly", "yes")
        valkey.command("CONFIG", "SET", "maxmemory", "100mb")
        valkey.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert ["evict" in text for text in await log.warnings()] == [True]
        valkey.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        assert await log.warnings() == []
        assert await durable.warnings() == []


async def test_nothing_is_left_in_redis(valkey: RedisProcess) -> None:
    async with redis_log(valkey) as log:
        jobs = [new_job(batch="b", callback=b"url", expires_at=time.time() + 99, keep_s=0) for _ in range(3)]
        jobs.append(new_job(not_before=time.time() + 99, keep_s=0))
        await log.submit(jobs, limits=NO_LIMITS)
        first, second = await log.claim("w", 10, 2)
        await log.append(first.job.id, first.token, [b"x"])
        await log.finish(first.job.id, first.token, "succeeded", result=b"r")
        await log.retry(second.job.id, second.token, b"busy")
        for job in jobs:
            await log.cancel(job.id)
        assert (await log.collect()).removed == 4
        assert await log.claim("w", 10, 2) == []
        await log.claim("w", 10, 2, now=time.time() + 100)  # whose turn it was is forgotten when it has come
        assert valkey.command("KEYS", "*") == b"*0\r\n"
