"""The scenarios as Markdown tables, for docs/scaling.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import markdown
from scaling.measure import Measured
from scaling.scenarios import CHAT


def tables(measured: Measured, full: float, found: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/scaling.md by the name of their place."""
    return {
        "measured": measured_table(measured, full),
        "one_replica": one_replica_table(found["one_replica"], full),
        "carried": carried_table(found["carried"]),
        "balancers": balancers_table(found["balancers"]),
        "prefixes": prefixes_table(found["prefixes"]),
        "herd": herd_table(found["herd"]),
        "growth": growth_table(found["growth"]),
        "limits": limits_table(measured, full),
    }


def measured_table(measured: Measured, full: float) -> str:
    """What the simulation was fed with."""
    tokens = [f"{number}: {number / seconds:.0f}" for number, seconds in sorted(measured.steps.items())]
    rows = [
        ("tokens/s of answers, by how many at once", ", ".join(tokens)),
        ("tokens/s of prompts", f"{1 / measured.prompt_s:.0f}"),
        (
            f"first token of a prompt of {measured.prompt_tokens} tokens",
            f"{measured.first_new_s:.2f} s new, {measured.first_known_s:.2f} s with its beginning known",
        ),
        ("from start to ready, model on disk", f"{measured.start_s:.1f} s"),
        ("answers/s of a full replica (prompts of 120 tokens, answers of 80)", f"{full:.2f}"),
    ]
    return markdown(("one replica", "measured"), rows)


def one_replica_table(rows: list[dict[str, Any]], full: float) -> str:
    """Latency and refusals by load."""
    shown = [
        (
            row["arrivals"],
            f"{row['load']:.1f}",
            f"{row['load'] * full:.2f}",
            f"{row['first_p50']:.2f} s",
            f"{row['first_p95']:.2f} s",
            f"{row['total_p95']:.1f} s",
            f"{row['refused']:.1%}",
        )
        for row in rows
        if row["load"] in {0.4, 0.6, 0.8, 0.9, 1.1}
    ]
    head = ("arrivals", "load", "requests/s", "first token p50", "p95", "whole answer p95", "refused")
    return markdown(head, shown)


def carried_table(rows: list[dict[str, Any]]) -> str:
    """Load that keeps the promise, by the number of replicas."""
    shown = [
        (
            str(row["replicas"]),
            f"{row['load']:.2f}",
            f"{row['per_s']:,.1f}",
            f"{other['load']:.2f}",
            f"{other['per_s']:,.1f}",
        )
        for row in rows
        if row["balancer"] == "least loaded"
        for other in rows
        if other["balancer"] == "random" and other["replicas"] == row["replicas"]
    ]
    return markdown(("replicas", "load, least loaded", "requests/s", "load, at random", "requests/s"), shown)


def balancers_table(rows: list[dict[str, Any]]) -> str:
    """First tokens by balancer and number of replicas."""
    sizes = [size for size in dict.fromkeys(row["replicas"] for row in rows) if size in {1, 5, 10, 20, 100, 1000}]
    names = list(dict.fromkeys(row["balancer"] for row in rows))
    shown = []
    for name in names:
        cells = [
            next(r for r in rows if (r["balancer"], r["replicas"], r["arrivals"]) == (name, size, "Poisson"))
            for size in sizes
        ]
        shown.append((name, *(f"{cell['first_p95']:.2f} s" for cell in cells)))
    return markdown(("first token, p95", *(f"{size:,} replicas" for size in sizes)), shown)


def prefixes_table(rows: list[dict[str, Any]]) -> str:
    """Who remembers beginnings."""
    shown = [
        (
            row["balancer"],
            f"{row['load']:.1f}",
            f"{row['hits']:.0%}",
            f"{row['first_p95']:.2f} s",
            f"{row['refused']:.1%}",
        )
        for row in rows
        if row["load"] in {0.8, 1.2}
    ]
    return markdown(("balancer", "load", "remembered", "first token, p95", "refused"), shown)


def herd_table(rows: list[dict[str, Any]]) -> str:
    """What follows the death of half of the replicas."""
    shown = [
        (
            row["clients"],
            f"{row['peak']:.1f} times",
            f"{row['slow_for_s']:.0f} s",
            f"{row['broken']:,}",
            f"{row['refused']:,}",
            f"{row['timed_out']:,}",
        )
        for row in rows
    ]
    return markdown(("clients", "most attempts, of usual", "slow for", "broken", "refusals", "timed out"), shown)


def growth_table(rows: list[dict[str, Any]]) -> str:
    """What the autoscaler does about three times the load."""
    shown = [
        (
            row["policy"],
            f"{row['most']:.0f}",
            f"{row['refused']:,} of {row['requests']:,}",
            f"{np.nanmax(row['first_p95']):.1f} s",
            f"{settled(row):.0f} s",
        )
        for row in rows
    ]
    return markdown(("scaled on", "most replicas", "refused", "first token p95, worst", "above 2 s for"), shown)


def settled(row: dict[str, Any]) -> float:
    """Seconds in which the p95 of the first token was above two seconds."""
    width = row["at"][1] - row["at"][0]
    return float(width * sum(value > 2 for value in row["first_p95"]))


def limits_table(measured: Measured, full: float) -> str:
    """What ends first as replicas are added."""
    tokens = full * CHAT.answer
    redis = 0.7 / measured.redis_s
    gateway = measured.gateway_token_s * tokens
    rows = [
        (
            "Redis: limits and cache, one core at 70 %",
            f"{measured.redis_commands:.1f} commands and {measured.redis_s * 1e6:.0f} us of its CPU a request",
            f"{redis:,.0f} requests/s, or {redis / full:,.0f} such replicas",
        ),
        (
            "the gateway in each replica",
            f"{measured.gateway_token_s * 1e6:.0f} us of CPU a streamed token",
            f"{gateway:.1%} of a core beside this engine; it grows with the engine's speed, not with replicas",
        ),
        (
            "one balancer for 1,000 replicas",
            "every token of a stream is an event of its own",
            f"{1000 * tokens:,.0f} events/s and up to {1000 * len(measured.engine().steps):,} open streams",
        ),
        (
            "Kubernetes: endpoints of 1,000 replicas",
            "at most 100 in an EndpointSlice",
            "10 slices; each time a replica comes or goes one of them is sent to every node",
        ),
    ]
    return markdown(("what", "cost", "carries"), rows)
