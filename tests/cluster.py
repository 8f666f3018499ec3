"""A Kubernetes cluster for tests: finds one, builds an image with models inside and brings it there, asks kubectl.

Any cluster will do that KUBECONFIG names, with STOKER_IMAGE_LOADER (a command that gets an image's name, such as
`kind load docker-image`) or STOKER_REGISTRY (where pods pull from). Else a test cluster beside the checkout is started,
where there is one and we are root. It is the tests' to break: they cordon its nodes and kill its pods.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.containers import IMAGE, Docker, build_secrets, find_base
from tests.running import ROOT
from tests.s3_server import _program as weed_program
from tests.versions import bad_version, good_version

T = TypeVar("T")
BESIDE = ROOT.parent / "shared" / "cluster"
REPOSITORY = "stoker-e2e"
GOOD, NEXT, BAD = "/models/chat.gguf", "/models/chat-next.gguf", "/models/bad.gguf"
"""Models in the image: the real one, the same with another digest, and a base model that answers nothing of use."""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class NoCluster(Exception):
    """Why there is none, and what to do."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers.

    Args:
        prefix: what stands before every command that is to reach it.
        loader: a command that brings a Docker image, named last, to its nodes; empty where they pull.
        registry: where pods pull from, and we push to.
        scripts: of the cluster beside the checkout, if it is that one.
    """

    prefix: tuple[str, ...] = ()
    loader: tuple[str, ...] = ()
    registry: str = ""
    scripts: Path | None = None

    def command(self, *words: str) -> list[str]:
        """A command line that reaches the cluster, and what is in it where the cluster is this machine."""
        return [*self.prefix, *words]

    def outcome(self, *words: str, stdin: str | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """One command's exit status and output."""
        return subprocess.run(
            self.command(*words), input=stdin or "", capture_output=True, text=True, timeout=timeout, check=False
        )

    def run(self, *words: str, stdin: str | None = None, timeout: float = 300) -> str:
        """One command's standard output; AssertionError with what it said when it fails."""
        done = self.outcome(*words, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 300) -> str:
        """`kubectl`."""
        return self.run("kubectl", *words, stdin=stdin, timeout=timeout)

    def get(self, *words: str) -> Any:
        """What `kubectl get` finds, as Python has it: an object, or the list of them."""
        found = json.loads(self.kubectl("get", *words, "--output=json"))
        return found["items"] if found["kind"].endswith("List") else found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make objects, or make them so."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def offers(self, resource: str) -> bool:
        """Whether the API server has a resource, such as `scaledobjects.keda.sh`."""
        return resource in self.kubectl("api-resources", "--output=name").split()

    def has_image(self, image: str) -> bool:
        """Whether every node says that it has an image."""
        nodes = [
            {name for held in node["status"].get("images", ()) for name in held.get("names", ())}
            for node in self.get("nodes")
        ]
        return all(any(name.endswith(image) for name in names) for names in nodes)

    def bring(self, docker: Docker, image: str) -> str:
        """Make an image known to the cluster; its name there."""
        if self.registry:
            there = f"{self.registry}/{image}"
            docker.run("tag", image, there)
            docker.run("push", "--quiet", there, timeout=600)
            return there
        if not self.has_image(image):
            done = subprocess.run([*self.loader, image], capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, f"{' '.join(self.loader)}:\n{done.stderr[-2000:]}"
        return image

    def add(self, part: str) -> None:
        """Start a part of the cluster beside the checkout (crds, keda, argo); others are expected to have theirs."""
        if self.scripts is not None:
            self.run(str(self.scripts / "up.sh"), part)


def find_cluster() -> Cluster:
    """A cluster that answers; NoCluster when there is none."""
    if os.environ.get("KUBECONFIG"):
        loader, registry = os.environ.get("STOKER_IMAGE_LOADER", ""), os.environ.get("STOKER_REGISTRY", "")
        if not loader and not registry:
            raise NoCluster(
                "KUBECONFIG is set; set STOKER_IMAGE_LOADER (kind load docker-image) or STOKER_REGISTRY too"
            )
        for program in ("kubectl", "helm"):
            if shutil.which(program) is None:
                raise NoCluster(f"KUBECONFIG is set, but there is no {program} on PATH")
        found = Cluster(loader=tuple(shlex.split(loader)), registry=registry)
    elif not (BESIDE / "kx").is_file():
        raise NoCluster("no cluster: set KUBECONFIG and STOKER_IMAGE_LOADER (`kind load docker-image`)")
    elif os.geteuid() != 0:
        raise NoCluster("the cluster beside this checkout needs root; or set KUBECONFIG and STOKER_IMAGE_LOADER")
    else:
        for script in ("up.sh", "docker-up.sh"):
            _start(BESIDE / script)
        found = Cluster((str(BESIDE / "kx"),), (str(BESIDE / "load-image.sh"),), scripts=BESIDE)
    answered = found.outcome("kubectl", "get", "nodes")
    if answered.returncode:
        raise NoCluster(f"the cluster does not answer: {answered.stderr.strip()[:300]}")
    return found


def _start(script: Path) -> None:
    """Run a script that starts a part of the cluster; once more where it fails, since it goes on where it stopped."""
    for last in (False, True):
        done = subprocess.run([str(script)], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0:
            return
        assert not last, f"{script.name}:\n{done.stderr[-3000:]}"


def build_image(docker: Docker, model: Path) -> str:
    """The product's image with the models that tests want, and an S3 server; its tag changes with what is in it."""
    with tempfile.TemporaryDirectory() as place:
        context = Path(place)
        docker.build(IMAGE, ROOT, {"BASE": find_base(docker)}, build_secrets(context))
        models = context / "context" / "models"
        models.mkdir(parents=True)
        shutil.copy(model, models / "chat.gguf")
        good_version(model, models / "chat-next.gguf", "next")
        bad_version(models / "bad.gguf")
        shutil.copy(weed_program(), models.parent / "weed")
        for file in models.iterdir():
            file.chmod(0o644)
        (models.parent / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY weed /usr/local/bin/weed\nCOPY models /models\n")
        docker.run("build", "--quiet", f"--tag={REPOSITORY}:latest", str(models.parent), timeout=600)
    tag = docker.inspect(f"{REPOSITORY}:latest")["Id"].removeprefix("sha256:")[:12]
    docker.run("tag", f"{REPOSITORY}:latest", f"{REPOSITORY}:{tag}")
    return f"{REPOSITORY}:{tag}"


@contextmanager
def namespace_of(cluster: Cluster, name: str, level: str = "restricted") -> Iterator[str]:
    """A namespace that admits only pods of a level of the Pod Security Standards; everything in it goes with it."""
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=120s")
    labels = {"pod-security.kubernetes.io/enforce": level}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def run_pod(cluster: Cluster, namespace: str, name: str, image: str, command: Sequence[str], **more: Any) -> None:
    """Start a pod of the image with another program, and wait until it runs.

    Args:
        cluster: where.
        namespace: where in it.
        name: the pod's, and the label `app`.
        image: of the container.
        command: in place of the image's.
        more: what else the pod's specification has; `container` is what else the container's has.
    """
    container = {
        "name": name,
        "image": image,
        "command": list(command),
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
        **more.pop("container", {}),
    }
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    # Services named stoker would give the pod variables STOKER_..., which are no settings.
    spec |= {"enableServiceLinks": False, **more}
    about = {"name": name, "namespace": namespace, "labels": {"app": name}}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec})
    cluster.kubectl("wait", "--for=condition=Ready", f"--namespace={namespace}", f"pod/{name}", "--timeout=90s")


def until(seconds: float, what: str, look: Callable[[], T]) -> T:
    """What `look` returns once it is true, asked twice a second; AssertionError when that takes too long."""
    limit = time.monotonic() + seconds
    while True:
        if seen := look():
            return seen
        assert time.monotonic() < limit, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


def was_running() -> bool:
    """Whether the cluster beside the checkout, or the Docker engine, is up already; then it is not ours to stop."""
    beside = (BESIDE / "kx").is_file() and not os.environ.get("KUBECONFIG")
    asked = (["docker", "version"], [str(BESIDE / "kx"), "kubectl", "get", "nodes", "--request-timeout=5s"])
    return not beside or any(
        subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0 for command in asked
    )


def stop_cluster(cluster: Cluster) -> None:
    """Stop the cluster beside the checkout, with everything in it; nobody else's."""
    if cluster.scripts is not None:
        subprocess.run([str(cluster.scripts / "down.sh")], check=True, capture_output=True, timeout=180)
