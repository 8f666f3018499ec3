"""Blue and green: one pod template, and one value that says which of them serves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.helm_chart import FILES, PUBLIC, environment, merged, one, rendered, server, values_of

BOTH = {"slots": {"blue": {"enabled": True}, "green": {"enabled": True}}}
SLOTTED = [file.stem for file in FILES if file.stem != "argo"]


def selectors(values: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What the active and the preview Service select."""
    manifests = rendered(values)
    fullname = values.get("fullnameOverride", "chat-stoker")
    active, preview = (one(manifests, "Service", f"{fullname}{end}") for end in ("", "-preview"))
    return active["spec"]["selector"], preview["spec"]["selector"]


@pytest.mark.parametrize("active", ["blue", "green"])
@pytest.mark.parametrize("name", SLOTTED)
def test_the_selector_follows_active_and_nothing_else(name: str, active: str) -> None:
    values = merged(merged(values_of(name), BOTH), {"active": active})
    expected = {
        "app.kubernetes.io/name": "stoker",
        "app.kubernetes.io/instance": "chat",
        "app.kubernetes.io/component": "server",
    }
    other = "green" if active == "blue" else "blue"
    assert selectors(values) == (expected | {"stoker.dev/slot": active}, expected | {"stoker.dev/slot": other})


def test_what_deploy_notes_down_changes_an_annotation_only() -> None:
    plain = rendered(PUBLIC)
    noted = rendered(PUBLIC | {"deploy": {"id": "dep-1", "step": "bake", "to": "green", "active": "green"}})
    service = one(noted, "Service", "chat-stoker")
    assert '"dep-1"' in service["metadata"].pop("annotations")["stoker.dev/deploy"]
    assert noted == plain


def test_a_switch_changes_no_deployment() -> None:
    before, after = (rendered(PUBLIC | BOTH | {"active": active}) for active in ("blue", "green"))
    for slot in ("blue", "green"):
        assert one(before, "Deployment", f"chat-stoker-{slot}") == one(after, "Deployment", f"chat-stoker-{slot}")
    changed = {(old["kind"], old["metadata"]["name"]) for old, new in zip(before, after, strict=True) if old != new}
    assert changed == {
        ("Service", "chat-stoker"),
        ("Service", "chat-stoker-preview"),
        ("HorizontalPodAutoscaler", "chat-stoker"),
        ("PodDisruptionBudget", "chat-stoker"),
    }


def template(values: dict[str, Any], slot: str) -> dict[str, Any]:
    """A slot's pod template without what may differ: the slot's name, the image, the model."""
    found = one(rendered(values), "Deployment", f"{values.get('fullnameOverride', 'chat-stoker')}-{slot}")
    cut = copy.deepcopy(found["spec"]["template"])
    del cut["metadata"]["labels"]["stoker.dev/slot"]
    for spread in cut["spec"].get("topologySpreadConstraints", ()):
        assert spread["labelSelector"]["matchLabels"].pop("stoker.dev/slot") == slot
    for container in cut["spec"]["containers"]:
        del container["image"]
        container["env"] = [entry for entry in container["env"] if entry["name"] != "STOKER_MODELS"]
    return cut


@pytest.mark.parametrize("name", SLOTTED)
def test_both_slots_have_one_template_but_for_image_and_model(name: str) -> None:
    values = merged(values_of(name), BOTH)
    assert template(values, "blue") == template(values, "green")


def test_a_slot_overrides_image_and_model() -> None:
    values = values_of("green")
    manifests = rendered(values)
    (_, blue), (_, green) = server(manifests, "blue"), server(manifests, "green")
    assert (blue["image"], green["image"]) == ("stoker:0.1.0", "registry.example.com/chat:2")
    assert environment(blue)["STOKER_MODELS"] == '[{"name":"chat","source":"/models/chat.gguf"}]'
    assert environment(green)["STOKER_MODELS"] == '[{"name":"chat","source":"/models/other.gguf"}]'


@pytest.mark.parametrize(
    ("own", "image"),
    [
        ({}, "registry.example.com/chat:2026-11@sha256:" + "0" * 63 + "1"),
        ({"tag": "3"}, "registry.example.com/chat:3"),
        ({"repository": "other"}, "other:2026-11"),
        ({"tag": "", "digest": "sha256:" + "a" * 64}, "registry.example.com/chat@sha256:" + "a" * 64),
        ({"tag": "3", "digest": "sha256:" + "a" * 64}, "registry.example.com/chat:3@sha256:" + "a" * 64),
    ],
)
def test_a_digest_does_not_outlive_the_tag_that_it_was_for(own: dict[str, str], image: str) -> None:
    values = merged(values_of("baked"), {"slots": {"green": {"enabled": True, "image": own}}})
    assert server(rendered(values), "green")[1]["image"] == image


def test_a_sha256_does_not_outlive_the_source_that_it_was_for() -> None:
    own = {"source": "https://example.com/new.gguf"}
    manifests = rendered(merged(values_of("claim"), {"slots": {"green": {"enabled": True, "model": own}}}))
    fetch = server(manifests, "green")[0]["initContainers"][0]
    assert environment(fetch)["MODEL_SHA256"] is None or environment(fetch)["MODEL_SHA256"] == ""
    assert environment(fetch)["MODEL_SOURCE"] == "https://example.com/new.gguf"


@pytest.mark.parametrize(
    ("values", "blue", "green"),
    [
        ({}, 1, 0),
        ({"replicas": 3}, 3, 0),
        ({"replicas": 3, "slots": {"green": {"enabled": True}}}, 3, 3),
        ({"replicas": 3, "slots": {"green": {"enabled": True, "replicas": 2}}}, 3, 2),
        ({"replicas": 9}, 4, 0),
        ({"replicas": 9, "autoscaling": {"enabled": False}}, 9, 0),
        ({"autoscaling": {"minReplicas": 2}}, 2, 0),
        ({"active": "green", "slots": {"blue": {"enabled": False}, "green": {"enabled": True}}}, 0, 1),
    ],
)
def test_how_many_pods_a_slot_starts_with(values: dict[str, Any], blue: int, green: int) -> None:
    manifests = rendered(PUBLIC | values)
    counts = [one(manifests, "Deployment", f"chat-stoker-{slot}")["spec"]["replicas"] for slot in ("blue", "green")]
    assert counts == [blue, green]


def test_with_argo_there_is_one_rollout_behind_the_same_services() -> None:
    manifests = rendered(values_of("argo"))
    rollout = one(manifests, "Rollout", "chat-stoker")
    assert "Deployment" not in {manifest["kind"] for manifest in manifests}
    strategy = rollout["spec"]["strategy"]["blueGreen"]
    assert (strategy["activeService"], strategy["previewService"]) == ("chat-stoker", "chat-stoker-preview")
    assert strategy["autoPromotionEnabled"] is False
    assert strategy["prePromotionAnalysis"] == {"templates": [{"templateName": "chat-stoker-gate"}]}
    for end in ("", "-preview"):
        # Argo adds its own label to both.
        assert "stoker.dev/slot" not in one(manifests, "Service", f"chat-stoker{end}")["spec"]["selector"]
    selector = rollout["spec"]["selector"]["matchLabels"]
    assert selector.items() <= rollout["spec"]["template"]["metadata"]["labels"].items()
