"""Replicas come with the load and go without it, by CPU and by the queue, and no answer is lost on the way."""

from __future__ import annotations

import time

import pytest
from tests.cluster import Cluster, until
from tests.cluster_release import Load, Release
from tests.probes import note

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

QUICK = {
    "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 5}]},
    "scaleDown": {"stabilizationWindowSeconds": 5, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 5}]},
}
SCALED = {"enabled": True, "minReplicas": 1, "maxReplicas": 3, "behavior": QUICK}
TRICKLE = ("--clients=1", "--tokens=2", "--pause=1.5")
"""What goes on being asked while there is no load, so that a pod which leaves too early is seen."""
UP_S, DOWN_S = 120.0, 150.0


def _up_and_down(release: Release, what: str, clients: int) -> None:
    """Load until there are two pods that are ready, then nearly none until there is one again."""
    with Load(release, *TRICKLE) as trickle:
        trickle.wait_for(2)
        began = time.monotonic()
        with Load(release, f"--clients={clients}", "--tokens=32") as load:
            until(UP_S, f"two pods ready\n{release.told()}", lambda: len(release.ready("blue")) >= 2)
            up = time.monotonic() - began
            load.wait_for(2 * clients)
        began = time.monotonic()
        until(DOWN_S, "one pod again", lambda: len(release.pods("blue")) == 1)
        down = time.monotonic() - began
        trickle.wait_for(4)
    failed = load.failed + trickle.failed
    told = f"{len(load.answers) + len(trickle.answers)} answers, {len(failed)} failed"
    note(what, up=f"2 ready after {up:.0f} s", down=f"1 after {down:.0f} s", answers=told)
    assert [answer.why for answer in failed] == []
    assert release.wait_ready(1, "blue")


def test_on_cpu(cluster: Cluster, release: Release) -> None:
    if cluster.outcome("kubectl", "top", "nodes").returncode:
        pytest.skip("no CPU metrics in this cluster; install metrics-server")
    release.restore({"autoscaling": SCALED, "resources": {"requests": {"cpu": "300m"}}})
    scaler = cluster.get("hpa", release.name, f"--namespace={release.namespace}")
    assert scaler["spec"]["scaleTargetRef"]["name"] == f"{release.name}-blue"
    _up_and_down(release, "scaling on CPU", clients=4)


def test_on_the_queue(cluster: Cluster, release: Release) -> None:
    cluster.add("keda")
    if not cluster.offers("scaledobjects.keda.sh"):
        pytest.skip("no KEDA in this cluster; install it with its own chart")
    keda = {"enabled": True, "requestsPerPod": 3, "pollingInterval": 5, "cooldownPeriod": 10}
    release.restore({"autoscaling": {**SCALED, "keda": keda}})
    at = ("scaledobject", release.name, f"--namespace={release.namespace}", "--timeout=60s")
    cluster.kubectl("wait", "--for=condition=Ready", *at)
    _up_and_down(release, "scaling on the queue", clients=6)
