"""Argo Rollouts seen as two slots: `stable` serves, and `preview` is complete once Argo has switched to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stoker.rollout.cluster import ARGO_SLOTS, Pod, Slot
from stoker.rollout.cluster_reading import argo_of


class ArgoCluster(Protocol):
    """What is asked of the cluster."""

    def argo(self) -> Mapping[str, Any]: ...
    def argo_slot(self, pods_hash: str) -> Slot: ...
    def argo_promote(self) -> None: ...
    def metrics(self, pod: str, port: int) -> str: ...
    def gate_log(self) -> str: ...


class ArgoSlots:
    """A release whose chart has a Rollout. A version that Argo holds back is promoted: the gate is passed by then."""

    def __init__(self, cluster: ArgoCluster) -> None:
        self._cluster = cluster
        self.metrics = cluster.metrics
        self.gate_log = cluster.gate_log

    def slots(self) -> dict[str, Slot]:
        """Both versions as they are now."""
        state = argo_of(self._cluster.argo())
        stable, preview = ARGO_SLOTS
        new = self._cluster.argo_slot(state.wanted)
        pods = new.pods
        if state.phase == "failed":
            pods = (*pods, Pod("of the Rollout", ready=False, trouble=state.why or "it was given up", stuck=True))
        elif state.phase == "paused":
            self._cluster.argo_promote()
        found = {preview: Slot(preview, new.wanted, new.ready, settled=state.phase == "done", pods=pods)}
        if state.phase != "done":
            old = self._cluster.argo_slot(state.serving)
            found[stable] = Slot(stable, old.wanted, old.ready, settled=True, pods=old.pods)
        return found

    def serving(self) -> str | None:
        """What serves now."""
        return ARGO_SLOTS[argo_of(self._cluster.argo()).phase == "done"]
