"""`kill -9` of processes that work on the job log, a hundred times on each store: is anything lost or doubled?

A process submits, claims and finishes jobs at once, and says what was acknowledged to it; it is killed at a random
moment and another takes its place. In the end every acknowledged job must be there and have ended, and every
acknowledged result must be the recorded one. `tests/job_child.py` is the process.

    python benchmarks/job_kills.py [--kills 100] [--directory ON_A_REAL_DISK]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

import harness
from job_log import KINDS, redis_url
from stoker.store.jobs import JobLog
from stoker.store.redis import RedisServer
from stoker.store.redis_jobs import RedisJobs
from stoker.store.sqlite_jobs import open_sqlite_jobs

sys.path.insert(0, str(harness.HERE.parent))
from tests.job_ledger import Child, Ledger

LEASE_S = 0.5
LIFE_S = 0.4  # of a process after its first acknowledgement, at most


def kill(ledger: Ledger, kind: str, place: str, kills: int) -> None:
    chance = random.Random(11)
    for number in range(kills):
        with Child(ledger, kind, place, f"w{number}", str(LEASE_S)) as child:
            child.wait_lines(1)
            child.wait(chance.uniform(0, LIFE_S))
        print(f"{kind}: {number + 1} kills, {len(ledger.submitted)} jobs", flush=True)


async def account(log: JobLog, ledger: Ledger) -> tuple[list[str], int]:
    """What is wrong, at once and after the rest of the work is done; and how many jobs were taken from the dead."""
    faults = await ledger.faults(log)
    await ledger.finish_all(log)
    faults += await ledger.faults(log)
    jobs = [await log.get(job_id) for job_id in ledger.submitted]
    return sorted(set(faults)), sum(job is not None and job.attempts > 1 for job in jobs)


async def settle(kind: str, place: str, ledger: Ledger) -> tuple[list[str], int]:
    if kind == "sqlite":
        log: JobLog = await open_sqlite_jobs(Path(place), 30)
        found = await account(log, ledger)
        await log.close()
        return found
    server = RedisServer(place, "test:", 30)
    log = RedisJobs(server)
    found = await account(log, ledger)
    await log.close()
    await server.close()
    return found


def measure(kind: str, place: str, kills: int, report: harness.Report) -> None:
    ledger = Ledger()
    kill(ledger, kind, place, kills)
    faults, taken_over = asyncio.run(settle(kind, place, ledger))
    submitted, finished = len(ledger.submitted), len(ledger.finished)
    report.rows.append((kind, str(kills), f"{submitted:,}", f"{finished:,}", str(taken_over), str(len(faults))))
    report.raw[kind] = {"kills": kills, "submitted": submitted, "finished": finished, "faults": faults}
    report.aims.append(harness.Aim(f"{kind}: jobs lost, results lost, changed or doubled", len(faults), 0, ""))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, default=harness.HERE, help="where the logs lie: on a real disk")
    parser.add_argument("--kills", type=int, default=100)


def main() -> int:
    options = harness.arguments(__doc__, add)
    kills = 3 if options.quick else options.kills
    columns = ("store", "kills", "jobs acknowledged", "results acknowledged", "taken over from the dead", "faults")
    report = harness.Report("job_kills", columns)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for kind in KINDS:
            if kind == "sqlite":
                measure(kind, directory, kills, report)
            else:
                with redis_url(Path(directory)) as url:
                    measure(kind, url, kills, report)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
