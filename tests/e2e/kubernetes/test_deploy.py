"""`stoker deploy` on a real cluster, under a load of streams that never pauses: no request may fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster import BAD, GOOD, NEXT, Cluster, until
from tests.cluster_release import CHART, Load, Release, small_values
from tests.probes import note

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(600)]
STREAMS = ("--stream", "--clients=2", "--tokens=24", "--kept")
BAKE = "--bake=10s"


def command(release: Release, verb: str, *words: str) -> list[str]:
    chart = () if verb in {"status", "history"} else ("--chart", str(CHART))
    place = (release.name, "--namespace", release.namespace)
    return release.cluster.command(sys.executable, "-m", "stoker", "deploy", verb, *place, *chart, *words)


def stoker(release: Release, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(release, verb, *words), capture_output=True, text=True, timeout=400, check=False)
    sys.stdout.write(f"$ stoker deploy {verb} {' '.join(words)}\n{done.stderr}{done.stdout}")
    return done


def status(release: Release) -> dict[str, Any]:
    return json.loads(stoker(release, "status", "--json").stdout)


def model_of(release: Release) -> str:
    """The file that the serving slot has."""
    pod = release.pods(release.active())[0]
    names = {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}
    return json.loads(names["STOKER_MODELS"])[0]["source"]


def another(release: Release) -> str:
    return GOOD if model_of(release) == NEXT else NEXT


@pytest.fixture
def settled(release: Release) -> Iterator[Release]:
    """The release with no deploy under way, before and after."""
    yield release
    if (status(release)["deploy"] or {}).get("step") in {"loading", "baking", "returning"}:
        stoker(release, "abort", "--take-over")


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_good_and_bad_under_load(settled: Release, turn: int) -> None:
    before, model = settled.active(), another(settled)
    with Load(settled, *STREAMS) as load:
        load.wait_for(4)
        began = time.monotonic()
        done = stoker(settled, "start", "--model", model, BAKE, "--yes")
        took = time.monotonic() - began
        assert done.returncode == 0, settled.told()
        load.wait_for(4)
        serving = settled.active()
        assert serving != before
        assert model_of(settled) == model
        bad = stoker(settled, "start", "--model", BAD, BAKE, "--yes")
        assert bad.returncode == 1
        assert "the gate was not passed" in bad.stderr
        assert settled.active() == serving
        load.wait_for(4)
        load.stop()
    assert not load.failed, load.failed[:3]
    assert len({answer.version for answer in load.answers if answer.version}) == 2
    until(60, "only the serving slot has pods", lambda: not settled.pods(before))
    note("deploy under load", turn=str(turn), requests=str(len(load.answers)), failed="0", seconds=f"{took:.0f}")


def test_rollback_of_what_was_retired(settled: Release) -> None:
    before, model = settled.active(), model_of(settled)
    with Load(settled, *STREAMS) as load:
        load.wait_for(2)
        assert stoker(settled, "start", "--model", another(settled), "--no-gate", "--bake=0", "--yes").returncode == 0
        assert settled.active() != before
        assert stoker(settled, "rollback").returncode == 0
        assert (settled.active(), model_of(settled)) == (before, model)
        load.wait_for(2)
        load.stop()
    assert not load.failed, load.failed[:3]


@pytest.mark.parametrize("where", ["loading", "gate", "baking"])
def test_killed_and_resumed(settled: Release, where: str) -> None:
    before = settled.active()
    with Load(settled, *STREAMS) as load:
        load.wait_for(2)
        process = subprocess.Popen(command(settled, "start", "--model", another(settled), BAKE, "--yes"))
        until(120, where, lambda: reached(settled, where))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = stoker(settled, "resume")
        assert done.returncode == 0, settled.told()
        assert settled.active() != before
        load.wait_for(2)
        load.stop()
    assert not load.failed, load.failed[:3]


def reached(release: Release, where: str) -> bool:
    if where == "gate":
        pods = release.cluster.get("pods", f"--namespace={release.namespace}", "--selector=job-name=stoker-gate")
        return any(pod["status"]["phase"] == "Running" for pod in pods)  # not one that an earlier deploy left
    return (status(release)["deploy"] or {}).get("step") == where


def test_comes_back_by_itself_when_its_pods_are_gone(settled: Release) -> None:
    before = settled.active()
    words = ("start", "--model", another(settled), "--no-gate", "--bake=120s", "--yes")
    process = subprocess.Popen(command(settled, *words), stderr=subprocess.PIPE, text=True)
    until(120, "the switch", lambda: settled.active() != before)
    settled.cluster.kubectl(
        *("scale", f"deployment/stoker-{settled.active()}", "--replicas=0", f"--namespace={settled.namespace}")
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no pod of" in said
    assert settled.active() == before


def test_dry_run_changes_nothing(settled: Release) -> None:
    revision = settled.helm("history", settled.name, "--output=json").stdout
    done = stoker(settled, "start", "--model", BAD, "--dry-run")
    assert done.returncode == 0
    assert f"+      file: {BAD}" in done.stdout
    assert "+    stoker.dev/slot: green" in done.stdout or "+    stoker.dev/slot: blue" in done.stdout
    assert settled.helm("history", settled.name, "--output=json").stdout == revision


def test_argo(cluster: Cluster, namespace: str, image: str) -> None:
    cluster.add("argo")
    if not cluster.offers("rollouts.argoproj.io"):
        pytest.skip("the cluster has no Argo Rollouts")
    values = {**small_values(image), "rollout": {"engine": "argo", "scaleDownDelaySeconds": 30}}
    release = Release(cluster, namespace, values, name="stoker-argo")
    release.install()
    try:
        until(90, "the first version serves", lambda: status(release)["slots"]["preview"]["ready"] == 1)
        assert stoker(release, "start", "--model", NEXT, BAKE, "--yes").returncode == 0
        bad = stoker(release, "start", "--model", BAD, BAKE, "--yes")
        assert bad.returncode == 1
        assert "refused" in bad.stderr
        assert NEXT in json.dumps(release.cluster.get("rollout", "stoker-argo", f"--namespace={namespace}")["spec"])
    finally:
        release.uninstall()
