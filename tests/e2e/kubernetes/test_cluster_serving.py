"""The chart on a real cluster: ready, confined, and no answer lost while pods come and go under load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.cluster import Cluster, namespace_of, run_pod, until
from tests.cluster_load import Told
from tests.cluster_release import LOADER, Load, Release
from tests.probes import note

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

TWO = {"slots": {"blue": {"replicas": 2}}}
STREAMS = ("--clients=2", "--tokens=48", "--stream")
KEPT = ("--clients=1", "--tokens=32", "--kept")
STOPPING = "the server is stopping; send the request to another replica"
"""What a client may be told that keeps its connection: a Service leads only new connections elsewhere."""
SERVICE_LEARNS_S = 5.0
"""Longest that a Service may go on naming a pod whose container was killed: the kubelet looks once a second."""

ASK = """
import json, sys, urllib.request
body = json.dumps({"text": "What is the capital of Germany?", "cache": False}).encode()
asked = urllib.request.Request(sys.argv[1] + "/query", body, {"content-type": "application/json"})
print(urllib.request.urlopen(asked, timeout=60).read().decode())
"""
INSIDE = r"""
import json, os, pathlib
status = dict(l.split(":\t", 1) for l in pathlib.Path("/proc/1/status").read_text().splitlines() if ":\t" in l)
def writable(path):
    try:
        pathlib.Path(path, "probe").write_text("x"); return True
    except OSError:
        return False
print(json.dumps({"uid": status["Uid"].split(), "bound": status["CapBnd"], "privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "writable": [p for p in ("/", "/etc", "/opt/stoker", "/models", "/data", "/tmp") if writable(p)],
    "token": os.path.exists("/var/run/secrets/kubernetes.io")}))
"""
KILL = r"""
import os, pathlib, signal, sys
uids = [sys.argv[1], sys.argv[1].replace("-", "_")]
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        mine = any(uid in (process / "cgroup").read_text() for uid in uids)
        if mine and "stoker" in (process / "cmdline").read_text():
            os.kill(int(process.name), signal.SIGKILL)
            print(process.name)
    except (OSError, ProcessLookupError):
        pass
