"""Blue-green by one value of the chart, under streams: nothing is lost, and what does not pass never serves."""

from __future__ import annotations

import time

import pytest
import yaml
from tests.cluster import BAD, GOOD, NEXT, Cluster
from tests.cluster_load import Told
from tests.cluster_release import Load, Release
from tests.probes import note

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

STREAMS = ("--clients=3", "--tokens=32", "--stream")
CASES = (("England", "london"), ("Italy", "rome"), ("Germany", "berlin"), ("Japan", "tokyo"), ("Spain", "madrid"))
SET = {
    "name": "capitals",
    "max_tokens": 16,
    "concurrency": 2,
    "thresholds": {"pass_rate": 0.6, "errors": 0, "pass_rate_drop": 0.2},
    "cases": [
        {"id": word, "prompt": f"What is the capital of {country}?", "expect_any": [word]} for country, word in CASES
    ],
}
GATE = {"enabled": True, "set": yaml.safe_dump(SET), "timeoutSeconds": 180}


def _both(green: str) -> dict:
    """Blue serves the model, and another one stands in green."""
    return {"slots": {"green": {"enabled": True, "replicas": 1, "model": {"file": green}}}}


def _versions(answers: list[Told]) -> set[str]:
    return {answer.version for answer in answers}


def _switch(release: Release, load: Load, to: str, gate: dict | None = None) -> tuple[float, set[str]]:
    """One upgrade; its seconds, and the versions of everything that was asked after it."""
    began = time.monotonic()
    release.change({"active": to, "gate": gate or {"enabled": False}})
    took, at = time.monotonic() - began, time.time()
    assert release.active() == to
    load.wait_for(8)
    return took, _versions([told for told in load.answers if told.began > at + 1])


def test_three_switches_there_and_back_lose_nothing(release: Release) -> None:
    release.restore(_both(NEXT))
    seconds = []
    with Load(release, *STREAMS) as load:
        load.wait_for(6)
        before = _versions(load.answers)
        for _ in range(3):
            there, green = _switch(release, load, "green")
            back, blue = _switch(release, load, "blue")
            seconds += [there, back]
            assert len(green) == len(blue) == 1
            assert (blue, green.isdisjoint(blue)) == (before, True)
    note(
        "six switches",
        answers=f"{len(load.answers)} answers, {len(load.failed)} failed",
        took=f"{min(seconds):.1f} to {max(seconds):.1f} s each",
    )
    assert [told.why for told in load.failed] == []


def test_what_passes_the_gate_serves(cluster: Cluster, release: Release) -> None:
    release.restore(_both(NEXT))
    with Load(release, *STREAMS) as load:
        load.wait_for(6)
        before = _versions(load.answers)
        took, after = _switch(release, load, "green", GATE)
    log = cluster.kubectl("logs", f"--namespace={release.namespace}", f"job/{release.name}-gate")
    assert "passed" in log
    assert len(after) == 1
    assert after.isdisjoint(before)
    note("gate passed", answers=f"{len(load.answers)} answers, {len(load.failed)} failed", took=f"{took:.0f} s")
    assert [told.why for told in load.failed] == []


def test_what_fails_the_gate_changes_nothing(cluster: Cluster, release: Release) -> None:
    release.restore(_both(BAD))
    pods = set(release.ready())
    with Load(release, *STREAMS) as load:
        load.wait_for(6)
        began = time.monotonic()
        refused = release.upgrade({"active": "green", "gate": GATE})
        took = time.monotonic() - began
        load.wait_for(6)
    assert refused.returncode != 0
    assert "pre-upgrade hooks failed" in refused.stderr
    log = cluster.kubectl("logs", f"--namespace={release.namespace}", f"job/{release.name}-gate")
    assert "pass rate" in log
    assert release.active() == "blue"
    assert set(release.ready()) == pods
    assert len(_versions(load.answers)) == 1
    note("gate failed", answers=f"{len(load.answers)} answers, {len(load.failed)} failed", took=f"{took:.0f} s")
    assert [told.why for told in load.failed] == []
    release.change({"slots": {"green": {"model": {"file": GOOD}}}})  # and the next upgrade goes through
