"""Five times its capacity for a minute: how much is still answered, how quickly the rest is refused.

Capacity is what a closed loop of clients gets, before and after; the overload is an open loop: requests arrive at
random (Poisson) at five times that rate, whether earlier ones were answered or not.

An admitted request waits for at most the queue's bound divided by the rate; with those at the engine counted too, that
is also the bound of its whole time.

    python benchmarks/overload.py [--seconds 60] [--factor 5] [--stub]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

import harness
from harness import Aim
from stoker.cli import loadgen
from stoker.cli.bench import PROMPTS
from stoker.cli.loadgen import Prompts, Target
from stoker.cli.loadstats import Sample, percentile
from stoker.config import QueueConfig

SETTLE_S = 4.0
"""Seconds at the start of a phase that do not count: the first answers are still under way."""


async def closed(target: Target, clients: int, seconds: float, seed: int) -> tuple[float, list[Sample]]:
    """Keep the engine full for a while; returns the phase's start and its samples."""
    async with loadgen.session_for(target) as session:
        begun = time.perf_counter()
        return begun, await loadgen.run_level(session, target, Prompts(PROMPTS, seed), clients, duration=seconds)


async def flood(target: Target, rate: float, seconds: float, seed: int) -> tuple[float, list[Sample]]:
    """Send requests at random instants, `rate` a second on average; returns the phase's start and its samples."""
    prompts = Prompts(PROMPTS, seed)
    chance = random.Random(seed)
    async with loadgen.session_for(target) as session:
        begun = time.perf_counter()
        due = begun
        sent: list[asyncio.Task[Sample]] = []
        while (due := due + chance.expovariate(rate)) < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent.append(asyncio.create_task(loadgen.send(session, target, prompts.make(0, len(sent)))))
        return begun, list(await asyncio.gather(*sent))


def answers_per_s(begun: float, seconds: float, samples: Sequence[Sample]) -> float:
    """Complete answers a second that ended within a phase, its settling time left out."""
    ended = [s.ended - begun for s in samples if s.error is None]
    return sum(SETTLE_S <= instant <= seconds for instant in ended) / (seconds - SETTLE_S)


def percentiles(values: Sequence[float]) -> str:
    """p50 and p99 of milliseconds."""
    if not values:
        return "none"
    return f"p50 {percentile(values, 50):.1f} ms, p99 {percentile(values, 99):.1f} ms"


def longest(values: Sequence[float]) -> float:
    """p99 of milliseconds, in seconds; 0 without any."""
    return percentile(values, 99) / 1000 if values else 0.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--stub", action="store_true", help="a stub engine instead of the real one")


def main() -> int:
    options = harness.arguments(__doc__, add)
    seconds, calm = (8.0, 8.0) if options.quick else (options.seconds, options.seconds / 2)
    bound = QueueConfig().max_requests
    with harness.gateway(harness.engine_model(options, 10.0)) as front:
        twin = front.engine()
        words = twin.cmdline() if twin else []
        slots = int(words[words.index("--slots") + 1]) if "--slots" in words else 8
        base, socket = loadgen.parse_address(front.url)
        target = Target(base=base, socket=socket, model="model", max_tokens=options.tokens, ignore_eos=True)
        asyncio.run(closed(target, 1, 0.1, 0))
        before = answers_per_s(*_spread(asyncio.run(closed(target, 2 * slots, calm, 1)), calm))
        if before == 0:
            sys.exit(f"no answer within {calm:.0f} s: this machine is too busy to measure on")
        begun, samples = asyncio.run(flood(target, options.factor * before, seconds, 2))
        during = answers_per_s(begun, seconds, samples)
        after = answers_per_s(*_spread(asyncio.run(closed(target, 2 * slots, calm, 3)), calm))
    capacity = (before + after) / 2
    answered = [s for s in samples if s.error is None]
    refused = [s.total_ms for s in samples if s.error and s.error.startswith(("HTTP 503", "HTTP 429"))]
    first = [s.first_ms for s in answered if s.first_ms is not None]
    total = [s.total_ms for s in answered]
    allowed = bound / capacity
    offered = len(samples) / seconds
    kinds = Counter(s.error or "answered" for s in samples)
    report = harness.Report("overload", ("what", "measured"))
    report.rows = [
        ("capacity, closed loop, before and after", f"{before:.2f} and {after:.2f} answers/s"),
        (
            "offered",
            f"{offered:.1f} requests/s for {seconds:.0f} s, {offered / capacity:.1f} times capacity",
        ),
        ("answered meanwhile", f"{during:.2f} answers/s, {during / capacity:.3f} of capacity"),
        ("refusals", percentiles(refused)),
        ("admitted requests, to the first token", percentiles(first)),
        ("admitted requests, to the end", percentiles(total)),
        ("queue bound divided by rate", f"{bound} / {capacity:.2f} = {allowed * 1000:.0f} ms"),
        (
            "the same with the engine's slots",
            f"{bound + slots} / {capacity:.2f} = {(bound + slots) / capacity * 1000:.0f} ms",
        ),
        ("outcomes", ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())),
    ]
    report.raw = {"before": before, "after": after, "during": during, "slots": slots, "queue": bound, "outcomes": kinds}
    report.raw |= {"refused_ms": refused, "first_ms": first, "total_ms": total}
    if not options.quick:
        report.aims = [
            Aim("answered under overload, of capacity", during / capacity, 0.95, "", at_most=False),
            Aim("refusal, p99", percentile(refused, 99) if refused else 0.0, 50.0, "ms"),
            Aim("admitted requests to the first token, p99", longest(first), bound / capacity, "s"),
            Aim("admitted requests to the end, p99", longest(total), (bound + slots) / capacity, "s"),
        ]
    return report.finish(options.out)


def _spread(phase: tuple[float, list[Sample]], seconds: float) -> tuple[float, float, list[Sample]]:
    begun, samples = phase
    return begun, seconds, samples


if __name__ == "__main__":
    sys.exit(main())
