"""What each step of the pipeline runs, or why it is left out: pure, from the order and what is here."""  # noqa: INP001

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from order import Order, Refused, is_off, is_on

DOCKERFILE: Final = "deploy/docker/Dockerfile"
SBOM: Final = "dist/pipeline/sbom.spdx.json"
SCAN: Final = "dist/pipeline/scan.json"
HOW_DOCKER: Final = "no Docker client; on Debian and Ubuntu: apt-get install docker.io, or name one with DOCKER=/path"
TRIVY_ABOVE: Final = {
    "low": "LOW,MEDIUM,HIGH,CRITICAL",
    "medium": "MEDIUM,HIGH,CRITICAL",
    "high": "HIGH,CRITICAL",
    "critical": "CRITICAL",
}


@dataclass(frozen=True, slots=True)
class Here:
    """What is here: the checkout, programs, and what earlier steps left.

    Args:
        version: the program's.
        revision: the commit's full hash, or nothing.
        created: the commit's time, ISO 8601, or nothing.
        programs: those of the steps that were found, by name.
        image: REGISTRY/IMAGE:TAG of this run.
        model: what the Dockerfile is told as MODEL: a path in the context, or an address.
        pushed: REPOSITORY:TAG@sha256:... once it was pushed or loaded (then without a digest).
        has_sbom: an SBOM of this image was made.
        has_cluster: a kubeconfig was found.
    """

    version: str
    revision: str
    created: str
    programs: frozenset[str]
    image: str
    model: str = ""
    pushed: str = ""
    has_sbom: bool = False
    has_cluster: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Commands in order; or, without any, why the step is skipped."""

    commands: tuple[tuple[str, ...], ...] = ()
    skipped: str = ""


def test(order: Order, _here: Here) -> Work:
    """The tests and linters that every change must pass."""
    if is_on(order.skip_tests):
        return Work(skipped=f"SKIP_TESTS={order.skip_tests}")
    return Work((("make", "test"), ("make", "lint")))


def image(order: Order, here: Here) -> Work:
    """The image, with its labels, and a model in it where one is named."""
    if "docker" not in here.programs:
        raise Refused(HOW_DOCKER)
    arguments = {
        "VARIANT": order.variant,
        "BASE": order.base,
        "CUDA_BASE": order.cuda_base,
        "ENGINE_SHA256": order.engine_sha256,
        "ENGINE_VERSION": order.engine_version,
        "VERSION": here.version,
        "REVISION": here.revision,
        "SOURCE": order.source,
        "MODEL": here.model,
        "MODEL_NAME": order.model_name if here.model else "",
        "MODEL_SHA256": order.model_sha256,
    }
    labels = {
        "org.opencontainers.image.created": here.created,
        "dev.stoker.model": "@".join(filter(None, (order.model_name, order.model_version))) if here.model else "",
        "dev.stoker.model.sha256": order.model_sha256 if here.model else "",
    }
    secrets = {
        "pip.conf": order.pip_conf,
        "ca.pem": order.ca_pem,
        "model.env": order.model_env,
        "engine.conf": order.engine_conf,
    }
    return Work(
        (
            (
                order.docker,
                "build",
                f"--file={DOCKERFILE}",
                f"--tag={here.image}",
                *(f"--build-arg={name}={value}" for name, value in arguments.items() if value),
                *(f"--label={name}={value}" for name, value in labels.items() if value),
                *(f"--secret=id={name},src={path}" for name, path in secrets.items() if path),
                ".",
            ),
        )
    )


def size(order: Order, here: Here) -> Work:
    """How large the image is, and of what."""
    if "docker" not in here.programs:
        raise Refused(HOW_DOCKER)
    history = (order.docker, "history", "--no-trunc", "--human=false", "--format={{.Size}}\t{{.CreatedBy}}", here.image)
    return Work((history,))


def sbom(_order: Order, here: Here) -> Work:
    """The list of what is in the image, as SPDX."""
    if "syft" in here.programs:
        return Work((("syft", "scan", f"docker:{here.image}", "--output", f"spdx-json={SBOM}"),))
    if "trivy" in here.programs:
        return Work((("trivy", "image", "--quiet", "--format=spdx-json", f"--output={SBOM}", here.image),))
    return Work(skipped="neither syft nor trivy is here")


def scan(order: Order, here: Here) -> Work:
    """Known weaknesses of what is in the image; fails for those that are grave and have a remedy."""
    if is_off(order.scan):
        return Work(skipped=f"SCAN={order.scan}")
    if "grype" in here.programs:
        what = f"sbom:{SBOM}" if here.has_sbom else f"docker:{here.image}"
        outputs = ("--output=table", f"--output=json={SCAN}")
        return Work((("grype", what, "--only-fixed", f"--fail-on={order.scan_fail_on}", *outputs),))
    if "trivy" in here.programs:
        options = ("--quiet", "--ignore-unfixed", f"--severity={TRIVY_ABOVE[order.scan_fail_on]}", "--exit-code=1")
        return Work((("trivy", "image", *options, here.image),))
    return Work(skipped="neither grype nor trivy is here")


def push(order: Order, here: Here) -> Work:
    """The image to where the cluster takes it from."""
    if order.registry:
        return Work(((order.docker, "push", here.image),))
    if order.image_loader:
        return Work(((*shlex.split(order.image_loader), here.image),))
    return Work(skipped="neither REGISTRY nor IMAGE_LOADER says where to")


def deploy(order: Order, here: Here) -> Work:
    """Gate, switch and watching, by `stoker deploy`, which says what it does and takes a bad version back."""
    if is_off(order.deploy):
        return Work(skipped=f"DEPLOY={order.deploy}")
    if not here.has_cluster:
        return Work(skipped="no cluster: KUBECONFIG names no file, and there is no ~/.kube/config")
    if not (target := order.reference or here.pushed):
        return Work(skipped="no image that a cluster could take: push one, or name one with REFERENCE")
    missing = [name for name in ("stoker", "helm") if name not in here.programs]
    if missing:
        how = {"stoker": "make install-dev", "helm": "https://helm.sh/docs/intro/install"}
        raise Refused("; ".join(f"no {name} here: {how[name]}" for name in missing))
    given = {
        "--namespace": order.namespace,
        "--kube-context": order.kube_context,
        "--chart": order.chart,
        "--set-file": order.evaluation,
        "--bake": order.bake,
    }
    words = [word for name, value in given.items() if value for word in (name, value)]
    if is_off(order.gate):
        words.append("--no-gate")
    words += shlex.split(order.deploy_options)
    return Work((("stoker", "deploy", "start", order.release, "--image", target, *words, "--yes"),))


def drill(order: Order, here: Here) -> Work:
    """The newest snapshot brought back on this machine, served, and asked."""
    if "stoker" not in here.programs:
        raise Refused("no stoker here: make install-dev")
    given = {"--repository": order.repository, "--set": order.evaluation, "--work-dir": order.work_dir}
    return Work((("stoker", "backup", "drill", *(word for pair in given.items() if pair[1] for word in pair)),))


Maker = Callable[[Order, Here], Work]
STEPS: Final[dict[str, Maker]] = {
    "test": test,
    "image": image,
    "size": size,
    "sbom": sbom,
    "scan": scan,
    "push": push,
    "deploy": deploy,
    "drill": drill,
}
PIPELINE: Final = ("test", "image", "size", "sbom", "scan", "push", "deploy")
PARTS: Final = (
    ("COPY /program/opt/stoker ", "Stoker"),
    ("COPY /opt/stoker ", "libraries"),
    ("COPY /baked/ ", "model"),
    ("libgomp1", "libgomp"),
)
"""What stands in the history of which part's layer."""


def parts_of(history: str) -> dict[str, int]:
    """Bytes of each part of an image from `docker history`: `size<TAB>created by` a line, newest first."""
    parts: dict[str, int] = {}
    for line in history.splitlines():
        length, _, created = line.partition("\t")
        part = next((name for words, name in PARTS if words in created), "base and settings")
        parts[part] = parts.get(part, 0) + int(length)
    return {name: length for name, length in parts.items() if length}


def staged_name(model: Path, order: Order) -> str:
    """Where a model's file stands in the build context."""
    name = "-".join(filter(None, (order.model_name, order.model_version or order.model_sha256[:12])))
    return f"models/{name or model.stem}.gguf"
