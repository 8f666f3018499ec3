"""What is asked of the simulation: the figures and tables of docs/scaling.md, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scaling.autoscale import Policy
from scaling.balance import BALANCERS
from scaling.clients import BACKS_OFF, GIVES_UP, HAMMERS, OBEYS, OBEYS_SPREAD
from scaling.cluster import Failure, Setup, simulate
from scaling.engine import EngineSpec
from scaling.outcome import BROKEN, REFUSED, SERVED, TIMED_OUT, Outcome, percentile
from scaling.workload import Burst, Work, fill, steps, trace, without_prefix

CHAT = Work()
CONVERSATION = Work(prompt=40.0, answer=80.0, prefix=400, keys=600, zipf=0.8)
SIZES = (1, 2, 5, 10, 30, 100, 300, 1000)
FIRST_P95_S, REFUSED_MOST = 3.0, 0.001


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is simulated: requests of a run, and the fewest for each replica."""

    requests: int = 10_000
    each: int = 30
    sizes: tuple[int, ...] = SIZES
    seconds: float = 600.0
    replicas: int = 20

    def count(self, replicas: int) -> int:
        """Requests for a cluster of this size."""
        return max(self.requests, self.each * replicas)


QUICK = Scale(requests=400, each=5, sizes=(1, 5, 20), seconds=60.0, replicas=4)


def capacity(spec: EngineSpec, work: Work, requests: int = 6000) -> float:
    """Requests a second that one replica answers when it never lacks any."""
    fastest = spec.slots / spec.steps[-1] / work.answer
    case = trace(11, 2 * fastest, requests, work)
    ends = simulate(Setup(spec), case).served().ended
    last = float(case.times[-1])
    return float(((ends > last / 5) & (ends <= last)).sum() / (last * 4 / 5))


def summary(outcome: Outcome, since: float) -> dict[str, float]:
    """The figures of a run that are shown."""
    good = outcome.served(since)
    return {
        "first_p50": percentile(good.first_s, 50),
        "first_p95": percentile(good.first_s, 95),
        "total_p50": percentile(good.total_s, 50),
        "total_p95": percentile(good.total_s, 95),
        "refused": outcome.share(REFUSED, since),
        "hits": float(good.hit.mean()) if len(good.hit) else 0.0,
    }


