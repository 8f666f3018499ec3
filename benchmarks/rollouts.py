"""Versions of the real model change under a constant streaming load: is any request lost, and what does it cost?

Three good versions take over one after the other, then a bad one is to be refused by the evaluation. Every answer is
checked to be whole.

    python benchmarks/rollouts.py [--clients 4]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

sys.path.insert(0, str(harness.HERE.parent))
from tests.rollouts import Rolling, Users, real_versions
from tests.running import Stoker

GOOD, BAD = ("1", "2", "3", "4"), "5"
TOKENS = 24
WITHIN_S = 300.0


def took(users: Users, since: float, until: float) -> float:
    """The median seconds of answers that came between two instants."""
    seconds = [took for at, took in users.times if since <= at <= until]
    return statistics.median(seconds) if seconds else float("nan")


def roll(rolling: Rolling, users: Users, version: str, quiet_s: float) -> dict[str, Any]:
    """One rollout, and how answers were before and meanwhile."""
    began = time.monotonic()
    time.sleep(quiet_s)
    started = time.monotonic()
    asked, wrong = users.asked, len(users.wrong)
    told = rolling.until(rolling.start(model=f"smollm2@{version}", evaluation=None), within_s=WITHIN_S)
    ended = time.monotonic()
    at = {step["phase"]: step["at"] for step in told["steps"]}
    report = told["evaluation"]
    return {
        "version": version,
        "outcome": told["phase"],
        "requests": users.asked - asked,
        "failed": len(users.wrong) - wrong,
        "seconds": ended - started,
        "until_switch": at["baking"] - told["created"] if "baking" in at else None,
        "pass_rate": report["pass_rate"],
        "before_pass_rate": report["against"]["pass_rate"],
        "slower": took(users, started, ended) / took(users, began, started),
    }


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--clients", type=int, default=4)

    options = harness.arguments(__doc__, add)
    columns = (
        "version",
        "outcome",
        "passed cases, old and new",
        "requests meanwhile",
        "failed",
        "switch after",
        "slower",
    )
    report = harness.Report("rollouts", columns)
    versions = (*GOOD[1 : 2 if options.quick else None], BAD)
    with tempfile.TemporaryDirectory() as place:
        settings = real_versions(Path(place), harness.smollm2(), good=GOOD, bad=BAD, bake=10)
        with Stoker(Path(place), settings) as server, Users(server.url, options.clients, TOKENS) as users:
            rolled = [roll(Rolling(server), users, version, 3 if options.quick else 15) for version in versions]
    for row in rolled:
        switch = f"{row['until_switch']:.0f} s" if row["until_switch"] else "never"
        passed = f"{row['before_pass_rate']:.0%}, {row['pass_rate']:.0%}"
        kind = "bad" if row["version"] == BAD else "good"
        counts = (str(row["requests"]), str(row["failed"]), switch, f"{row['slower']:.2f} times")
        report.rows.append((f"{row['version']} ({kind})", row["outcome"].replace("_", " "), passed, *counts))
    wanted = {BAD: "refused"}
    wrong = [row for row in rolled if row["outcome"] != wanted.get(row["version"], "succeeded")]
    report.aims.append(
        harness.Aim("requests that failed during the rollouts", sum(row["failed"] for row in rolled), 0, "")
    )
    report.aims.append(harness.Aim("rollouts that ended otherwise than they should", len(wrong), 0, ""))
    report.notes.append(
        f"{options.clients} clients who ask for {TOKENS} tokens in a stream without a pause. *Slower* is the median "
        "time of an answer during the rollout, in which two versions run on the same processors, by that before."
    )
    report.raw = {"rollouts": rolled, "wrong": users.wrong[:20]}
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
