"""Drives a deploy: looks at the cluster, asks `next_step`, does it by an upgrade of the release, and begins again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from stoker.config import RolloutConfig
from stoker.errors import OperatorError
from stoker.rollout.cluster import Deploy, Slot, Stage, Step, Wish, deserted, next_step, taken_up
from stoker.rollout.cluster_figures import Counts, Looks, baseline, counts_of, judged, level_document, level_of
from stoker.rollout.cluster_helm import Disagreement, HelmFailed, Revision, Standing, standing_of
from stoker.rollout.cluster_values import Values, ended, finished, returned, switched
from stoker.rollout.watch import Level

LOOK_S: Final = 1.0
FIGURES_EVERY_S: Final = 5.0
GATE_MORE_S: Final = 120.0
"""Seconds that an upgrade with a gate may take beyond the gate's own bound."""
UPGRADE_S: Final = 300.0
AWAY_S: Final = 120.0
"""Seconds for which the API server may be away before a deploy is left as it is."""
VERDICT: Final = "failed  "
"""How `stoker evaluate` begins the lines that say why."""
LONGEST_UPGRADE_S: Final = 1200.0
"""Seconds after which a pending upgrade is taken for dead: longer than the gate that ships may take."""


class Release(Protocol):
    """What is asked of Helm."""

    def history(self) -> tuple[Revision, ...]: ...
    def values(self, revision: int, *, full: bool = False) -> dict[str, Any]: ...
    def upgrade(self, values: Mapping[str, Any], why: str, timeout: float = 300.0) -> None: ...
    def undo(self, revision: int) -> None: ...


class Cluster(Protocol):
    """What is asked of the cluster."""

    def slots(self) -> dict[str, Slot]: ...
    def serving(self) -> str | None: ...
    def metrics(self, pod: str, port: int) -> str: ...
    def gate_log(self) -> str: ...


class View(Protocol):
    """Who is told."""

    def step(self, deploy: Deploy, note: str) -> None:
        """A stage has begun."""

    def waiting(self, note: str) -> None:
        """What is waited for."""

    def note(self, text: str) -> None:
        """Something else that is worth a line."""


class Found:
    """A release as its deployed revision has it: values that were given, and those with the defaults."""

    def __init__(self, release: Release) -> None:
        self.history = release.history()
        self.standing: Standing = standing_of(self.history)
        self.values: Values = release.values(self.standing.deployed)
        self.full: Values = release.values(self.standing.deployed, full=True)
        try:
            self.deploy = Deploy.parse(self.values.get("deploy"))
        except ValueError as error:
            raise Disagreement(f"{error}; empty it by helm: --set deploy=null") from None

    @property
    def argo(self) -> bool:
        """Whether Argo Rollouts switches."""
        return bool((self.full.get("rollout") or {}).get("engine") == "argo")

    @property
    def limits(self) -> RolloutConfig:
        """By how much the new version may be worse: as `rollout` in the server's settings has it."""
        told = (self.full.get("config") or {}).get("rollout") or {}
        known = {name: told[name] for name in ("error_rate", "latency_ratio", "min_requests") if name in told}
        return RolloutConfig(**known)


