"""The same small case twice: two real `stoker serve` behind a client that takes turns, and the simulation.

Engines are the tests' fake one, which answers at a fixed speed. Arrivals and lengths are the same trace on both sides,
so that what differs is the server and not the dice. How long a token takes is read from the first case, since whatever
else runs on the machine slows the engines; how long requests wait is what the simulation must find by itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import harness
from scaling.cluster import Setup, simulate
from scaling.engine import EngineSpec
from scaling.outcome import SERVED
from scaling.replica import LineSpec
from scaling.workload import Trace, Work, trace
from stoker.cli import loadgen
from stoker.cli.loadgen import Target
from stoker.cli.loadstats import Sample

FAKE = harness.HERE.parent / "tests" / "fake_engine.py"
SLOTS, REPLICAS, QUEUE = 2, 2, 6
FIRST_S, TOKEN_S = 0.2, 0.04
WORK = Work(prompt=0.0, answer=20.0, answer_spread=0.6, limit=100)


@dataclass(frozen=True, slots=True)
class Seen:
    """One side of a case: seconds of answered requests, and the share that was answered."""

    first_mean: float
    total_mean: float
    total_p95: float
    answered: float


def of_samples(samples: list[Sample]) -> Seen:
    """What the clients saw."""
    good = [sample for sample in samples if sample.error is None]
    totals = np.array([sample.total_ms / 1000 for sample in good])
    firsts = np.array([(sample.first_ms or sample.total_ms) / 1000 for sample in good])
    return Seen(float(firsts.mean()), float(totals.mean()), float(np.percentile(totals, 95)), len(good) / len(samples))


def simulated(case: Trace, spec: EngineSpec) -> Seen:
    """What the simulation says."""
    setup = Setup(spec, replicas=REPLICAS, balancer="round robin", line=LineSpec(max_requests=QUEUE))
    outcome = simulate(setup, case)
    good = outcome.served()
    return Seen(
        float(good.first_s.mean()),
        float(good.total_s.mean()),
        float(np.percentile(good.total_s, 95)),
        outcome.share(SERVED),
    )


async def send_trace(targets: list[Target], case: Trace) -> list[Sample]:
    """Each request at its instant to the next of the servers, whether earlier ones were answered or not."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(loadgen.session_for(target)) for target in targets]
        begun = time.perf_counter()
        sent: list[asyncio.Task[Sample]] = []
        for number, (due, answer) in enumerate(zip(case.times.tolist(), case.answers.tolist(), strict=True)):
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            turn = number % len(targets)
            target = replace(targets[turn], max_tokens=max(1, round(answer)))
            sent.append(asyncio.create_task(loadgen.send(sessions[turn], target, f"Request {number}.")))
        return list(await asyncio.gather(*sent))


def whole_tokens(case: Trace) -> Trace:
    """The trace with answers of whole tokens, at least one."""
    return replace(case, answers=np.maximum(1.0, np.round(case.answers)))


def speed(samples: list[Sample]) -> tuple[float, float]:
    """Seconds to the first token without a wait, and for each token, as these samples show them: the former by the
    tenth percentile, because at this load more than a tenth find a free slot.
    """
    good = [sample for sample in samples if sample.error is None and sample.per_token_ms is not None]
    gaps = sum(sample.completion_tokens - 1 for sample in good if sample.completion_tokens)
    spent = sum(sample.last - sample.first for sample in good if sample.last and sample.first)
    firsts = [sample.first_ms / 1000 for sample in good if sample.first_ms]
    return float(np.percentile(firsts, 10)), spent / gaps


def compare(options: Any) -> dict[str, Any]:
    """Both sides of a case below capacity and of one above it."""
    count = 30 if options.quick else 200
    capacity = REPLICAS * SLOTS / (FIRST_S + TOKEN_S * WORK.answer)
    with tempfile.TemporaryDirectory(prefix="stoker-scaling-") as folder, ExitStack() as stack:
        control = Path(folder) / "control.json"
        control.write_text(json.dumps({"tokens": 1000, "first_delay": FIRST_S, "delay": TOKEN_S}), encoding="utf-8")
        command = [sys.executable, str(FAKE), "--socket", "{socket}", "--control", str(control)]
        model = {"name": "model", "source": str(options.model), "command": command}
        settings = {"plan": {"slots": SLOTS}, "queue": {"max_requests": QUEUE}}
        fronts = [stack.enter_context(harness.gateway(model, **settings)) for _ in range(REPLICAS)]
        targets = [Target(base=loadgen.parse_address(front.url)[0], model="model") for front in fronts]
        cases: dict[str, Any] = {"cases": {}}
        seen: tuple[float, float] | None = None
        for name, load in (("at 0.85 of capacity", 0.85), ("at 1.4 times capacity", 1.4)):
            case = whole_tokens(trace(3, load * capacity, count, WORK))
            samples = asyncio.run(send_trace(targets, case))
            seen = seen or speed(samples)
            spec = EngineSpec((seen[1],) * SLOTS, first_s=seen[0])
            sides = {"real": of_samples(samples), "simulated": simulated(case, spec)}
            cases["cases"][name] = {"first_s": seen[0], "token_s": seen[1], **sides}
    return cases
