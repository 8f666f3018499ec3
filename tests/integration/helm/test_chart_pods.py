"""Pods: what they may, how they stop, what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helm_chart import (
    FILES,
    PUBLIC,
    containers,
    environment,
    merged,
    one,
    pod_specs,
    rendered,
    server,
    values_of,
)

from stoker.config import load

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def level(spec: dict[str, Any], container: dict[str, Any], key: str) -> Any:
    """A field of the security context, of the container or else of the pod."""
    return container["securityContext"].get(key, spec["securityContext"].get(key))


@every_file
def test_every_pod_is_of_the_restricted_profile(file: Path) -> None:
    found = list(pod_specs(rendered(values_of(file.stem))))
    assert found
    for where, spec in found:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, where
        for container in containers(spec):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
            assert not own.get("privileged")
            assert level(spec, container, "runAsNonRoot") is True
            assert level(spec, container, "runAsUser") == 10001
            assert level(spec, container, "seccompProfile") == {"type": "RuntimeDefault"}
            assert all("hostPort" not in port for port in container.get("ports", ()))


@every_file
def test_no_pod_gets_a_token_or_variables_of_services(file: Path) -> None:
    for where, spec in pod_specs(rendered(values_of(file.stem))):
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where


@every_file
def test_what_is_mounted_is_there_and_the_root_can_stay_read_only(file: Path) -> None:
    for where, spec in pod_specs(rendered(values_of(file.stem))):
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"]), where
        for container in containers(spec):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert len(mounts) == len(container["volumeMounts"]), where
            assert set(mounts.values()) <= volumes, where
            assert {"/tmp", "/data"} <= mounts.keys(), where
        mounted = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert volumes == mounted, where


@every_file
def test_every_container_has_requests_and_a_bound_of_memory(file: Path) -> None:
    for where, spec in pod_specs(rendered(values_of(file.stem))):
        for container in containers(spec):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
            assert "memory" in container["resources"]["limits"], where


@pytest.mark.parametrize("drain", [0, 30, 600])
@pytest.mark.parametrize("pre_stop", [0, 5, 60])
def test_the_grace_period_is_what_stopping_takes(drain: int, pre_stop: int) -> None:
    manifests = rendered(PUBLIC | {"drainSeconds": drain, "preStopSeconds": pre_stop})
    spec, container = server(manifests)
    assert spec["terminationGracePeriodSeconds"] == pre_stop + drain + 15
    slept = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert slept == pre_stop
    assert settings_text(manifests)["timeouts"]["shutdown"] == drain


def test_a_rolling_update_never_has_less_than_there_should_be() -> None:
    for slot in ("blue", "green"):
        strategy = one(rendered(PUBLIC), "Deployment", f"chat-stoker-{slot}")["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_probes_ask_the_three_routes_at_the_apis_port() -> None:
    _, container = server(rendered(PUBLIC))
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/health/startup", "port": "http"},
        "liveness": {"path": "/health/live", "port": "http"},
        "readiness": {"path": "/health/ready", "port": "http"},
    }
    patience = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert patience >= 300  # timeouts.load


def settings_text(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """The stoker.yaml of a release."""
    name = one(manifests, "PodDisruptionBudget")["metadata"]["name"]
    return yaml.safe_load(one(manifests, "ConfigMap", name)["data"]["stoker.yaml"])


@every_file
def test_the_server_understands_what_it_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered(values_of(file.stem))
    where = next(m["spec"]["template"]["spec"] for m in manifests if m["kind"] in {"Deployment", "Rollout"})
    config = tmp_path / "stoker.yaml"
    config.write_text(yaml.safe_dump(settings_text(manifests)), encoding="utf-8")
    for name, value in environment(where["containers"][0]).items():
        if name.startswith("STOKER_") and isinstance(value, str):
            monkeypatch.setenv(name, value)
    settings = load(config)
    assert (settings.host, settings.port, settings.monitor.port) == ("0.0.0.0", 8080, 9464)
    assert str(settings.data_dir) == "/data"
    assert [model.name for model in settings.models] == ["remote" if file.stem == "upstream" else "chat"]
    assert (settings.keys_file is not None) is ("existingSecret" in values_of(file.stem)["keys"])


def test_settings_of_the_user_go_over_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = merged(
        values_of("baked"), {"config": {"port": 9000, "monitor": {"port": 9100}, "log": {"format": "console"}}}
    )
    manifests = rendered(values)
    _, container = server(manifests)
    assert [port["containerPort"] for port in container["ports"]] == [9000, 9100]
    assert environment(container)["STOKER_PORT"] == "9000"
    assert environment(container)["STOKER_LOG__FORMAT"] == "console"
    written = settings_text(manifests)
    assert written["limits"]["body_bytes"] == 8388608
    assert one(manifests, "Service", "chat-stoker-metrics")["spec"]["ports"][0]["port"] == 9100
    assert one(manifests, "Service", "chat-stoker")["spec"]["ports"][0] == {
        "name": "http",
        "port": 8080,
        "targetPort": "http",
        "protocol": "TCP",
        "appProtocol": "http",
    }


def test_a_change_of_settings_makes_new_pods() -> None:
    sums = {
        one(rendered(PUBLIC | {"config": config}), "Deployment", "chat-stoker-blue")["spec"]["template"]["metadata"][
            "annotations"
        ]["checksum/config"]
        for config in ({}, {"guard": {"mode": "block"}})
    }
    assert len(sums) == 2


def test_secrets_come_by_reference_only() -> None:
    values = merged(values_of("redis-keda"), values_of("backup"))
    _, container = server(rendered(values))
    assert environment(container)["STOKER_STORE__REDIS"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert container["envFrom"] == [{"secretRef": {"name": "backup-s3"}}]
    spec, container = server(rendered(values_of("default")))
    assert {"name": "keys", "secret": {"secretName": "stoker-keys", "defaultMode": 0o440}} in spec["volumes"]
    assert {"name": "keys", "mountPath": "/etc/stoker/keys", "readOnly": True} in container["volumeMounts"]
