"""What a run of the pipeline was told, from the environment: pure, and wrong values are refused before anything runs.

The names are those that `make pipeline NAME=value` takes; docs/cicd.md has them in a table.
"""  # noqa: INP001 - a part of scripts for people, no package

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REGISTRY = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9._-]+)*/?")
IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
FILES = ("pip_conf", "ca_pem", "model_env", "engine_conf", "evaluation")
SEVERITIES = ("low", "medium", "high", "critical")
OFF = ("off", "no", "false", "0")


class Refused(Exception):
    """Something is wrong with what was asked, or cannot be done here; the message says what to do next."""


@dataclass(frozen=True, slots=True)
class Order:
    """Settings of a run; each is the environment variable of its name in capitals."""

    skip_tests: str = ""
    dry_run: str = ""
    require: str = ""
    """Steps that must not be skipped, by name."""
    docker: str = "docker"
    variant: str = "cpu"
    base: str = ""
    cuda_base: str = ""
    engine_sha256: str = ""
    engine_version: str = ""
    pip_conf: str = ""
    ca_pem: str = ""
    model_env: str = ""
    engine_conf: str = ""
    source: str = ""
    """Address of the repository, for a label."""
    model: str = ""
    """What is baked in: a file, or an address that `stoker models add` takes."""
    model_name: str = "chat"
    model_version: str = ""
    model_sha256: str = ""
    registry: str = ""
    image: str = "stoker"
    tag: str = ""
    image_loader: str = ""
    """A command that gets the image's name and puts it into the cluster, where there is no registry."""
    reference: str = ""
    """An image that is there already, REPOSITORY:TAG@sha256:..., to deploy without building."""
    scan: str = "on"
    scan_fail_on: str = "critical"
    deploy: str = "on"
    release: str = "stoker"
    namespace: str = ""
    kube_context: str = ""
    kubeconfig: str = ""
    chart: str = ""
    evaluation: str = ""
    bake: str = ""
    gate: str = "on"
    deploy_options: str = ""
    """More words for `stoker deploy`."""
    repository: str = ""
    """Of backups, for the drill."""
    work_dir: str = ""

    @property
    def wanted(self) -> frozenset[str]:
        """Steps that fail where others are skipped."""
        return frozenset(self.require.replace(",", " ").split())


def is_off(value: str) -> bool:
    """Whether a switch is off; anything but off, no, false and 0 leaves it on."""
    return value.lower() in OFF


def is_on(value: str) -> bool:
    """Whether a switch that is off by itself was put on."""
    return bool(value) and not is_off(value)


def read_order(environment: Mapping[str, str], steps: Container[str]) -> Order:
    """The order that an environment holds, for steps of these names.

    Raises:
        Refused: a value that cannot be meant.
    """
    told = {one.name: environment.get(one.name.upper(), "").strip() for one in fields(Order)}
    told["registry"] = told["registry"].lower()  # an owner's name may have capitals, a repository's may not
    order = Order(**{name: value for name, value in told.items() if value})
    problems = _problems(order) + [f"REQUIRE={one}: there is no such step" for one in order.wanted if one not in steps]
    if problems:
        raise Refused("; ".join(problems))
    return order


def _problems(order: Order) -> list[str]:
    found = []
    if order.variant not in ("cpu", "cuda"):
        found.append(f"VARIANT={order.variant}: it is cpu or cuda")
    if order.variant == "cuda" and not (order.engine_sha256 and order.engine_conf):
        found.append("VARIANT=cuda needs ENGINE_CONF=FILE and ENGINE_SHA256=..., see docs/docker.md")
    if order.scan_fail_on not in SEVERITIES:
        found.append(f"SCAN_FAIL_ON={order.scan_fail_on}: it is one of {', '.join(SEVERITIES)}")
    if order.reference and not DIGEST.fullmatch(order.reference.partition("@")[2]):
        found.append(f"REFERENCE={order.reference}: an image with its digest is wanted, REPOSITORY:TAG@sha256:...")
    for name, pattern in (("registry", REGISTRY), ("image", IMAGE), ("tag", TAG), ("release", NAME)):
        value = getattr(order, name)
        if value and not pattern.fullmatch(value):
            found.append(f"{name.upper()}={value}: that is no {name}")
    for name in ("model_sha256", "engine_sha256"):
        value = getattr(order, name)
        if value and not re.fullmatch(r"[0-9a-f]{64}", value):
            found.append(f"{name.upper()}: 64 hexadecimal digits are wanted")
    found += [
        f"{name.upper()}={getattr(order, name)}: there is no such file"
        for name in FILES
        if getattr(order, name) and not Path(getattr(order, name)).is_file()
    ]
    return found


def image_tag(order: Order, version: str, revision: str, *, dirty: bool) -> str:
    """TAG, or one that tells program, commit and model: `0.1.0-62d2a930cde1-chat-2`."""
    if order.tag:
        return order.tag
    parts = [version, revision[:12] or "unknown"]
    if dirty:
        parts.append("dirty")
    if order.variant != "cpu":
        parts.append(order.variant)
    if order.model:
        parts += [order.model_name, order.model_version or order.model_sha256[:12]]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(part for part in parts if part))[:128]


def image_name(order: Order, tag: str) -> str:
    """REGISTRY/IMAGE:TAG."""
    return "/".join(part for part in (order.registry.rstrip("/"), order.image) if part) + f":{tag}"
