"""A process that submits, claims and finishes jobs until it is killed, and says what was acknowledged to it.

    python tests/job_child.py sqlite DIRECTORY NAME LEASE_S [work]
    python tests/job_child.py redis URL NAME LEASE_S [work]

One line on standard output for each acknowledgement, written after it: `submitted ID`, `claimed ID`, `finished ID
RESULT`. With `work` it submits nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path

from stoker.store.jobs import JobLog, NewJob, QueueLimits
from stoker.store.redis import RedisServer
from stoker.store.redis_jobs import RedisJobs
from stoker.store.sqlite_jobs import open_sqlite_jobs

LIMITS = QueueLimits(200, 200)  # so that submitting does not run ahead of the work


def say(*words: str) -> None:
    """One line, at once, or none."""
    os.write(1, (" ".join(words) + "\n").encode())


async def submit(log: JobLog, name: str) -> None:
    """Submit for ever."""
    while True:
        job_id = f"{time.time_ns():020x}{secrets.token_hex(6)}"
        job = NewJob(job_id, f"tenant-{secrets.randbelow(3)}", "/query", secrets.token_bytes(secrets.randbelow(3000)))
        try:
            await log.submit([job], limits=LIMITS)
        except Exception as error:
            if getattr(error, "code", "") != "queue_full":
                raise
            await asyncio.sleep(0.002)
        else:
            say("submitted", job_id, name)


async def work(log: JobLog, name: str, lease_s: float) -> None:
    """Claim and finish for ever."""
    while True:
        await log.wait_work(1)
        for one in await log.claim(name, lease_s, 4):
            say("claimed", one.job.id, name)
            await asyncio.sleep(0.001)
            result = f"{name}-{secrets.token_hex(8)}"
            if await log.finish(one.job.id, one.token, "succeeded", result=result.encode()):
                say("finished", one.job.id, result)


async def main(kind: str, place: str, name: str, lease_s: str, *rest: str) -> None:
    """Do everything at once."""
    log: JobLog
    if kind == "sqlite":
        log = await open_sqlite_jobs(Path(place), 30)
    else:
        log = RedisJobs(RedisServer(place, "test:", 30))
    async with asyncio.TaskGroup() as group:
        for _ in range(0 if "work" in rest else 4):
            group.create_task(submit(log, name))
        for _ in range(3):
            group.create_task(work(log, name, float(lease_s)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
