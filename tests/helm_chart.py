"""The chart, rendered offline by Helm's own library, for tests of its manifests."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import helm_python
import yaml

from tests.running import ROOT

CHART = ROOT / "deploy" / "helm" / "stoker"
VALUES = ROOT / "tests" / "integration" / "helm" / "values"
FILES = tuple(sorted(VALUES.glob("*.yaml")))
PUBLIC: dict[str, Any] = {"keys": {"allowPublic": True}}

Manifest = dict[str, Any]


def values_of(name: str) -> dict[str, Any]:
    """The values of a file beside these tests."""
    return yaml.safe_load((VALUES / f"{name}.yaml").read_text(encoding="utf-8"))


def rendered(values: Mapping[str, Any], *, name: str = "chat", namespace: str = "ml") -> list[Manifest]:
    """Every object of a release; helm_python's errors where Helm would refuse."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name=name, namespace=namespace, is_upgrade=True)
    return [
        document
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def notes(values: Mapping[str, Any]) -> str:
    """What is printed after an install."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(dict(values), name="chat", namespace="ml")["stoker/templates/NOTES.txt"]


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only object of a kind, or of a kind and name."""
    found = [m for m in manifests if m["kind"] == kind and name in {None, m["metadata"]["name"]}]
    assert len(found) == 1, f"{kind} {name}: {[m['metadata']['name'] for m in found]}"
    return found[0]


def kinds(manifests: list[Manifest]) -> list[str]:
    return [manifest["kind"] for manifest in manifests]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others laid over them, as Helm does."""
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The spec of every pod that these objects make, whatever makes them, with its maker's name."""
    for manifest in manifests:
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        spec = manifest.get("spec", {})
        if manifest["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if manifest["kind"] == "AnalysisTemplate":
            spec = spec["metrics"][0]["provider"]["job"]["spec"]
        if "template" in spec:
            yield where, spec["template"]["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def environment(container: Manifest) -> dict[str, Any]:
    """Names and values of a container's variables; of one from a Secret the reference."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", ())}


def server(manifests: list[Manifest], slot: str = "blue") -> tuple[Manifest, Manifest]:
    """The pods' spec of a slot, and its server's container."""
    found = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"].endswith(f"-{slot}")]
    spec = found[0]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]
