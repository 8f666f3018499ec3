"""References, values, figures, objects: what deploys decide without a cluster."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.deploys import DEFAULTS, metrics_text

from stoker.config import RolloutConfig
from stoker.errors import ConfigError
from stoker.rollout.cluster import Deploy, Slot, Step, deserted, next_step, taken_up
from stoker.rollout.cluster_argo import ArgoSlots
from stoker.rollout.cluster_diff import manifest_diff, values_diff
from stoker.rollout.cluster_figures import Counts, Looks, between, counts_of, judged, level_document, level_of, quantile
from stoker.rollout.cluster_helm import Disagreement, Revision, standing_of
from stoker.rollout.cluster_reading import argo_of, pod_of, serving_slot, slot_of
from stoker.rollout.cluster_values import Order, filled, finished, image_of, model_of, remembered, returned
from stoker.rollout.watch import Level

DIGEST = "sha256:" + "a" * 64


def a_deploy(**changes: Any) -> Deploy:
    return Deploy(**{"id": "dep-1", "old": "blue", "new": "green", **changes})


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("chat:2", ("chat", "2", "")),
        ("localhost:5000/a/chat:2", ("localhost:5000/a/chat", "2", "")),
        (f"localhost:5000/chat@{DIGEST}", ("localhost:5000/chat", "", DIGEST)),
        (f"chat:2@{DIGEST}", ("chat", "2", DIGEST)),
    ],
)
def test_images(reference: str, parts: tuple[str, str, str]) -> None:
    assert tuple(image_of(reference).values()) == parts


@pytest.mark.parametrize("reference", ["chat", "localhost:5000/chat", "chat:", "chat:1@sha256:12", ":2", "a b:1", ""])
def test_no_images(reference: str) -> None:
    with pytest.raises(ConfigError, match="--image"):
        image_of(reference)


def test_models_go_with_how_they_are_delivered() -> None:
    hub = "hf:org/repo/a.gguf"
    assert model_of(hub, "b" * 64, {"delivery": "claim"}) == {"source": hub, "sha256": "b" * 64}
    assert model_of("/models/b.gguf", None, {"delivery": "image"}) == {"file": "/models/b.gguf"}
    assert model_of("chat-model:2", None, {"delivery": "imageVolume"}) == {"imageVolume": {"reference": "chat-model:2"}}
    for model, sha256, delivery in (
        (hub, None, "image"),
        ("/a.gguf", None, "none"),
        ("/a.gguf", "b" * 64, "image"),
        (hub, "xyz", "claim"),
    ):
        with pytest.raises(ConfigError):
            model_of(model, sha256, {"delivery": delivery})


def test_filling_touches_the_idle_slot_alone() -> None:
    given = {"config": {"log": {"level": "info"}}, "slots": {"blue": {"image": {"tag": "1"}}}}
    full = {**DEFAULTS, "slots": {**DEFAULTS["slots"], "blue": {**DEFAULTS["slots"]["blue"], "image": {"tag": "1"}}}}
    then = filled(given, full, Order(image="chat:2"), a_deploy(), Slot("blue", 2, 2))
    assert then["slots"]["blue"] == given["slots"]["blue"]
    assert then["slots"]["green"]["image"] == {"repository": "chat", "tag": "2", "digest": ""}
    assert "active" not in then
    assert given == {"config": {"log": {"level": "info"}}, "slots": {"blue": {"image": {"tag": "1"}}}}


def test_argo_has_no_slots() -> None:
    deploy = a_deploy(old="stable", new="preview", was=remembered(DEFAULTS, "preview"), gate_was={})
    then = filled({}, DEFAULTS, Order(image="chat:2"), deploy, Slot("stable"))
    assert then["image"]["tag"] == "2"
    assert then["gate"]["enabled"] is True
    assert "slots" not in then
    assert returned(then, deploy)["image"]["tag"] == "1"
    assert finished(then, deploy.changed(step="refused"))["image"]["tag"] == "1"
    assert finished(then, deploy.changed(step="succeeded"))["image"]["tag"] == "2"


def test_a_deploy_is_kept_in_values() -> None:
    deploy = a_deploy(step="baking", bake_until=5.0, baseline=level_document(Level(10, 1, 9, 0.1)), was={"image": {}})
    kept = deploy.saved()
    assert (kept["from"], kept["to"], kept["bakeUntil"]) == ("blue", "green", 5.0)
    assert Deploy.parse(kept) == deploy
    assert Deploy.parse({}) is None
    for bad in ({"id": "x"}, {**kept, "step": "dancing"}, {**kept, "to": "blue"}):
        with pytest.raises(ValueError, match="not written by"):
            Deploy.parse(bad)


def test_steps() -> None:
    ready, loading = Slot("green", 2, 2), Slot("green", 2, 1)
    assert next_step(a_deploy(), loading, 10).act == "wait"
    assert next_step(a_deploy(), Slot("green", 2, 2, settled=False), 10).act == "wait"
    assert next_step(a_deploy(), Slot("green"), 10).act == "wait"
    assert next_step(a_deploy(), ready, 10) == Step("switch")
    baking = a_deploy(step="baking", bake_until=100.0)
    assert next_step(baking, ready, 99).act == "wait"
    assert next_step(baking, ready, 101).outcome == "succeeded"
    assert next_step(baking, ready, 101, worse="slow") == Step("back", "slow")
    assert next_step(a_deploy(step="returning", note="slow"), ready, 0) == Step("finish", "slow", "rolled_back")
    assert next_step(a_deploy(step="refused"), ready, 0).act == "nothing"
    assert taken_up(baking, 1000).bake_until == 1030
    assert taken_up(a_deploy(), 1000).created == 1000


def test_deserted() -> None:
    slot = Slot("green", 3, 1)
    assert deserted(slot, 3, 4.9, 59) is None
    assert "no pod" in str(deserted(slot, 3, 5.0, 5.0))
    assert "only 1 of 3" in str(deserted(slot, 3, 0.0, 60.0))


def test_counts_and_levels() -> None:
    counts = counts_of(metrics_text(100, failed=10))
    assert (counts.requests, counts.failed, counts.level.timed) == (100, 10, 100)
    assert counts.level.ttft_p95 == pytest.approx(0.0975)
    later = counts_of(metrics_text(300, failed=20))
    assert later.since(counts).level.error_rate == pytest.approx(0.05)
    assert counts.since(later) == counts  # it has started anew
    assert between({"a": counts}, {"a": later, "b": counts}).requests == 300
    assert level_of(level_document(counts.level)) == counts.level
    assert level_of(None) is None
    assert judged(None, Level(100, 50, 100, 1.0), RolloutConfig())


def test_quantile() -> None:
    assert quantile({}, 0.95) is None
    assert quantile({0.1: 0, 1.0: 100, math.inf: 100}, 0.5) == pytest.approx(0.55)
    assert quantile({0.1: 10, math.inf: 100}, 0.95) == 0.1


def test_looks_forget_what_was_long_ago() -> None:
    looks = Looks()
    for at in range(0, 1000, 10):
        looks.add(at, {"a": Counts(requests=at)})
    assert 300 <= looks.level.requests <= 310
    assert looks.whole.requests == 990


def a_pod(**status: Any) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9464}]
    return {
        "metadata": {"name": "p", "labels": {"stoker.dev/slot": "green"}},
        "spec": {"containers": [{"ports": ports}]},
        "status": status,
    }


def waiting(reason: str, restarts: int = 0) -> list[dict[str, Any]]:
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    state = {"waiting": {"reason": reason, "message": "no such image"}}
    return [{"name": "stoker", "restartCount": restarts, "state": state, "lastState": ended if restarts else {}}]


def test_pods() -> None:
    ready = pod_of(a_pod(conditions=[{"type": "Ready", "status": "True"}]))
    assert (ready.ready, ready.port, ready.trouble) == (True, 9464, "")
    assert pod_of(a_pod(containerStatuses=waiting("ContainerCreating"))).trouble == ""
    pulling = pod_of(a_pod(containerStatuses=waiting("ImagePullBackOff")))
    assert (pulling.stuck, pulling.trouble) == (True, "ImagePullBackOff no such image")
    assert not pod_of(a_pod(containerStatuses=waiting("CrashLoopBackOff", 1))).stuck
    crashing = pod_of(a_pod(initContainerStatuses=waiting("CrashLoopBackOff", 2)))
    assert (crashing.stuck, "OOMKilled, status 137" in crashing.trouble) == (True, True)
    nowhere = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]
    assert pod_of(a_pod(conditions=nowhere)).trouble == "Unschedulable 0/1 nodes"


def test_slots() -> None:
    status = {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    deployment = {"metadata": {"name": "d", "generation": 3}, "spec": {"replicas": 2}, "status": status}
    assert slot_of("green", deployment, [a_pod()]).complete
    assert len(slot_of("green", deployment, [a_pod()]).pods) == 1
    assert not slot_of("green", {**deployment, "metadata": {"generation": 4}}, []).complete
    assert not slot_of("green", {**deployment, "status": {**status, "replicas": 3}}, []).complete
    assert not slot_of("green", {**deployment, "spec": {"replicas": 0}, "status": {}}, []).complete
    preview = {
        "metadata": {"labels": {"app.kubernetes.io/component": "preview"}},
        "spec": {"selector": {"stoker.dev/slot": "green"}},
    }
    active = {"metadata": {}, "spec": {"selector": {"stoker.dev/slot": "blue"}}}
    assert serving_slot([preview, active]) == "blue"
    assert serving_slot([preview]) is None


def a_rollout(phase: str, serving: str = "old", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": "2",
            "phase": phase,
            "currentPodHash": "new",
            "blueGreen": {"activeSelector": serving},
            **status,
        },
    }


def test_argo() -> None:
    assert argo_of(a_rollout("Healthy", "new")).phase == "done"
    assert argo_of(a_rollout("Healthy")).phase == "progressing"
    assert argo_of(a_rollout("Progressing")).phase == "progressing"
    assert argo_of(a_rollout("Degraded", message="analysis failed")).why == "analysis failed"
    assert argo_of(a_rollout("Paused", pauseConditions=[{"reason": "BlueGreenPause"}])).phase == "paused"
    assert argo_of({**a_rollout("Healthy", "new"), "metadata": {"generation": 3}}).phase == "progressing"


def test_argo_as_slots() -> None:
    class Fake:
        def __init__(self, rollout: dict[str, Any]) -> None:
            self.rollout = rollout
            self.promoted = 0

        def argo(self) -> dict[str, Any]:
            return self.rollout

        def argo_slot(self, pods_hash: str) -> Slot:
            return Slot(pods_hash, 1, 1)

        def argo_promote(self) -> None:
            self.promoted += 1

        def metrics(self, *_: object) -> str:
            return ""

        def gate_log(self) -> str:
            return ""

    assert ArgoSlots(Fake(a_rollout("Healthy", "new"))).slots()["preview"].complete
    assert not ArgoSlots(Fake(a_rollout("Progressing"))).slots()["preview"].complete
    assert "analysis" in ArgoSlots(Fake(a_rollout("Degraded", message="analysis"))).slots()["preview"].stuck
    held = Fake(a_rollout("Paused", pauseConditions=[{}]))
    ArgoSlots(held).slots()
    assert held.promoted == 1


def test_standing() -> None:
    history = [Revision(1, "superseded", 0), Revision(2, "deployed", 1), Revision(3, "failed", 2)]
    assert (standing_of(history).deployed, standing_of(history).pending_since) == (2, None)
    assert standing_of([*history, Revision(4, "pending-upgrade", 9)]).pending_since == 9
    with pytest.raises(Disagreement):
        standing_of([Revision(1, "failed", 0)])


def test_differences() -> None:
    assert "+active: green" in values_diff({"active": "blue"}, {"active": "green"})
    secret = "kind: Secret\nmetadata: {name: s}\nstringData: {a: hidden-word}\n"
    service = "kind: Service\nmetadata: {name: s}\nspec: {selector: {slot: %s}}\n"
    lines = manifest_diff(
        f"{secret}\n---\n{service % 'blue'}", f"{service % 'green'}\n---\n{secret.replace('{a:', '{b:')}"
    )
    assert "+    slot: green" in lines
    assert "hidden-word" not in "\n".join(lines)
