"""The chart, installed in a cluster for tests, and load on it from a pod beside it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from tests.cluster import GOOD, Cluster, run_pod, until
from tests.cluster_load import Told
from tests.running import ROOT

CHART = ROOT / "deploy" / "helm" / "stoker"
LOADER = "loader"
LAST_ANSWERS_S = 130.0
SLOTS = ("blue", "green")


def small_values(image: str) -> dict[str, Any]:
    """Values for an install of the image that fits small machines: 100m of CPU asked for, two may be used."""
    repository, _, tag = image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "model": {"name": "chat", "file": GOOD, "settings": {"plan": {"slots": 4, "context": 1024}}},
        "keys": {"allowPublic": True},
        "resources": {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "autoscaling": {"enabled": False},
        "preStopSeconds": 3,
    }


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others laid over them, as Helm does."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


class Release:
    """An installed chart.

    Args:
        cluster: where.
        namespace: where in it.
        values: what it is installed with, and what `restore` goes back to.
        name: the release's; that of its objects, too.
    """

    def __init__(self, cluster: Cluster, namespace: str, values: dict[str, Any], name: str = "stoker") -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.values = values
        self.name = name
        self.took = 0.0
        self.url = f"http://{name}.{namespace}.svc:8080"
        self.preview_url = f"http://{name}-preview.{namespace}.svc:8080"

    def helm(self, *words: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """A helm command in the release's namespace, with a file of values if there are some."""
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "values.yaml"
            file.write_text(yaml.safe_dump(dict(values or {})))
            more = [f"--values={file}"] if values is not None else []
            return self.cluster.outcome("helm", *words, f"--namespace={self.namespace}", *more, timeout=600)

    def install(self) -> None:
        """Install it and wait until it is ready; `took` is the seconds of that."""
        began = time.monotonic()
        done = self.helm("install", self.name, str(CHART), "--wait", "--timeout=120s", values=self.values)
        assert done.returncode == 0, f"{done.stderr}\n{self.told()}"
        self.took = time.monotonic() - began

    def uninstall(self) -> None:
        """Remove it, and wait until its pods are gone."""
        self.helm("uninstall", self.name, "--wait", "--timeout=120s")

    def upgrade(self, change: Mapping[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
        """`helm upgrade --reuse-values --wait` with a change of values; what became of it."""
        fixed = ("--reuse-values", "--wait", "--timeout=240s")
        return self.helm("upgrade", self.name, str(CHART), *fixed, *words, values=change)

    def change(self, change: Mapping[str, Any]) -> None:
        """An upgrade that must succeed."""
        done = self.upgrade(change)
        assert done.returncode == 0, f"{done.stderr}\n{self.told()}"

    def restore(self, change: Mapping[str, Any] | None = None) -> None:
        """An upgrade to what it was installed with, and a change of that."""
        values = merged(self.values, change or {})
        done = self.helm("upgrade", self.name, str(CHART), "--reset-values", "--wait", "--timeout=240s", values=values)
        assert done.returncode == 0, f"{done.stderr}\n{self.told()}"

    def told(self) -> str:
        """What a person would look at when it does not come up."""
        said = self.cluster.outcome(
            "kubectl", "get", "pods,jobs", "--output=wide", f"--namespace={self.namespace}"
        ).stdout
        logs = self.cluster.outcome(
            *("kubectl", "logs", f"--namespace={self.namespace}", "--prefix", "--tail=15", "--all-containers"),
            f"--selector=app.kubernetes.io/instance={self.name}",
        ).stdout
        events = self.cluster.outcome("kubectl", "events", f"--namespace={self.namespace}", "--types=Warning").stdout
        return f"{said}\n{logs[-3000:]}\n{events[-2000:]}"

    def pods(self, slot: str = "") -> list[dict[str, Any]]:
        """Pods of the server that are not being ended."""
        wanted = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=server"
        wanted += f",stoker.dev/slot={slot}" if slot else ""
        found = self.cluster.get("pods", f"--namespace={self.namespace}", f"--selector={wanted}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, slot: str = "") -> list[str]:
        """Names of those that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods(slot) if condition(pod, "Ready")]

    def wait_ready(self, count: int, slot: str = "", seconds: float = 90) -> list[str]:
        """Wait until so many pods are there, no more and no fewer, and all are ready; their names."""
        look = lambda: len(self.pods(slot)) == count and len(self.ready(slot)) == count and self.ready(slot)  # noqa: E731
        return until(seconds, f"{count} pods {slot} ready\n{self.told()}", look)

    def active(self) -> str:
        """The slot that the active Service selects."""
        service = self.cluster.get("service", self.name, f"--namespace={self.namespace}")
        return service["spec"]["selector"]["stoker.dev/slot"]

    def inside(self, pod: str, *command: str) -> str:
        """The output of a command that runs inside a pod."""
        return self.cluster.kubectl("exec", f"--namespace={self.namespace}", pod, "--", *command)

    def metrics(self, pod: str) -> str:
        """A pod's metrics, by way of the API server."""
        return self.cluster.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:9464/proxy/metrics"
        )


def condition(pod: Mapping[str, Any], name: str) -> str:
    """When a condition of a pod came true, RFC 3339; empty while it is not."""
    found = (entry for entry in pod["status"].get("conditions", ()) if entry["type"] == name)
    return next((entry["lastTransitionTime"] for entry in found if entry["status"] == "True"), "")


def start_loader(cluster: Cluster, namespace: str, image: str) -> None:
    """A pod from which load comes, so that it takes the way that callers take."""
    script = {"cluster_load.py": (ROOT / "tests" / "cluster_load.py").read_text()}
    about = {"name": LOADER, "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": script})
    run_pod(
        cluster,
        namespace,
        LOADER,
        image,
        ["python3", "-c", "import time; time.sleep(1e6)"],
        container={"volumeMounts": [{"name": "load", "mountPath": "/load"}]},
        volumes=[{"name": "load", "configMap": {"name": LOADER}}],
    )


class Load:
    """Clients in the loader that ask until the context ends; each answer is looked at.

    Args:
        release: whom they ask.
        options: of cluster_load.py.
        url: another address than the active Service's.
    """

    def __init__(self, release: Release, *options: str, url: str = "") -> None:
        self._release = release
        self._command = ("python3", "-u", "/load/cluster_load.py", url or release.url, *options)
        self.answers: list[Told] = []

    def __enter__(self) -> Self:
        place = f"--namespace={self._release.namespace}"
        self._process = subprocess.Popen(
            self._release.cluster.command("kubectl", "exec", "--stdin", place, LOADER, "--", *self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def stop(self) -> list[Told]:
        """Let the clients finish what they asked; all answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LAST_ANSWERS_S)
        finally:
            self._process.kill()
            self._reader.join(10)
            if self._process.stdout is not None:
                self._process.stdout.close()
        assert self._process.returncode == 0, "the load did not run to its end, so that not all answers are known"
        return self.answers

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answers.append(Told(**json.loads(line)))

    def wait_for(self, more: int, seconds: float = 60) -> Self:
        """Wait for so many more answers."""
        wanted = len(self.answers) + more
        until(seconds, f"{wanted} answers, not {len(self.answers)}", lambda: len(self.answers) >= wanted)
        return self

    @property
    def failed(self) -> list[Told]:
        """Answers that were not whole."""
        return [answer for answer in self.answers if answer.why]

    def in_flight(self, at: float) -> list[Told]:
        """Those that were under way at a time, in seconds since the epoch."""
        return [answer for answer in self.answers if answer.began < at < answer.ended]


@contextmanager
def installed(cluster: Cluster, namespace: str, values: dict[str, Any]) -> Iterator[Release]:
    """A release that is ready, and removed at the end."""
    release = Release(cluster, namespace, values)
    release.install()
    try:
        yield release
    finally:
        release.uninstall()
