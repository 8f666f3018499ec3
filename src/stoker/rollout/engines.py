"""What rollouts need of the server's engines; whoever builds engines gives it to them."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Protocol

from stoker.config import RolloutConfig
from stoker.engine.pool import ModelPool
from stoker.rollout.record import Version
from stoker.rollout.shelf import Shelf
from stoker.rollout.watch import Watch
from stoker.wayfinder import Trial


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that could serve a model: its engines, not started so far, and the memory that they need and may take
    in bytes.
    """

    version: Version
    pool: ModelPool
    needed_bytes: int
    granted_bytes: int


class Engines(Protocol):
    """The engines of a server: those that serve, and those beside them."""

    @property
    def pools(self) -> MutableMapping[str, ModelPool]:
        """What serves, by the model's name; a new value takes all requests from then on."""

    @property
    def aside(self) -> MutableMapping[str, ModelPool]:
        """What runs without serving everybody, by `name@version`."""

    def configured(self, model: str) -> str:
        """The `source` that the configuration names; ModelNotFound for a model that is not served from a file."""

    def serving(self, model: str) -> Version:
        """The version that serves now; ModelNotFound as above."""

    async def find(self, model: str, ref: str) -> Version:
        """A stored version; ModelNotFound when there is none, or its file is no usable model."""

    async def prepare(self, model: str, ref: str) -> Candidate:
        """Find and plan a version for a served model, beside all that runs.

        Raises:
            ModelNotFound: there is no such version.
            DoesNotFit: there is no room for it; with figures.
        """

    async def fits_instead(self, model: str, ref: str) -> None:
        """Return when a version would fit if the running one were gone; DoesNotFit when it would not even then."""


@dataclass(frozen=True, slots=True)
class Means:
    """All that rollouts work with.

    Attributes:
        engines: the server's.
        shelf: where rollouts are written down.
        config: what a rollout does unless it is told otherwise, and by how much a new version may be worse.
        watch: how requests ended.
        trials: where a share of callers is sent another way, by model.
    """

    engines: Engines
    shelf: Shelf
    config: RolloutConfig
    watch: Watch
    trials: MutableMapping[str, Trial]
