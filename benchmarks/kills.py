"""`kill -9` of the engine process, fifty times, under load: is any request lost that had not begun?

Every request must either be answered in full, or have begun (its client has seen a token) and end with an explicit
error event. One that fails before its first token, or stops without a word, is lost.

    python benchmarks/kills.py [--kills 50] [--clients 8] [--stub]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections import Counter

import aiohttp
import psutil

import harness
from stoker.cli import loadgen
from stoker.cli.bench import PROMPTS
from stoker.cli.loadgen import Prompts, Target
from stoker.cli.loadstats import Sample

ENGINE_LIMIT_S = 60.0


def fate(sample: Sample) -> str:
    """What became of a request, in the words of this benchmark's table."""
    if sample.error is None:
        return "answered in full"
    if sample.first is None:
        return f"LOST before its first token ({sample.error})"
    if sample.error.startswith("error in the stream"):
        return "begun, ended with an error event"
    return f"LOST in silence ({sample.error})"


async def kill_engines(front: harness.Running, kills: int, samples: list[Sample], seed: int) -> int:
    """Kill each new engine process at a random instant of its life, `kills` of them; returns how many were killed."""
    chance = random.Random(seed)
    last = 0
    killed = 0
    while killed < kills:
        engine = await asyncio.wait_for(next_engine(front, last), ENGINE_LIMIT_S)
        last = engine.pid
        # Some die while they load, most while they answer: an engine that never answers must not count as hopeless.
        if killed % 10 != 9:
            seen = len(samples)
            while len(samples) < seen + 2:
                await asyncio.sleep(0.02)
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        try:
            engine.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
        killed += 1
        print(f"{killed} kills, {len(samples)} requests", flush=True)
    return killed


async def next_engine(front: harness.Running, last: int) -> psutil.Process:
    """The engine process, once it is another one than the last."""
    while True:
        engine = front.engine()
        if engine is not None and engine.pid != last:
            return engine
        await asyncio.sleep(0.02)


async def run(front: harness.Running, kills: int, clients: int) -> tuple[int, list[Sample]]:
    """Load and kills at once; the requests under way at the end are read to theirs."""
    base, socket = loadgen.parse_address(front.url)
    target = Target(base=base, socket=socket, model="model", max_tokens=24, timeout=120)
    prompts = Prompts(PROMPTS, 5)
    samples: list[Sample] = []
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while not over.is_set():
            samples.append(await loadgen.send(session, target, prompts.make(number, turn)))
            turn += 1

    async with loadgen.session_for(target) as session, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(session, number))
        killed = await kill_engines(front, kills, samples, 5)
        over.set()
    return killed, samples


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--stub", action="store_true", help="kill stub engines instead of real ones")


def main() -> int:
    options = harness.arguments(__doc__, add)
    kills = 3 if options.quick else options.kills
    with harness.gateway(harness.engine_model(options, 20.0)) as front:
        killed, samples = asyncio.run(run(front, kills, options.clients))
    fates = Counter(fate(sample) for sample in samples)
    lost = sum(count for kind, count in fates.items() if kind.startswith("LOST"))
    report = harness.Report("kills", ("what became of the requests", "number"))
    report.rows = [(kind, str(count)) for kind, count in fates.most_common()]
    report.notes.append(
        f"{killed} kills with SIGKILL, {len(samples)} streamed requests from {options.clients} clients."
    )
    if options.stub:
        report.notes.append("The engines were stubs.")
    report.raw = {"kills": killed, "fates": fates}
    report.aims.append(harness.Aim("requests lost", lost, 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
