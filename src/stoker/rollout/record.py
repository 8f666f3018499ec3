"""What a rollout is: which version takes over from which, how far it is, and why it ended. Values only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal, get_args

from stoker.errors import StokerError

Phase = Literal[
    "loading",
    "warming",
    "evaluating",
    "waiting",
    "canary",
    "baking",
    "retiring",
    "succeeded",
    "refused",
    "failed",
    "aborted",
    "rolled_back",
]
Outcome = Literal["succeeded", "refused", "failed", "aborted", "rolled_back"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
SWITCHED: Final = frozenset({"baking", "retiring"})
"""Phases in which the new version answers everybody."""
NEXT: Final[Mapping[Phase, frozenset[Phase]]] = {
    "loading": frozenset({"loading", "warming", "waiting", "canary", "baking", "failed", "aborted"}),
    "warming": frozenset({"loading", "evaluating", "waiting", "canary", "baking", "failed", "aborted"}),
    "evaluating": frozenset({"loading", "waiting", "canary", "baking", "refused", "failed", "aborted"}),
    "waiting": frozenset({"loading", "canary", "baking", "failed", "aborted"}),
    "canary": frozenset({"loading", "baking", "rolled_back", "failed", "aborted"}),
    "baking": frozenset({"retiring", "rolled_back"}),
    "retiring": frozenset({"succeeded", "rolled_back"}),
}
"""What may follow a phase; an outcome is followed by nothing. After a restart, `loading` begins again."""
MOST_STEPS: Final = 64
WATCHED_AGAIN_S: Final = 30.0
"""Seconds for which a version is watched after a restart at least, however long the server was away."""
MOST_ATTEMPTS: Final = 3
"""How often a rollout is begun: a version that takes the whole server down must not do so for ever."""


class RolloutConflict(StokerError):
    """What is asked for does not go with how the rollout stands, or another one is under way."""

    status = 409
    code = "rollout_conflict"
    type = "invalid_request_error"


class DoesNotFit(StokerError):
    """The new version does not fit beside the running one."""

    status = 409
    code = "does_not_fit"
    type = "invalid_request_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done; None stands for what is configured.

    Attributes:
        model: the new version, `name@version` as the registry has it.
        serves: the served model that it takes over; by default the one of that name.
        evaluation: the document of an evaluation set that it must pass.
        skip_evaluation: whether it needs to pass none.
        promotion: `manual` waits for a word before anybody is served by it.
        canary: share of callers, 0..1, who get it first, for `canary_time` seconds.
        bake: seconds for which the old version is kept warm after the switch.
        accept_gap: whether the model may be away while versions change, where both do not fit at once.
    """

    model: str
    serves: str | None = None
    evaluation: Mapping[str, Any] | None = None
    skip_evaluation: bool = False
    promotion: Literal["auto", "manual"] | None = None
    canary: float | None = None
    canary_time: float | None = None
    bake: float | None = None
    accept_gap: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model: how its file is found (a stored `name@version`, or a path), and its SHA-256."""

    ref: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Step:
    """A phase that was entered, when (Unix seconds), and what there was to say."""

    phase: Phase
    at: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a rollout goes, with nothing left open: `Order` and configuration together."""

    evaluation: Mapping[str, Any] | None
    promotion: Literal["auto", "manual"]
    canary: float
    canary_time: float
    bake: float
    gap: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout as it stands. Instants are Unix seconds.

    Attributes:
        model: the served model.
        before, after: the version that was running, and the one that takes over.
        until: when the present phase is over by itself.
        attempts: how often it was begun; a restart of the server begins again.
        evaluation: the document of the evaluation's report.
        progress: how far the present phase is.
        warm: whether the version that does not serve is loaded too.
        promoted: whether the word was given that it may serve.
        reason: why it ended, or what it waits for.
        revision: grows with each change.
    """

    id: str
    model: str
    before: Version
    after: Version
    options: Options
    phase: Phase = "loading"
    by: str | None = None
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    until: float | None = None
    attempts: int = 1
    evaluation: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None
    warm: bool = False
    promoted: bool = False
    reason: str = ""
    revision: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase not in NEXT

    @property
    def switched(self) -> bool:
        """Whether the new version answers everybody."""
        return self.phase in SWITCHED

    @property
    def passed(self) -> bool:
        """Whether the new version has passed its evaluation, or needs to pass none."""
        if self.options.evaluation is None:
            return True
        return bool(self.evaluation and self.evaluation["verdict"]["passed"])

    def at(self, phase: Phase, note: str = "", **changes: Any) -> Rollout:
        """The rollout in its next phase; RolloutConflict when that may not follow."""
        if phase not in NEXT.get(self.phase, ()):
            raise RolloutConflict(f"rollout {self.id} is {self.phase.replace('_', ' ')}: it cannot become {phase}")
        now = time.time()
        steps = (*self.steps, Step(phase, now, note))[-MOST_STEPS:]
        fresh = {"until": None, "progress": None, "reason": note}
        return self.changed(phase=phase, steps=steps, **{**fresh, **changes})

    def changed(self, **changes: Any) -> Rollout:
        """The rollout with some of its attributes changed."""
        return replace(self, updated=time.time(), revision=self.revision + 1, **changes)

    def document(self) -> dict[str, Any]:
        """The rollout as the API tells it: of the evaluation set its name alone."""
        written = self.options.evaluation
        name = None if written is None else str(written.get("name", ""))
        short = replace(self, options=replace(self.options, evaluation={}))
        return {**asdict(short), "options": {**asdict(short.options), "evaluation": name}, "ended": self.ended}

    def saved(self) -> dict[str, Any]:
        """The rollout as JSON, whole; `parse` reads it."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Rollout:
        """The rollout of a document that was saved; ValueError, KeyError or TypeError for one that makes no sense."""
        if document["phase"] not in get_args(Phase):
            raise ValueError(f"unknown phase {document['phase']!r}")
        known = {one.name: document[one.name] for one in fields(cls)}
        known["before"], known["after"] = Version(**known["before"]), Version(**known["after"])
        known["options"] = Options(**known["options"])
        known["steps"] = tuple(Step(**step) for step in known["steps"])
        return cls(**known)


def resumed(rollout: Rollout, serving: Version) -> Rollout:
    """How a rollout goes on after a restart.

    Args:
        rollout: as it was written down, not ended.
        serving: the version that the server started with.
    """
    if serving.digest == rollout.after.digest:
        return _serving_on(rollout, time.time())
    if rollout.switched:
        return rollout.at("rolled_back", f"the server was started again with {serving.ref}", warm=False)
    if serving.digest != rollout.before.digest:
        return rollout.at("failed", f"{rollout.model} is {serving.ref} since a restart", warm=False)
    if rollout.attempts >= MOST_ATTEMPTS:
        return rollout.at("failed", f"the server ended {rollout.attempts} times before the switch", warm=False)
    return rollout.at("loading", "again after a restart", attempts=rollout.attempts + 1, warm=False)


def _serving_on(rollout: Rollout, now: float) -> Rollout:
    """A rollout whose new version has served since the restart."""
    bake = rollout.options.bake
    if rollout.phase == "retiring":
        return rollout
    if rollout.phase == "baking":
        return rollout.changed(until=max(rollout.until or 0.0, now + min(bake, WATCHED_AGAIN_S)))
    # It died between the pin and the phase.
    return rollout.at("baking", "serves everybody since a restart", until=now + bake, promoted=True)