def one_replica(spec: EngineSpec, full: float, scale: Scale) -> list[dict[str, Any]]:
    """One replica at rising load, with arrivals at random and in waves."""
    rows = []
    for name, burst in (("Poisson", None), ("bursts", Burst())):
        for load in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3):
            case = trace(21, load * full, scale.requests // 2, CHAT, burst)
            since = float(case.times[len(case) // 10])
            rows.append({"arrivals": name, "load": load, **summary(simulate(Setup(spec), case), since)})
    return rows


def balancers(spec: EngineSpec, full: float, scale: Scale, load: float = 0.8) -> list[dict[str, Any]]:
    """Every balancer with 1 to 1,000 replicas at the same load each."""
    rows = []
    for size in scale.sizes:
        for arrivals, burst in (("Poisson", None), ("bursts", Burst(peak=1.5, share=0.3))):
            case = trace(31, load * full * size, scale.count(size), CHAT, burst)
            since = float(case.times[len(case) // 5])
            for name, views in [(name, 1) for name in BALANCERS if name != "prefix affinity"] + [("least loaded", 10)]:
                outcome = simulate(Setup(spec, replicas=size, balancer=name, views=views), case)
                label = name if views == 1 else f"{name}, {views} balancers"
                rows.append({"replicas": size, "arrivals": arrivals, "balancer": label, **summary(outcome, since)})
    return rows


def prefixes(spec: EngineSpec, scale: Scale) -> list[dict[str, Any]]:
    """Requests that share beginnings: who remembers them, by balancer and load. Load is of what 20 replicas carry that
    remember nothing.
    """
    rows = []
    full = capacity(spec, without_prefix(CONVERSATION))
    for load in (0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6):
        case = trace(41, load * full * scale.replicas, scale.requests, CONVERSATION)
        since = float(case.times[len(case) // 4])
        for name in ("round robin", "least loaded", "prefix affinity"):
            outcome = simulate(Setup(spec, replicas=scale.replicas, balancer=name), case)
            rows.append({"load": load, "balancer": name, **summary(outcome, since)})
    return rows


def herd(spec: EngineSpec, full: float, scale: Scale, load: float = 0.8) -> list[dict[str, Any]]:
    """Half of the replicas die, and are ready again after a quarter of the time: what clients do decides the rest."""
    rows = []
    seconds = scale.seconds
    for name, patience in (
        ("give up", GIVES_UP),
        ("again after 50 ms", HAMMERS),
        ("back off to 8 s", BACKS_OFF),
        ("wait for Retry-After", OBEYS),
        ("Retry-After and jitter", OBEYS_SPREAD),
    ):
        case = trace(51, load * full * scale.replicas, int(load * full * scale.replicas * seconds), CHAT)
        died = seconds / 5
        setup = Setup(
            spec,
            replicas=scale.replicas,
            timeout_s=60.0,
            start_s=seconds / 4,
            patience=replace(patience, pause=max(patience.pause, 0.05)),
            failures=(Failure(died, scale.replicas // 2),),
        )
        rows.append({"clients": name, **recovery(simulate(setup, case), died, seconds)})
    return rows


def recovery(outcome: Outcome, died: float, seconds: float) -> dict[str, Any]:
    """Attempts and answers a second over time, and how long after the deaths answers were slow."""
    edges = np.arange(0.0, seconds + 1, seconds / 60)
    width = float(edges[1] - edges[0])
    good = outcome.where(outcome.fate == SERVED)
    attempts = np.histogram(outcome.arrived, edges)[0] / width
    answers = np.histogram(good.ended, edges)[0] / width
    times = [good.first_s[(good.arrived >= low) & (good.arrived < low + width)] for low in edges[:-1]]
    first = [percentile(values, 95) for values in times]
    calm = float(np.nanmax([value for value, low in zip(first, edges[:-1], strict=True) if low + width < died]))
    slow = [
        low + width - died for value, low in zip(first, edges[:-1], strict=True) if low >= died and value > 2 * calm
    ]
    counts = {"broken": outcome.count(BROKEN), "timed_out": outcome.count(TIMED_OUT), "refused": outcome.count(REFUSED)}
    return {
        "at": (edges[:-1] - died).tolist(),
        "attempts": attempts.tolist(),
        "answers": answers.tolist(),
        "first_p95": first,
        "slow_for_s": max(slow, default=0.0),
        "peak": float(attempts.max() / max(1e-9, attempts[edges[:-1] < died].mean())),
        **counts,
    }


def growth(spec: EngineSpec, full: float, scale: Scale) -> list[dict[str, Any]]:
    """Load is three times as high from one moment on, for as long as it lasts: what the autoscaler does, and when."""
    rows = []
    seconds, before = 2 * scale.seconds, scale.replicas
    policies = (
        ("CPU at 80 %", Policy("cpu", 0.8, least=2, most=4 * before), 5.0),
        ("8 requests a replica", Policy("requests", 8.0, least=2, most=4 * before), 5.0),
        ("4 requests a replica", Policy("requests", 4.0, least=2, most=4 * before), 5.0),
        ("4 requests a replica, 60 s to start", Policy("requests", 4.0, least=2, most=4 * before), 60.0),
    )
    base = 0.5 * full * before
    levels = ((seconds / 4, base), (seconds / 2, 3 * base), (seconds / 4, base))
    rng = np.random.default_rng(61)
    case = fill(rng, steps(rng, levels), CHAT)
    for name, policy, start_s in policies:
        outcome = simulate(Setup(spec, replicas=before, start_s=start_s, policy=policy), case)
        edges = np.arange(0.0, seconds + 1, seconds / 80)
        good = outcome.served()
        width = edges[1]
        first = [percentile(good.first_s[(good.arrived >= t) & (good.arrived < t + width)], 95) for t in edges[:-1]]
        ready = [float(at) for at, _, _ in outcome.replicas], [float(number) for _, number, _ in outcome.replicas]
        rows.append(
            {
                "policy": name,
                "at": edges[:-1].tolist(),
                "first_p95": first,
                "ready_at": ready[0],
                "ready": ready[1],
                "refused": outcome.count(REFUSED),
                "requests": outcome.arrivals,
                "most": max(ready[1]),
                "seconds": seconds,
            }
        )
    return rows


def carried(spec: EngineSpec, full: float, scale: Scale) -> list[dict[str, Any]]:
    """The highest load at which the promise is kept (95 % of first tokens within three seconds, one refusal in a
    thousand at most), by the number of replicas.
    """
    rows = []
    for size in scale.sizes:
        for name in ("random", "least loaded"):
            low, high = 0.05, 1.0
            for _ in range(5):
                load = (low + high) / 2
                case = trace(71, load * full * size, scale.count(size), CHAT)
                seen = summary(
                    simulate(Setup(spec, replicas=size, balancer=name), case), float(case.times[len(case) // 5])
                )
                kept = seen["first_p95"] <= FIRST_P95_S and seen["refused"] <= REFUSED_MOST
                low, high = (load, high) if kept else (low, load)
            rows.append({"replicas": size, "balancer": name, "load": low, "per_s": low * full * size})
    return rows
