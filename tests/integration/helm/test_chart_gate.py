"""The gate: a Job before the upgrade that switches, which decides whether it happens."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.helm_chart import environment, kinds, merged, one, rendered, values_of
from typer.main import get_command

from stoker.cli.main import app
from stoker.evaluation.sets import parse_set


def understood(arguments: list[str]) -> dict[str, Any]:
    """What `stoker` makes of a container's arguments; an error where it would refuse them."""
    command: Any = get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return command.make_context("stoker", rest).params


def test_it_is_a_hook_that_leaves_everything_as_it_was_when_it_fails() -> None:
    manifests = rendered(values_of("gate"))
    job = one(manifests, "Job", "chat-stoker-gate")
    assert job["metadata"]["annotations"] == {
        "helm.sh/hook": "pre-upgrade",
        "helm.sh/hook-weight": "0",
        "helm.sh/hook-delete-policy": "before-hook-creation",
    }
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 900
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    hooks = [m for m in manifests if "helm.sh/hook" in m["metadata"].get("annotations", {})]
    assert sorted(kinds(hooks)) == ["ConfigMap", "Job"]


def test_the_set_is_there_before_the_job_is() -> None:
    manifests = rendered(values_of("gate"))
    kept = one(manifests, "ConfigMap", "chat-stoker-gate")
    annotations = kept["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade"
    assert int(annotations["helm.sh/hook-weight"]) < 0
    assert parse_set(yaml.safe_load(kept["data"]["set.yaml"])).name == "capitals"


def test_it_asks_the_idle_slot_against_the_one_that_serves() -> None:
    job = one(rendered(values_of("gate")), "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    given = understood(container["args"])
    assert given["url"] == "http://chat-stoker-preview:8080"
    assert given["against"] == "http://chat-stoker:8080"
    assert (given["model"], given["against_model"]) == ("chat-2", "chat")
    assert container["image"] == "stoker:2"
    assert environment(container)["STOKER_API_KEY"] == {"secretKeyRef": {"name": "gate-key", "key": "api-key"}}


def test_without_keys_and_with_the_set_that_ships_there_is_little_to_say() -> None:
    values = merged(values_of("green"), {"gate": {"enabled": True}, "service": {"port": 80}})
    manifests = rendered(values)
    container = one(manifests, "Job")["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][1] == "smoke"
    assert understood(container["args"])["url"] == "http://chat-stoker-preview:80"
    assert "env" not in container
    assert kinds(manifests).count("ConfigMap") == 1


@pytest.mark.parametrize("name", ["default", "green"])
def test_there_is_none_unless_it_is_asked_for(name: str) -> None:
    assert "Job" not in kinds(rendered(values_of(name)))


def test_its_pods_are_not_taken_for_the_servers() -> None:
    manifests = rendered(values_of("gate"))
    labels = one(manifests, "Job")["spec"]["template"]["metadata"]["labels"]
    for service in (manifest for manifest in manifests if manifest["kind"] == "Service"):
        assert not service["spec"]["selector"].items() <= labels.items()


def test_argo_runs_the_same_job_as_its_analysis() -> None:
    metric = one(rendered(values_of("argo")), "AnalysisTemplate")["spec"]["metrics"][0]
    assert (metric["count"], metric["failureLimit"]) == (1, 0)
    plain = one(rendered(merged(values_of("green"), {"gate": {"enabled": True}})), "Job")["spec"]
    job = metric["provider"]["job"]["spec"]
    for spec in (plain, job):
        del spec["template"]["spec"]["containers"][0]["image"]
    assert job == plain


@pytest.mark.parametrize("container", ["create", "prune", "drill"])
def test_backup_commands_are_ones_that_stoker_knows(container: str) -> None:
    manifests = rendered(values_of("backup"))
    found = {
        one["name"]: one
        for manifest in manifests
        if manifest["kind"] == "CronJob"
        for spec in [manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
        for one in [*spec.get("initContainers", ()), *spec["containers"]]
    }
    given = understood(found[container]["args"])
    assert given["repository"] == "s3://backups/stoker"
    if container == "prune":
        assert (given["keep_daily"], given["keep_weekly"], given["keep_tag"]) == (7, 4, ["release"])
    assert found[container]["envFrom"] == [{"secretRef": {"name": "backup-s3"}}]
    passphrase = environment(found[container])["STOKER_BACKUP__KEY"]
    assert passphrase == {"secretKeyRef": {"name": "backup-key", "key": "passphrase"}}


def test_without_rules_nothing_is_pruned() -> None:
    none = dict.fromkeys(("daily", "weekly", "tags"), None)
    manifests = rendered(merged(values_of("backup"), {"backup": {"retention": none}}))
    spec = one(manifests, "CronJob", "chat-stoker-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert "initContainers" not in spec
    assert spec["containers"][0]["args"][:2] == ["backup", "create"]


def test_a_backup_job_sees_the_models_that_the_active_slot_serves() -> None:
    values = merged(values_of("backup"), values_of("green"))
    spec = one(rendered(values), "CronJob", "chat-stoker-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    create = spec["initContainers"][0]
    assert create["image"] == "registry.example.com/chat:2"
    assert "/models/other.gguf" in environment(create)["STOKER_MODELS"]


def test_a_drill_gets_nothing_of_the_release_but_the_way_to_the_repository() -> None:
    values = merged(values_of("claim"), values_of("backup"))
    spec = one(rendered(values), "CronJob", "chat-stoker-drill")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert {volume["name"] for volume in spec["volumes"]} == {"work", "data", "tmp"}
