"""What the objects of a cluster say about slots, pods and Argo's Rollout. Pure: JSON in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from stoker.rollout.cluster import Pod, Slot

SLOT_LABEL: Final = "stoker.dev/slot"
HASH_LABEL: Final = "rollouts-pod-template-hash"
HOPELESS: Final = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "ErrImageNeverPull",
        "ImagePullBackOff",
        "InvalidImageName",
    }
)
"""What a container waits for that will not come by itself."""
RESTARTS: Final = 2
"""Restarts after which a crashing container is given up; the first may be the node's doing."""
LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class ArgoState:
    """How an Argo Rollout stands.

    Attributes:
        phase: `progressing`; `paused`, waiting for a promotion; `done`, the wanted version serves; `failed`.
        why: what it says about that.
        serving: hash of the pods that serve.
        wanted: hash of the pods that are to serve.
    """

    phase: Literal["progressing", "paused", "done", "failed"]
    why: str
    serving: str
    wanted: str


def labels_of(thing: Mapping[str, Any]) -> Mapping[str, str]:
    """An object's labels."""
    return thing["metadata"].get("labels") or {}


def slot_of(name: str, deployment: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> Slot:
    """A slot from its Deployment and all pods of the release."""
    status, spec = deployment.get("status") or {}, deployment.get("spec") or {}
    seen = (status.get("observedGeneration") or 0) >= (deployment["metadata"].get("generation") or 0)
    updated = status.get("updatedReplicas") or 0
    own = tuple(pod_of(pod) for pod in pods if labels_of(pod).get(SLOT_LABEL) == name and _stays(pod))
    return Slot(
        name=name,
        wanted=spec.get("replicas", 1) or 0,
        ready=min(updated, status.get("availableReplicas") or 0),
        settled=seen and (status.get("replicas") or 0) == updated,
        pods=own,
    )


def pod_of(pod: Mapping[str, Any]) -> Pod:
    """A pod: whether it is ready, what keeps it, and where its metrics are."""
    status = pod.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    ready = (conditions.get("Ready") or {}).get("status") == "True"
    trouble, stuck = ("", False) if ready else _trouble(status, conditions)
    containers = (pod.get("spec") or {}).get("containers") or ()
    ports = [port for container in containers for port in container.get("ports") or ()]
    port = next((one["containerPort"] for one in ports if one.get("name") == "metrics"), 0)
    return Pod(pod["metadata"]["name"], ready, trouble, stuck, port)


def _stays(pod: Mapping[str, Any]) -> bool:
    return not pod["metadata"].get("deletionTimestamp")


def _trouble(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> tuple[str, bool]:
    """What keeps a pod from being ready, and whether it will not pass by itself."""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        reason = waiting.get("reason") or ""
        restarts = container.get("restartCount") or 0
        if reason in HOPELESS:
            crashed = reason == "CrashLoopBackOff"
            words = _death(container) if crashed else (waiting.get("message") or "")
            return f"{reason} {words}".strip()[:LONGEST], not crashed or restarts >= RESTARTS
        if reason and reason not in {"ContainerCreating", "PodInitializing"}:
            return f"{reason} {waiting.get('message') or ''}".strip()[:LONGEST], False
        if restarts and not container.get("ready"):
            return f"restarted {restarts} times {_death(container)}".strip()[:LONGEST], False
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', '')} {scheduled.get('message', '')}".strip()[:LONGEST], False
    return "", False


def _death(container: Mapping[str, Any]) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended:
        return ""
    return f"({container.get('name')}: {ended.get('reason', 'ended')}, status {ended.get('exitCode')})"


def serving_slot(services: Sequence[Mapping[str, Any]], preview: str = "preview") -> str | None:
    """The slot that the active Service of a release selects; None where there is no such Service."""
    for service in services:
        slot = ((service.get("spec") or {}).get("selector") or {}).get(SLOT_LABEL)
        component = labels_of(service).get("app.kubernetes.io/component", "server")
        if slot and component != preview:
            return str(slot)
    return None


def argo_of(rollout: Mapping[str, Any]) -> ArgoState:
    """How a Rollout stands."""
    status = rollout.get("status") or {}
    blue_green = status.get("blueGreen") or {}
    serving, wanted = blue_green.get("activeSelector") or "", status.get("currentPodHash") or ""
    why = str(status.get("message") or "")
    seen = str(status.get("observedGeneration") or "0") == str(rollout["metadata"].get("generation"))
    if not seen:
        return ArgoState("progressing", "the controller has not seen it yet", serving, wanted)
    phase = status.get("phase")
    if status.get("abort") or phase == "Degraded":
        return ArgoState("failed", why, serving, wanted)
    if phase == "Paused" and status.get("pauseConditions"):
        return ArgoState("paused", why or "it waits to be promoted", serving, wanted)
    if phase == "Healthy" and serving == wanted:
        return ArgoState("done", why, serving, wanted)
    return ArgoState("progressing", why, serving, wanted)