"""


@contextmanager
def asked_all_the_while(release: Release) -> Iterator[tuple[Load, Load]]:
    """Streams with a connection each, and one client that keeps its connection; all begun before anything happens."""
    with Load(release, *STREAMS) as fresh, Load(release, *KEPT) as kept:
        fresh.wait_for(4)
        kept.wait_for(1)
        yield fresh, kept
        fresh.wait_for(4)


def figures(answers: list[Told]) -> str:
    """How many answers, and how many were not whole, for the table."""
    return f"{len(answers)} answers, {sum(1 for answer in answers if answer.why)} failed"


def test_it_is_ready_soon_and_answers(release: Release) -> None:
    [pod] = release.pods()
    started = {entry["type"]: entry["lastTransitionTime"] for entry in pod["status"]["conditions"]}
    answer = json.loads(release.inside(LOADER, "python3", "-c", ASK, release.url))
    assert "Berlin" in answer["text"]
    with Load(release, "--clients=2", "--tokens=24") as both, Load(release, *KEPT) as kept:
        both.wait_for(6)
        kept.wait_for(2)
    assert [told.why for told in both.answers + kept.answers if told.why] == []
    assert {told.streamed for told in both.answers} == {True, False}
    assert "stoker_requests_total{" in release.metrics(pod["metadata"]["name"])
    seconds = _seconds(started["PodScheduled"], started["Ready"])
    note("install", seconds=f"{release.took:.1f}", pod=f"{seconds:.0f} s from its node to ready")
    assert seconds < 60


def test_pods_are_confined(cluster: Cluster, release: Release, namespace: str) -> None:
    labels = cluster.get("namespace", namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"  # the API server refuses any other pod here
    seen = json.loads(release.inside(release.ready()[0], "python3", "-c", INSIDE))
    assert seen["uid"] == ["10001"] * 4
    assert int(seen["bound"], 16) == 0
    assert (seen["privileges"], seen["seccomp"]) == ("1", "2")
    assert seen["writable"] == ["/data", "/tmp"]
    assert not seen["token"]


def test_network_policies_are_there(cluster: Cluster, release: Release, namespace: str) -> None:
    # That they are enforced is the network plugin's part.
    policies = {
        policy["metadata"]["name"]: policy for policy in cluster.get("networkpolicy", f"--namespace={namespace}")
    }
    [api, metrics] = policies[release.name]["spec"]["ingress"]
    assert [port["port"] for port in api["ports"]] == ["http"]
    assert "from" not in api
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    assert metrics["from"]
    chosen = policies[release.name]["spec"]["podSelector"]["matchLabels"]
    labels = release.pods()[0]["metadata"]["labels"]
    assert chosen.items() <= labels.items()


def test_a_rolling_update_loses_nothing(release: Release) -> None:
    release.restore(TWO)
    before = set(release.wait_ready(2))
    with asked_all_the_while(release) as (fresh, kept):
        began = time.monotonic()
        release.change({"podAnnotations": {"changed": str(time.time())}})
        took = time.monotonic() - began
        until(60, "the old pods are gone", lambda: _gone(release, before))
    assert not before & set(release.ready())
    note("rolling update", fresh=figures(fresh.answers), kept=figures(kept.answers), took=f"{took:.0f} s")
    assert [told.why for told in fresh.failed] == []
    assert all(STOPPING in told.why for told in kept.failed), kept.failed


def test_a_drain_takes_one_pod_at_a_time_and_loses_nothing(cluster: Cluster, release: Release) -> None:
    release.restore(TWO)
    release.wait_ready(2)
    first, second = release.pods()
    nodes = {pod["spec"]["nodeName"] for pod in (first, second)}
    try:
        with asked_all_the_while(release) as (fresh, kept):
            for node in nodes:
                cluster.kubectl("cordon", node)
            assert _evict(release, first) == ""
            assert "disruption budget" in _evict(release, second)
            until(60, "the evicted pod is gone", lambda: _gone(release, {first["metadata"]["name"]}))
            fresh.wait_for(4)
            assert release.ready() == [second["metadata"]["name"]]
            for node in nodes:
                cluster.kubectl("uncordon", node)
            release.wait_ready(2)
            assert _evict(release, second) == ""
            until(60, "the evicted pod is gone", lambda: _gone(release, {second["metadata"]["name"]}))
            release.wait_ready(2)
    finally:
        for node in nodes:
            cluster.kubectl("uncordon", node)
    note("drain", fresh=figures(fresh.answers), kept=figures(kept.answers))
    assert [told.why for told in fresh.failed] == []
    assert all(STOPPING in told.why for told in kept.failed), kept.failed


@pytest.fixture
def kill(cluster: Cluster, image: str) -> Iterator[Callable[[dict], float]]:
    """`kill -9` of all processes of a pod, from its node; returns when, in seconds since the epoch."""
    with namespace_of(cluster, "stoker-e2e-node", "privileged") as place:

        def run(pod: dict) -> float:
            name = f"killer-{pod['metadata']['uid'][:8]}"
            rights = {"securityContext": {"privileged": True, "runAsUser": 0}}
            wait = ["python3", "-c", "import time; time.sleep(1e6)"]
            run_pod(cluster, place, name, image, wait, container=rights, hostPID=True, nodeName=pod["spec"]["nodeName"])
            script = ("python3", "-c", f"import time; print(time.time())\n{KILL}", pod["metadata"]["uid"])
            at, *killed = cluster.kubectl("exec", f"--namespace={place}", name, "--", *script).split()
            assert killed
            return float(at)

        yield run


def test_a_killed_pod_costs_what_it_was_answering(release: Release, kill: Callable[[dict], float]) -> None:
    release.restore(TWO)
    release.wait_ready(2)
    victim = release.pods()[0]
    with Load(release, "--clients=4", "--tokens=64", "--stream") as load:
        load.wait_for(8)
        at = kill(victim)
        release.wait_ready(2)
        load.wait_for(8)
    in_flight = {id(told) for told in load.in_flight(at)}
    broken = [told for told in load.failed if id(told) in in_flight]
    later = [told for told in load.failed if id(told) not in in_flight]
    last = max((told.began - at for told in later), default=0.0)
    note(
        "kill -9 of a pod",
        answers=str(len(load.answers)),
        in_flight=f"{len(broken)} of {len(in_flight)} broken",
        refused=f"{len(later)}, the last {last:.1f} s after" if later else "0",
    )
    # What was under way there is lost; then callers are refused, with nothing begun, until the Service knows.
    assert len(broken) <= len(in_flight)
    assert all("ClientConnectorError" in told.why or "ServerDisconnected" in told.why for told in later), later
    assert last < SERVICE_LEARNS_S
    [restarted] = [pod for pod in release.pods() if pod["metadata"]["uid"] == victim["metadata"]["uid"]]
    assert restarted["status"]["containerStatuses"][0]["restartCount"] == 1


def _gone(release: Release, names: set[str]) -> bool:
    found = release.cluster.get("pods", f"--namespace={release.namespace}")
    return not names & {pod["metadata"]["name"] for pod in found}


def _evict(release: Release, pod: dict) -> str:
    """Evict a pod as a drain does; why it was refused, or nothing."""
    name = pod["metadata"]["name"]
    about = {"name": name, "namespace": release.namespace}
    wanted = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about})
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/eviction"
    done = release.cluster.outcome("kubectl", "create", "--raw", path, "--filename=-", stdin=wanted)
    return done.stderr if done.returncode else ""


def _seconds(earlier: str, later: str) -> float:
    form = "%Y-%m-%dT%H:%M:%SZ"
    return time.mktime(time.strptime(later, form)) - time.mktime(time.strptime(earlier, form))
