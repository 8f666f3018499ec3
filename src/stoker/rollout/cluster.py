"""A deploy on Kubernetes: one of two slots takes over from the other. What it is, and what comes next. Values only.

How far it is stands in the release's own values under `deploy`, which every upgrade writes together with what it does.
So there is one truth, and whoever was killed can go on from it. Each step may be done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, get_args

Stage = Literal["loading", "baking", "returning", "succeeded", "refused", "failed", "aborted", "rolled_back"]
Wish = Literal["abort", "rollback", "promote"]
ENDED: Final = frozenset[str]({"succeeded", "refused", "failed", "aborted", "rolled_back"})
SWITCHED: Final = frozenset[str]({"baking", "returning", "succeeded"})
"""Stages in which the new slot has been given everybody's requests."""
SLOTS: Final = ("blue", "green")
ARGO_SLOTS: Final = ("stable", "preview")
"""Where Argo Rollouts switches: what serves, and what is to serve."""
WATCHED_AGAIN_S: Final = 30.0
"""Seconds for which a version is watched at least after a deploy was taken up again."""
NOT_READY_S: Final = 5.0
"""Seconds after which a serving slot without a single ready pod is given up."""
TOO_FEW_S: Final = 60.0
"""Seconds after which one is given up that has fewer ready pods than it had at the switch, and wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """A deploy as it stands in the values. Instants are Unix seconds.

    Attributes:
        old, new: the slot that served, and the one that takes over.
        title: what is new, for people.
        step: the stage that it is in.
        bake: seconds for which the old slot is kept warm after the switch, and compared.
        bake_until: when that is over.
        load_within: seconds in which the new slot must be ready.
        gated: whether the new slot must pass the gate.
        gate_was: `gate` in the values before, which comes back.
        was: `image`, `model` and `replicas` of the new slot before, which come back where it does not take over.
        back: whether the slot that does not serve holds something that served; it may be gone back to.
        baseline: `requests`, `failed`, `timed`, `ttft_p95` of the old slot before the switch.
        pods: how many were ready at the switch.
        note: why it ended.
    """

    id: str
    old: str
    new: str
    step: Stage = "loading"
    title: str = ""
    created: float = 0.0
    updated: float = 0.0
    bake: float = 600.0
    bake_until: float | None = None
    load_within: float = 900.0
    gated: bool = True
    gate_was: Mapping[str, Any] | None = None
    was: Mapping[str, Any] | None = None
    back: bool = False
    baseline: Mapping[str, Any] | None = None
    pods: int = 0
    note: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.step in ENDED

    @property
    def argo(self) -> bool:
        """Whether Argo Rollouts switches."""
        return self.new in ARGO_SLOTS

    def changed(self, **changes: Any) -> Deploy:
        """The deploy with some of its attributes changed."""
        return replace(self, **changes)

    def saved(self) -> dict[str, Any]:
        """The deploy as it stands in the values."""
        return {_NAMES.get(name, name): getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> Deploy | None:
        """The deploy in `deploy` of a release's values; None without one, ValueError for what is none of ours."""
        if not values:
            return None
        known = {name: values[_NAMES.get(name, name)] for name in _FIELDS if _NAMES.get(name, name) in values}
        bad = [name for name in ("id", "old", "new", "step") if not isinstance(known.get(name), str)]
        if (
            bad
            or known["step"] not in get_args(Stage)
            or ({known["old"], known["new"]} not in (set(SLOTS), set(ARGO_SLOTS)))
        ):
            raise ValueError("`deploy` in the release's values was not written by `stoker deploy`")
        return cls(**known)


