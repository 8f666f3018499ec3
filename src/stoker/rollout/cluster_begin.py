"""How a deploy begins: what is ordered, or the way back, against how a release stands. Pure: a record and values."""

from __future__ import annotations

import time
from secrets import token_hex
from typing import Any

from stoker.rollout.cluster import ARGO_SLOTS, Deploy, Slot
from stoker.rollout.cluster_drive import Cluster, Found
from stoker.rollout.cluster_helm import Disagreement
from stoker.rollout.cluster_values import Order, Values, filled, idle_of, may_return, remembered, warmed


def ordered(cluster: Cluster, found: Found, order: Order) -> tuple[Deploy, Values]:
    """The deploy that an order means for a release, and the values that begin it.

    Raises Disagreement while another one is under way.
    """
    if found.deploy is not None and not found.deploy.ended:
        raise Disagreement(
            f"deploy {found.deploy.id} is under way ({found.deploy.step}): `stoker deploy resume` goes on with it, "
            "`abort` ends it"
        )
    if found.standing.pending_since is not None:
        raise Disagreement("an upgrade of the release is under way; try again when it has ended")
    old, new = ARGO_SLOTS if found.argo else (found.full["active"], idle_of(found.full))
    deploy = _record(
        found,
        (old, new),
        title=order.title,
        bake=order.bake,
        load_within=order.load_within,
        gated=order.gate,
        back=may_return(found.deploy),
    )
    serving = Slot(old) if found.argo else cluster.slots().get(old, Slot(old))
    return deploy, filled(found.values, found.full, order, deploy, serving)


def backwards(cluster: Cluster, found: Found, ready_within: float) -> tuple[Deploy, Values]:
    """A deploy of what the other slot has had, without gate and baking, and the values that begin it; Disagreement when
    there is nothing to go back to.
    """
    if found.argo:
        raise Disagreement(
            "with Argo Rollouts, go back by a deploy of the version before: `stoker deploy history` has it"
        )
    if not may_return(found.deploy):
        raise Disagreement("the other slot holds nothing that has served, so there is nothing to go back to")
    old, new = found.full["active"], idle_of(found.full)
    title = f"back to {new}"
    deploy = _record(found, (old, new), title=title, bake=0.0, load_within=ready_within, gated=False, back=True)
    return deploy, warmed(found.values, found.full, deploy, cluster.slots().get(old, Slot(old)))


def _record(found: Found, slots: tuple[str, str], **how: Any) -> Deploy:
    """A deploy from the first slot to the second, with what must come back if it does not take over."""
    old, new = slots
    now = time.time()
    return Deploy(
        id=f"dep-{token_hex(4)}",
        old=old,
        new=new,
        created=now,
        updated=now,
        gate_was=found.values.get("gate") or {},
        was=remembered(found.full, new),
        **how,
    )
