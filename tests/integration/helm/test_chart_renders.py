"""Every set of values renders to objects that Kubernetes takes, whole and without unknown fields."""

from __future__ import annotations

import re
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml
from tests.helm_chart import CHART, FILES, kinds, notes, one, rendered, values_of

from stoker import __version__

VERSION = "1.34"
DEFINED_ELSEWHERE = {
    "Rollout",
    "AnalysisTemplate",
    "ScaledObject",
    "HTTPRoute",
    "ServiceMonitor",
    "PodMonitor",
    "PrometheusRule",
}
"""Kinds of custom resources, which a cluster's API server checks in the tests of `make test-cluster`."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@every_file
def test_a_rendering_is_valid_to_the_last_field(file: Path) -> None:
    manifests = rendered(values_of(file.stem))
    assert manifests
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            assert manifest["kind"] in DEFINED_ELSEWHERE


@every_file
def test_helm_finds_nothing_to_say_against_it(file: Path) -> None:
    report = helm_python.lint(CHART, values_of(file.stem), strict=True)
    assert not report["errors"]
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@every_file
def test_objects_carry_the_usual_labels_and_no_name_comes_twice(file: Path) -> None:
    manifests = rendered(values_of(file.stem))
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "stoker"
        assert labels["app.kubernetes.io/instance"] == "chat"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert manifest["metadata"]["namespace"] == "ml"
        assert NAME.fullmatch(manifest["metadata"]["name"])
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(names) == len(set(names))


def test_the_agreed_names() -> None:
    manifests = rendered(values_of("default"))
    assert {m["metadata"]["name"] for m in manifests if m["kind"] == "Service"} == {
        "chat-stoker",
        "chat-stoker-preview",
        "chat-stoker-metrics",
    }
    assert one(manifests, "Deployment", "chat-stoker-green")["spec"]["replicas"] == 0
    assert one(manifests, "Deployment", "chat-stoker-blue")["spec"]["replicas"] == 1
    named_so = rendered(values_of("default"), name="stoker")
    assert one(named_so, "Deployment", "stoker-blue")


def test_the_default_makes_nothing_that_needs_an_operator() -> None:
    assert not DEFINED_ELSEWHERE & set(kinds(rendered(values_of("default"))))


def test_a_long_release_name_still_gives_names_that_fit() -> None:
    for values in ("default", "backup"):
        for manifest in rendered(values_of(values), name="a" * 53):
            limit = 52 if manifest["kind"] == "CronJob" else 63
            assert len(manifest["metadata"]["name"]) <= limit, manifest["metadata"]["name"]


def test_the_chart_is_of_the_programs_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == __version__


def test_notes_say_who_serves_and_what_is_missing() -> None:
    alone = notes(values_of("default"))
    assert "blue serves." in alone
    assert "X-API-Key" in alone
    assert "redis.url" in alone
    green = notes(values_of("green"))
    assert "green serves, blue is loaded beside it" in green
    assert "stoker deploy status chat -n ml" in green
    assert "redis.url" not in notes(values_of("redis-keda"))
    assert "chat.example.com" in notes(values_of("gateway"))
