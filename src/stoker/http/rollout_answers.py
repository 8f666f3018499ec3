"""The wire forms of answers about rollouts, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from stoker.rollout.record import Phase


class RolloutVersion(BaseModel):
    """A version of a model; `digest` is the SHA-256 of its file."""

    ref: str
    version: str
    digest: str


class RolloutStep(BaseModel):
    """A phase that was entered, and what there was to say."""

    phase: str
    at: float
    note: str


class Rollout(BaseModel):
    """A rollout; times in seconds since 1970. Lists leave out `steps` and `evaluation`."""

    id: str
    model: str
    before: RolloutVersion
    after: RolloutVersion
    options: dict[str, Any]
    phase: Phase
    ended: bool
    reason: str
    by: str | None
    created: float
    updated: float
    until: float | None
    attempts: int
    warm: bool
    promoted: bool
    revision: int
    progress: dict[str, Any] | None
    steps: list[RolloutStep] | None = None
    evaluation: dict[str, Any] | None = None


class RolloutList(BaseModel):
    """Rollouts, newest first; `current` is the id of the one under way."""

    object: Literal["list"]
    data: list[Rollout]
    current: str | None


class RolloutPlan(BaseModel):
    """What a rollout would do; `message` says why both versions do not fit at once, where they do not."""

    model: str
    before: RolloutVersion
    after: RolloutVersion
    fits: bool
    needed_bytes: int | None
    granted_bytes: int | None
    message: str
    steps: list[str]
