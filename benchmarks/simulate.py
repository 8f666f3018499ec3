"""How many replicas, behind which balancer, and what breaks first: a simulation with this machine's service times.

Measures the engine and Redis here, holds the simulation against two real servers, runs the scenarios, draws
docs/images/scaling-*.svg and renews the tables of docs/scaling.md. `--rate` asks one question instead:

    python benchmarks/simulate.py                                   # everything, about six minutes
    python benchmarks/simulate.py --again                           # the scenarios with what was measured last
    python benchmarks/simulate.py --rate 12 --replicas 10 --prompt 300 --answer 120
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
from harness import Aim, Report
from scaling import live, plots, scenarios
from scaling.balance import BALANCERS
from scaling.cluster import Setup, simulate
from scaling.measure import Measured, from_document, measure
from scaling.scenarios import CHAT, QUICK, Scale
from scaling.tables import tables
from scaling.workload import Work, trace

DOCUMENT = harness.HERE.parent / "docs" / "scaling.md"
IMAGES = harness.HERE.parent / "docs" / "images"
WITHIN = 0.15


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="measure nothing, use what was measured last")
    parser.add_argument("--rate", type=float, help="requests a second: answer for these instead of running everything")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--balancer", choices=list(BALANCERS), default="least loaded")
    parser.add_argument("--prompt", type=float, default=CHAT.prompt, help="mean tokens of a prompt")
    parser.add_argument("--answer", type=float, default=CHAT.answer, help="mean tokens of an answer")


def last() -> dict[str, Any]:
    """The raw figures of the last full run; ends the program when there was none."""
    path = harness.HERE / "results" / "scaling.json"
    if not path.exists():
        sys.exit(f"nothing was measured here yet ({path} is missing): run python benchmarks/simulate.py first")
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["raw"]
    return raw


def answer(options: argparse.Namespace) -> int:
    """Say how a cluster would do with the rate that was asked for."""
    spec = from_document(last()["measured"]).engine()
    work = Work(prompt=options.prompt, answer=options.answer, limit=max(256, int(4 * options.answer)))
    case = trace(1, options.rate, max(20_000, 100 * options.replicas), work)
    outcome = simulate(Setup(spec, replicas=options.replicas, balancer=options.balancer), case)
    seen = scenarios.summary(outcome, float(case.times[len(case) // 5]))
    full = scenarios.capacity(spec, work) * options.replicas
    print(f"load                    {options.rate / full:.2f} of the {full:.1f} requests/s that full replicas answer")
    print(f"time to first token     p50 {seen['first_p50']:.2f} s, p95 {seen['first_p95']:.2f} s")
    print(f"to the end              p50 {seen['total_p50']:.2f} s, p95 {seen['total_p95']:.2f} s")
    print(f"refused                 {seen['refused']:.2%}")
    return 0


def validation(report: Report, found: dict[str, Any], *, judged: bool) -> None:
    """Rows and aims of the small real case."""
    for case, sides in found["cases"].items():
        real, simulated = sides["real"], sides["simulated"]
        for figure, words in (
            ("first_mean", "to the first token, mean"),
            ("total_mean", "to the end, mean"),
            ("total_p95", "to the end, p95"),
            ("answered", "answered"),
        ):
            one, other = real[figure], simulated[figure]
            unit = "" if figure == "answered" else " s"
            report.rows.append((f"{case}: {words}", f"{one:.3f}{unit}", f"{other:.3f}{unit}", f"{other / one:.3f}"))
            if judged:
                report.aims.append(Aim(f"{case}: {words}, off by", abs(other / one - 1), WITHIN, ""))


def run_scenarios(measured: Measured, scale: Scale) -> tuple[float, dict[str, Any]]:
    """Requests a second of a full replica, and the rows of every scenario."""
    spec = measured.engine()
    full = scenarios.capacity(spec, CHAT)
    found = {}
    for name, act in (
        ("one_replica", lambda: scenarios.one_replica(spec, full, scale)),
        ("balancers", lambda: scenarios.balancers(spec, full, scale)),
        ("prefixes", lambda: scenarios.prefixes(spec, scale)),
        ("herd", lambda: scenarios.herd(spec, full, scale)),
        ("growth", lambda: scenarios.growth(spec, full, scale)),
        ("carried", lambda: scenarios.carried(spec, full, scale)),
    ):
        begun = time.perf_counter()
        found[name] = act()
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    return full, found


def fill(document: str, found: dict[str, str]) -> str:
    """The document with each marked place holding its table."""

    def replacement(place: re.Match[str]) -> str:
        table = found.get(place[1])
        return place[0] if table is None else f"<!-- {place[1]} -->\n\n{table}\n\n<!-- /{place[1]} -->"

    return re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", replacement, document, flags=re.DOTALL)


def main() -> int:
    options = harness.arguments(__doc__, add)
    if options.rate:
        return answer(options)
    if options.again:
        raw = last()
        measured_raw, compared = raw["measured"], raw["validation"]
    else:
        measured_raw = measure(options)
        compared = json.loads(json.dumps(live.compare(options), default=asdict))
    measured = from_document(measured_raw)
    full, found = run_scenarios(measured, QUICK if options.quick else Scale())
    report = Report("scaling", ("two replicas", "real", "simulated", "simulated / real"))
    validation(report, compared, judged=not options.quick)
    report.notes.append(
        "Two `stoker serve` with engines of a fixed speed, two slots each, behind a client that takes turns: 200 "
        "requests a case, the same arrivals and lengths on both sides."
    )
    report.raw = {"measured": measured_raw, "validation": compared, "capacity": full, "scenarios": found}
    images = Path(options.out) / "images" if options.quick else IMAGES
    for path in plots.draw(found, images):
        print(f"drawn: {path}")
    if not options.quick and DOCUMENT.exists():
        text = fill(DOCUMENT.read_text(encoding="utf-8"), tables(measured, full, found))
        DOCUMENT.write_text(text, encoding="utf-8")
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