def free(release: Release, view: View, *, take_over: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait for an upgrade that is under way; one that is dead is undone, so that the release can be upgraded again."""
    told = False
    while (standing := standing_of(release.history())).pending_since is not None:
        old = time.time() - standing.pending_since
        if take_over or old > LONGEST_UPGRADE_S:
            view.note(f"an upgrade of the release was broken off; going back to revision {standing.deployed}")
            release.undo(standing.deployed)
            break
        if not told:
            told = True
            view.note(
                f"an upgrade of the release began {old:.0f} s ago and has not ended; waiting. If nobody works at "
                "it any more, --take-over goes on at once"
            )
        sleep(LOOK_S)
    standing = standing_of(release.history())
    if standing.last != standing.deployed:  # it may have been done by half, and the values say how it should be
        values = release.values(standing.deployed)
        gate = {**(values.get("gate") or {}), "enabled": False}
        release.upgrade({**values, "gate": gate}, "stoker deploy: as it was before an upgrade that was broken off")


class Driver:
    """Drives one deploy to its end, or to where it is told to leave it.

    Args:
        release: of Helm.
        cluster: where it runs.
        view: who is told.
        wish: what a person asked for; it holds until the next step.
        sleep: how time passes.
    """

    def __init__(
        self,
        release: Release,
        cluster: Cluster,
        view: View,
        wish: Wish | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._release = release
        self._cluster = cluster
        self._view = view
        self._wish = wish
        self._sleep = sleep
        self._found = Found(release)
        self._old, self._new = Looks(), Looks()
        self._looked = -math.inf
        self._blind = False
        self._none_since: float | None = None
        self._few_since: float | None = None
        self._answered = time.time()

    def run(self) -> Deploy:
        """The deploy when it has ended."""
        deploy = self._deploy
        self._view.step(deploy, "")
        deploy = taken_up(deploy, time.time())
        while not deploy.ended:
            slot, worse = self._look(deploy)
            if slot is None:
                self._sleep(LOOK_S)
                continue
            step = next_step(deploy, slot, time.time(), worse=worse, wish=self._wish)
            if step.act == "wait":
                self._view.waiting(step.why + self._told(deploy))
                self._sleep(LOOK_S)
                continue
            deploy = self._do(deploy, step, slot)
            self._wish = None
            self._view.step(deploy, deploy.note)
        return deploy

    @property
    def level(self) -> Level:
        """How the new slot has served since the switch."""
        return self._new.level

    @property
    def _deploy(self) -> Deploy:
        if self._found.deploy is None:
            raise Disagreement("no deploy is under way; `stoker deploy start RELEASE --image ...` begins one")
        return self._found.deploy

    # -- acts --------------------------------------------------------------------------------------------------------

    def _do(self, deploy: Deploy, step: Step, slot: Slot) -> Deploy:
        now = time.time()
        if step.act == "switch":
            return self._switch(deploy, slot, now)
        if step.act == "back":
            turned = deploy.changed(step="returning", note=step.why, updated=now)
            self._upgrade(returned(self._found.values, turned), turned, f"{turned.old} serves again: {step.why}")
            return turned
        if deploy.argo and deploy.gated and step.outcome == "failed" and (why := self._gate_words()):
            return self._finish(deploy, "refused", why)
        return self._finish(deploy, step.outcome, step.why)

    def _switch(self, deploy: Deploy, slot: Slot, now: float) -> Deploy:
        """Gate and switch, in one upgrade: a gate that fails leaves everything as it was."""
        asks = deploy.gated and not deploy.argo
        if asks:
            self._view.note("the gate asks both versions; then all new requests go to the new one")
        before = baseline(self._old, self._found.limits)
        turned = deploy.changed(
            step="baking",
            updated=now,
            bake_until=now + deploy.bake,
            baseline=level_document(before),
            pods=slot.ready,
        )
        timeout = UPGRADE_S
        if asks:
            timeout = float((self._found.full.get("gate") or {}).get("timeoutSeconds") or 900) + GATE_MORE_S
        try:
            self._upgrade(switched(self._found.values, turned), turned, f"{turned.new} serves", timeout)
        except HelmFailed as error:
            if self._cluster.serving() == deploy.new:  # it broke after the gate: nothing to evaluate any more
                raise
            why = self._gate_words() if deploy.gated else ""
            outcome: Stage = "refused" if why else "failed"
            return self._finish(deploy, outcome, why or error.message)
        return turned.changed(bake_until=time.time() + deploy.bake)

    def _gate_words(self) -> str:
        """Why the gate was not passed, by its log; empty where it says nothing."""
        try:
            log = self._cluster.gate_log()
        except OperatorError:
            return ""
        if not log.strip():
            return ""
        self._view.note(log)
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
        verdict = [line.removeprefix(VERDICT).strip() for line in log.splitlines() if line.startswith(VERDICT)]
        return f"the gate was not passed: {'; '.join(verdict) or last}"

    def _finish(self, deploy: Deploy, outcome: Stage, why: str) -> Deploy:
        done = ended(deploy, outcome, why, time.time())
        if outcome == "succeeded":
            done = done.changed(back=True)
        self._upgrade(finished(self._found.values, done), done, f"{outcome.replace('_', ' ')}: {why}")
        return done

    def _upgrade(self, values: Values, deploy: Deploy, why: str, timeout: float = UPGRADE_S) -> None:
        standing = standing_of(self._release.history())
        if standing.deployed != self._found.standing.deployed:
            raise Disagreement(
                f"somebody else has upgraded the release, to revision {standing.deployed}, during {deploy.id}; "
                "look with `stoker deploy status`, then `stoker deploy resume` or `abort`"
            )
        self._release.upgrade(values, f"stoker deploy {deploy.id}: {why}", timeout)
        self._found = Found(self._release)
        self._none_since = self._few_since = None

    # -- looks -------------------------------------------------------------------------------------------------------

    def _look(self, deploy: Deploy) -> tuple[Slot | None, str | None]:
        """The new slot, and why it must go; no slot while the cluster does not answer."""
        try:
            slots = self._cluster.slots()
        except OperatorError as error:
            if time.time() - self._answered > AWAY_S:
                raise
            self._view.waiting(error.message)
            return None, None
        self._answered = now = time.time()
        slot = slots.get(deploy.new, Slot(deploy.new))
        if deploy.step not in {"loading", "baking"}:
            return slot, None
        if now - self._looked >= FIGURES_EVERY_S:
            self._looked = now
            watched, looks = (slot, self._new) if deploy.step == "baking" else (slots.get(deploy.old), self._old)
            self._sample(watched, looks, now)
        if deploy.step == "loading":
            return slot, None
        worse = self._deserted(deploy, slot, now)
        return slot, worse or judged(level_of(deploy.baseline), self._new.level, self._found.limits)

    def _sample(self, slot: Slot | None, looks: Looks, now: float) -> None:
        """Read the metrics of a slot's pods. Where none can be read, readiness alone decides, and that is said once."""
        sample: dict[str, Counts] = {}
        failure = ""
        for pod in slot.pods if slot else ():
            if not pod.ready or not pod.port:
                continue
            try:
                sample[pod.name] = counts_of(self._cluster.metrics(pod.name, pod.port))
            except OperatorError as error:
                failure = error.message
        if sample:
            looks.add(now, sample)
        elif failure and not self._blind:
            self._blind = True
            self._view.note(f"{failure}; error rate and latency cannot be compared, only readiness is watched")

    def _deserted(self, deploy: Deploy, slot: Slot, now: float) -> str | None:
        self._none_since = None if slot.ready else (self._none_since or now)
        few = slot.ready < min(deploy.pods, slot.wanted)
        self._few_since = (self._few_since or now) if few else None
        none_for = now - self._none_since if self._none_since else 0.0
        return deserted(slot, deploy.pods, none_for, now - self._few_since if self._few_since else 0.0)

    def _told(self, deploy: Deploy) -> str:
        if deploy.step != "baking":
            return ""
        level = self._new.level
        rate = "-" if level.error_rate is None else f"{level.error_rate:.1%}"
        p95 = "-" if level.ttft_p95 is None else f"{level.ttft_p95 * 1000:.0f} ms"
        return f"; {level.requests} requests, {rate} failed, {p95} to the first token (p95)"
