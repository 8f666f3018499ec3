"""`kill -9` of whole gateways and engines under jobs, a hundred times on each store; and two gateways that share jobs.

Jobs are handed in without a pause, each with an Idempotency-Key, and tried again when no answer came. In the end every
job that was accepted must have succeeded, with one recorded result. The engine is a fake one that takes its time.

    python benchmarks/job_faults.py [--kills 100] [--jobs 1000]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import harness

sys.path.insert(0, str(harness.HERE.parent))
from tests.job_gateways import Gateway, Submitter, faults
from tests.redis_server import RedisProcess


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=100, help="on each store; every other one kills the engine")
    parser.add_argument("--jobs", type=int, default=1000, help="that two gateways share")


def killed(kind: str, model: Path, kills: int) -> tuple[int, list[str]]:
    """Jobs that were accepted while one gateway was killed again and again, and what is wrong with them."""
    chance = random.Random(5)
    with tempfile.TemporaryDirectory() as place, RedisProcess() as redis:
        settings = {"store": {"redis": redis.url}} if kind == "redis" else {}
        gateway = Gateway(Path(place), harness.free_port(), model, settings)
        gateway.start()
        submitter = Submitter([gateway.url])
        submitter.thread.start()
        for number in range(kills):
            time.sleep(chance.uniform(0, 0.8))
            if number % 2:
                gateway.kill_engine()
            else:
                gateway.kill()
                gateway.start()
            if number % 10 == 9:
                print(f"{kind}: {number + 1} kills, {len(submitter.accepted)} jobs", flush=True)
        submitter.stop()
        wrong = [f"{job} was accepted twice" for job in submitter.twice]
        wrong += faults(gateway.url, submitter.accepted, [gateway], 300)
        gateway.stop()
        return len(submitter.accepted), wrong


def shared(model: Path, jobs: int) -> tuple[list[int], list[str]]:
    """Jobs that each of two gateways on one Redis did while the first was killed, and what is wrong with any."""
    with tempfile.TemporaryDirectory() as place, RedisProcess() as redis:
        settings = {"store": {"redis": redis.url}}
        gateways = [Gateway(Path(place) / name, harness.free_port(), model, settings) for name in ("a", "b")]
        for gateway in gateways:
            gateway.start()
        submitter = Submitter([gateway.url for gateway in gateways], most=jobs)
        submitter.thread.start()
        while len(submitter.accepted) < jobs // 2:
            time.sleep(0.01)
        gateways[0].kill()
        submitter.thread.join(300)
        wrong = faults(gateways[1].url, submitter.accepted, gateways, 300)
        done = [gateway.recorded().total() for gateway in gateways]
        gateways[1].stop()
        return done, wrong


def main() -> int:
    options = harness.arguments(__doc__, add)
    kills, jobs = (4, 40) if options.quick else (options.kills, options.jobs)
    report = harness.Report("job_faults", ("what", "jobs accepted", "lost, failed or recorded twice"))
    lost = 0
    for kind in ("sqlite", "redis"):
        accepted, wrong = killed(kind, options.model, kills)
        report.rows.append((f"{kind}: {kills} kills, gateway and engine in turn", str(accepted), str(len(wrong))))
        report.raw[kind] = {"accepted": accepted, "wrong": wrong}
        lost += len(wrong)
    done, wrong = shared(options.model, jobs)
    shares = f"two gateways on one Redis, the first killed after half: they did {done[0]} and {done[1]}"
    report.rows.append((shares, str(jobs), str(len(wrong))))
    report.raw["shared"] = {"done": done, "wrong": wrong}
    report.aims.append(harness.Aim("jobs lost, failed or recorded twice", float(lost + len(wrong)), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
