"""Scaling, evictions, and who is let in."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.helm_chart import PUBLIC, kinds, merged, one, rendered, values_of
from tests.running import ROOT

GREEN = {"active": "green", "slots": {"green": {"enabled": True}}}


@pytest.mark.parametrize(("values", "slot"), [({}, "blue"), (GREEN, "green")])
def test_the_active_slot_is_scaled_and_never_below_one(values: dict[str, Any], slot: str) -> None:
    scaler = one(rendered(PUBLIC | values), "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == f"chat-stoker-{slot}"
    assert scaler["spec"]["minReplicas"] >= 1
    assert scaler["spec"]["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 80}
    keda = one(rendered(merged(values_of("redis-keda"), values)), "ScaledObject")
    assert keda["spec"]["scaleTargetRef"]["name"] == f"chat-stoker-{slot}"
    assert keda["spec"]["minReplicaCount"] == 2


def test_keda_takes_the_place_of_the_autoscaler_and_asks_every_pod() -> None:
    manifests = rendered(values_of("redis-keda"))
    assert "HorizontalPodAutoscaler" not in kinds(manifests)
    spec = one(manifests, "ScaledObject")["spec"]
    assert spec["advanced"]["scalingModifiers"] == {
        "formula": "running + waiting",
        "target": "6",
        "metricType": "AverageValue",
    }
    service = one(manifests, "Service", "chat-stoker-metrics")
    for trigger in spec["triggers"]:
        asked = trigger["metadata"]
        assert asked["url"] == f"http://{service['metadata']['name']}.ml.svc:9464/metrics"
        assert (asked["aggregateFromKubeServiceEndpoints"], asked["aggregationType"]) == ("true", "sum")
        # Series without labels, of all models: the names that docs/metrics.md promises.
        assert f"`{asked['valueLocation']}`" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_switched_off_there_is_no_scaler() -> None:
    manifests = rendered(PUBLIC | {"autoscaling": {"enabled": False, "keda": {"enabled": True}}})
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & set(kinds(manifests))


def test_argo_has_its_rollout_scaled() -> None:
    target = one(rendered(values_of("argo")), "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "chat-stoker"}


def test_evictions_are_limited_for_the_pods_that_serve() -> None:
    spec = one(rendered(PUBLIC | GREEN), "PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["selector"]["matchLabels"]["stoker.dev/slot"] == "green"
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def rules(values: dict[str, Any]) -> dict[str, Any]:
    """Who may come in at which port; None is everybody."""
    spec = one(rendered(values), "NetworkPolicy", "chat-stoker")["spec"]
    assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    return {port["port"]: rule.get("from") for rule in spec["ingress"] for port in rule["ports"]}


def test_monitoring_is_let_in_at_the_metrics_port_alone() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert rules(PUBLIC) == {"http": None, "metrics": [monitoring]}
    closed = {"networkPolicy": {"api": {"from": [{"podSelector": {}}]}}}
    found = rules(PUBLIC | closed)
    assert monitoring not in found["http"]
    assert found["metrics"] == [monitoring]


def test_keda_is_let_in_only_where_it_scales() -> None:
    keda = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert keda in rules(values_of("redis-keda"))["metrics"]
    assert keda not in rules(PUBLIC)["metrics"]


def test_nobody_means_nobody_and_not_everybody() -> None:
    assert rules(PUBLIC | {"networkPolicy": {"metrics": {"from": []}}}) == {"http": None}


def test_where_the_api_is_closed_the_gate_still_gets_in() -> None:
    values = merged(values_of("gateway"), values_of("gate"))
    manifests = rendered(values)
    labels = one(manifests, "Job")["spec"]["template"]["metadata"]["labels"]
    admitted = [peer["podSelector"]["matchLabels"] for peer in rules(values)["http"] if "podSelector" in peer]
    assert any(selector.items() <= labels.items() for selector in admitted)
    jobs = one(manifests, "NetworkPolicy", "chat-stoker-jobs")["spec"]
    assert jobs["ingress"] == []
    assert labels["app.kubernetes.io/component"] in jobs["podSelector"]["matchExpressions"][0]["values"]


def test_a_network_policy_says_nothing_of_egress_unless_asked() -> None:
    for manifest in rendered(PUBLIC):
        if manifest["kind"] == "NetworkPolicy":
            assert manifest["spec"]["policyTypes"] == ["Ingress"]
            assert "egress" not in manifest["spec"]
    egress = one(rendered(values_of("gateway")), "NetworkPolicy", "chat-stoker")["spec"]["egress"]
    assert {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]} in egress
    assert any(port["port"] == 53 for rule in egress for port in rule.get("ports", ()))


def test_monitors_give_series_the_job_that_the_alerts_look_for() -> None:
    manifests = rendered(values_of("monitoring"))
    service = one(manifests, "Service", "chat-stoker-metrics")
    monitor = one(manifests, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "stoker"
    others = [m for m in manifests if m["kind"] == "Service" and m is not service]
    assert not any(monitor["selector"]["matchLabels"].items() <= m["metadata"]["labels"].items() for m in others)
    pods = one(manifests, "PodMonitor")["spec"]
    labels = one(manifests, "Deployment", "chat-stoker-blue")["spec"]["template"]["metadata"]["labels"]
    assert pods["selector"]["matchLabels"].items() <= labels.items()
    assert labels[pods["jobLabel"]] == "stoker"
    assert one(manifests, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"


def test_rules_and_dashboards_arrive_as_they_are() -> None:
    manifests = rendered(values_of("monitoring"))
    written = yaml.safe_load((ROOT / "deploy/prometheus/stoker.rules.yml").read_text(encoding="utf-8"))
    assert one(manifests, "PrometheusRule")["spec"] == written
    shown = one(manifests, "ConfigMap", "chat-stoker-dashboards")
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    boards = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "deploy/grafana/dashboards").glob("*")}
    assert {name: text.rstrip() for name, text in shown["data"].items()} == {
        name: text.rstrip() for name, text in boards.items()
    }
    assert sum(map(len, shown["data"].values())) < 1_000_000  # what a ConfigMap may hold


def test_ways_in_from_outside_lead_to_the_active_service() -> None:
    rule = one(rendered(values_of("ingress")), "Ingress")["spec"]["rules"][0]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert (rule["host"], backend) == ("chat.example.com", {"name": "chat-stoker", "port": {"name": "http"}})
    route = one(rendered(values_of("gateway")), "HTTPRoute")["spec"]
    assert route["rules"][0]["backendRefs"] == [{"name": "chat-stoker", "port": 8080}]
    assert route["rules"][0]["timeouts"] == {"request": "3600s"}