_FIELDS: Final = tuple(one.name for one in fields(Deploy))
_NAMES: Final = {
    "old": "from",
    "new": "to",
    "bake_until": "bakeUntil",
    "load_within": "loadWithin",
    "gate_was": "gateWas",
}
"""Attributes that are called otherwise in the values, as Kubernetes writes names."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: whether it is ready, and what keeps it from that; `stuck` when this will not pass by itself."""

    name: str
    ready: bool
    trouble: str = ""
    stuck: bool = False
    port: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot's Deployment: pods that it wants, those that are ready and of its newest kind.

    Attributes:
        settled: whether its controller has seen the newest specification, and no pod of an earlier one is left.
    """

    name: str
    wanted: int = 0
    ready: int = 0
    settled: bool = True
    pods: tuple[Pod, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is there."""
        return self.settled and self.wanted > 0 and self.ready >= self.wanted

    @property
    def stuck(self) -> str:
        """Why it will never be ready; empty while it may."""
        return next((f"pod {pod.name}: {pod.trouble}" for pod in self.pods if pod.stuck), "")

    @property
    def trouble(self) -> str:
        """What it waits for."""
        return next((f"pod {pod.name}: {pod.trouble}" for pod in self.pods if pod.trouble), "")


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done next.

    `wait`; `switch` to the new slot, gate included; `back` to the old one; `finish` with the outcome; `nothing`.
    """

    act: Literal["wait", "switch", "back", "finish", "nothing"]
    why: str = ""
    outcome: Stage = "succeeded"


def next_step(deploy: Deploy, new: Slot, now: float, *, worse: str | None = None, wish: Wish | None = None) -> Step:
    """The next step of a deploy.

    Args:
        deploy: as the values have it.
        new: the slot that takes over, as it is now.
        now: Unix seconds.
        worse: why the new version must go, if something speaks against it.
        wish: what a person asked for.
    """
    if deploy.ended:
        return Step("nothing")
    if deploy.step == "returning":
        if deploy.argo and not new.complete:
            return Step("wait", "the old version is coming back")
        return Step("finish", deploy.note, "rolled_back")
    if deploy.step == "baking":
        return _baking(deploy, now, worse, wish)
    return _loading(deploy, new, now, wish)


def _loading(deploy: Deploy, new: Slot, now: float, wish: Wish | None) -> Step:
    if wish in {"abort", "rollback"}:
        return Step("finish", "aborted by hand", "aborted")
    if new.complete:
        return Step("switch")
    if new.stuck:
        return Step("finish", f"{deploy.new} does not start: {new.stuck}", "failed")
    if now - deploy.created >= deploy.load_within:
        why = f"{new.ready} of {new.wanted} pods of {deploy.new} were ready after {deploy.load_within:.0f} s"
        return Step("finish", why + (f"; {new.trouble}" if new.trouble else ""), "failed")
    return Step("wait", f"{new.ready} of {new.wanted} pods ready" + (f"; {new.trouble}" if new.trouble else ""))


def _baking(deploy: Deploy, now: float, worse: str | None, wish: Wish | None) -> Step:
    if wish in {"abort", "rollback"}:
        return Step("back", "rolled back by hand")
    if worse:
        return Step("back", worse)
    left = (deploy.bake_until or 0.0) - now
    if left <= 0 or wish == "promote":
        return Step("finish", f"{deploy.new} serves", "succeeded")
    return Step("wait", f"{left:.0f} s left")


def taken_up(deploy: Deploy, now: float) -> Deploy:
    """A deploy that is gone on with: one that bakes is watched for a while, however long nobody did."""
    if deploy.step == "baking":
        again = now + min(deploy.bake, WATCHED_AGAIN_S)
        return deploy.changed(bake_until=max(deploy.bake_until or 0.0, again))
    if deploy.step == "loading":
        return deploy.changed(created=now)
    return deploy


def deserted(slot: Slot, at_switch: int, none_for: float, few_for: float) -> str | None:
    """Why a slot that serves has too few pods to go on; None while it has enough.

    Args:
        slot: as it is now.
        at_switch: pods that were ready when it took over.
        none_for: seconds for which none has been ready.
        few_for: seconds for which fewer have been ready than it wants and had.
    """
    why = f" ({slot.trouble})" if slot.trouble else ""
    if none_for >= NOT_READY_S:
        return f"no pod of {slot.name} has been ready for {none_for:.0f} s{why}"
    if few_for >= TOO_FEW_S:
        return f"only {slot.ready} of {min(at_switch, slot.wanted)} pods have been ready for {few_for:.0f} s{why}"
    return None


def other(slot: str) -> str:
    """The slot that the given one is not."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]
