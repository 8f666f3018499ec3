"""The engines of a server: those of the models that it started with, and those that rollouts put beside them."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from stoker.config import ModelConfig, Settings
from stoker.engine.canary import CanaryTimes
from stoker.engine.launch import custom_command, llamacpp_command
from stoker.engine.plan import Plan
from stoker.engine.pool import ModelPool, PoolSettings
from stoker.engine.process import SOCKET_NAME_BYTES, Engine, EngineProcess, Launch
from stoker.engine.upstream import UpstreamEngine
from stoker.errors import ModelFileError, ModelNotFound, PlanError, SourceError, StartupError
from stoker.lineup import PlannedModel, plan_beside
from stoker.models.registry import ModelRegistry
from stoker.rollout.engines import Candidate
from stoker.rollout.record import DoesNotFit, Version
from stoker.vitals import private_bytes

CANARY_SHARE = 1 / 3
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # of `sun_path`, unix(7)


class Fleet:
    """All engines of one server.

    Args:
        settings: the server's.
        models: what it starts with.
        sockets: a private directory for the engines' sockets.
    """

    def __init__(self, settings: Settings, models: Sequence[PlannedModel], sockets: Path) -> None:
        self._settings = settings
        self._sockets = sockets
        self._configs = {model.config.name: model.config for model in models}
        self._made: WeakKeyDictionary[ModelPool, PlannedModel] = WeakKeyDictionary()
        self.pools: dict[str, ModelPool] = {model.config.name: self._make(model, model.config.name) for model in models}
        self.aside: dict[str, ModelPool] = {}

    def all(self) -> Iterator[ModelPool]:
        """Every model's engines, whether they serve or not."""
        yield from dict.fromkeys((*self.pools.values(), *self.aside.values()))

    async def stop(self) -> None:
        """End every engine."""
        await asyncio.gather(*(pool.stop() for pool in self.all()))

    # -- for rollouts ----------------------------------------------------------------------------------------------

    def configured(self, model: str) -> str:
        """The `source` that the configuration names; ModelNotFound for a model that is not served from a file."""
        return self._config(model).source or ""

    def serving(self, model: str) -> Version:
        """The version that serves now; ModelNotFound as above."""
        self._config(model)
        served = self._made[self.pools[model]]
        return Version(served.ref, served.identity.version, served.identity.digest)

    async def find(self, model: str, ref: str) -> Version:
        """A stored version; ModelNotFound when there is none."""
        self._config(model)
        try:
            stored = await asyncio.to_thread(ModelRegistry(self._settings.data_dir).resolve, ref)
        except ModelFileError as error:
            raise ModelNotFound(error.message, param="model") from None
        return Version(stored.ref, stored.version, stored.digest)

    async def prepare(self, model: str, ref: str) -> Candidate:
        """Find and plan a version for a served model, beside all that runs.

        Raises:
            ModelNotFound: there is no such version, or its file is no usable model.
            DoesNotFit: there is no room for it; with figures.
        """
        config = self._config(model)
        try:
            planned, plan = await asyncio.to_thread(self._plan, config, ref, self.pools[model])
        except PlanError as error:
            raise DoesNotFit(
                f"{ref} does not fit beside what runs: {error.message}; or let the model be away while versions "
                "change: --accept-gap (`accept_gap`)"
            ) from None
        except (ModelFileError, SourceError) as error:
            raise ModelNotFound(error.message, param="model") from None
        identity = planned.identity
        pool = self._make(planned, self._free_name(f"{model}@{identity.version}", identity.digest))
        version = Version(planned.ref, identity.version, identity.digest)
        return Candidate(version, pool, plan.needed_bytes, plan.granted_bytes)

    async def fits_instead(self, model: str, ref: str) -> None:
        """Return when a version would fit if the running one were gone; DoesNotFit when it would not even then."""
        try:
            await asyncio.to_thread(self._plan, self._config(model), ref, self.pools[model], instead=True)
        except PlanError as error:
            raise DoesNotFit(f"{ref} does not fit, not even alone: {error.message}") from None

    def _config(self, model: str) -> ModelConfig:
        config = self._configs.get(model)
        if config is None or config.source is None:
            known = ", ".join(name for name, one in self._configs.items() if one.source is not None)
            raise ModelNotFound(
                f"no model {model[:128]!r} is served from a file here; there is: {known}; say which one a version is "
                "for with --serves (`serves`)",
                param="serves",
            )
        return config

    def _free_name(self, name: str, digest: str) -> str:
        """A name that no engines have: versions of two models may be called the same, and sockets are named by it."""
        taken = {engine.name.rpartition("/")[0] for pool in self.all() for engine in pool.engines}
        return f"{name}-{digest[:8]}" if name in taken else name

    def _plan(
        self, config: ModelConfig, ref: str, serving: ModelPool, *, instead: bool = False
    ) -> tuple[PlannedModel, Plan]:
        """Plan a version in what is left when all engines have what they were promised, or all but the serving ones."""
        as_now = self._plan_of(serving)
        untouched = self._untouched() - (as_now.needed_bytes if instead else 0)
        planned = plan_beside(self._settings, config, ref, as_now, untouched=untouched)
        return planned, planned.plan or as_now

    def _plan_of(self, pool: ModelPool) -> Plan:
        plan = self._made[pool].plan
        if plan is None:
            raise ModelNotFound(f"{pool.settings.identity.name} is served by URL: there is no file to replace")
        return plan

    def _untouched(self) -> int:
        """Bytes that running engines were promised and have not taken so far, each model for itself."""
        running = [pool for pool in self.all() if not (pool.stopped or pool.failed)]
        pids = {pool: [engine.pid for engine in pool.engines if engine.pid is not None] for pool in running}
        # Weights are mapped: a machine without limits counts them as free, though the engine holds them.
        held = private_bytes([pid for of in pids.values() for pid in of])
        plans = {pool: self._made[pool].plan for pool in running}
        left = [
            plan.needed_bytes - sum(held.get(pid, 0) for pid in pids[pool])
            for pool, plan in plans.items()
            if plan is not None
        ]
        return sum(max(missing, 0) for missing in left)

    # -- making them -----------------------------------------------------------------------------------------------

    def _make(self, model: PlannedModel, name: str) -> ModelPool:
        """A model's engines, called by `name` and a number, not started."""
        settings, config, plan = self._settings, model.config, model.plan
        pool_settings = PoolSettings(
            identity=model.identity,
            slots=plan.slots if plan else config.upstream_slots,
            context=plan.context if plan else 0,
            dialect="llamacpp" if plan else "openai",
            wire_model=config.name if plan else config.upstream_model or config.name,
            tools=config.tools,
            queue=settings.queue,
            generation=settings.generation,
            guard=config.guard,
            most_prompt_tokens=settings.limits.prompt_tokens,
            job_share=settings.jobs.share,
        )

        def engines(on_change: Callable[[], None]) -> Sequence[Engine]:
            if plan is None or model.path is None:
                key = config.upstream_key.get_secret_value() if config.upstream_key else None
                return [UpstreamEngine(f"{name}/upstream", config.upstream or "", key, on_change)]
            launch = _launch(settings, config, plan, model.path)
            return [EngineProcess(f"{name}/{n}", launch, self._sockets, on_change) for n in range(config.replicas)]

        pool = ModelPool(pool_settings, engines)
        self._made[pool] = model
        return pool


def socket_directory() -> Path:
    """A fresh private directory for Unix sockets, whose paths must be short; StartupError when there is no place."""
    try:
        sockets = Path(tempfile.mkdtemp(prefix="stoker-"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartupError(f"no directory for the engines' sockets can be made: {reason}; set TMPDIR to one") from None
    if len(os.fsencode(sockets)) + 1 + SOCKET_NAME_BYTES > MAX_SOCKET_PATH_BYTES:
        sockets.rmdir()
        raise StartupError(f"{sockets} is too long a path for the engines' sockets; set TMPDIR to a shorter one")
    return sockets


def _launch(settings: Settings, config: ModelConfig, plan: Plan, path: Path) -> Launch:
    command = (
        partial(custom_command, config.command, plan, path) if config.command else partial(llamacpp_command, plan, path)
    )
    return Launch(
        command=command,
        load_timeout=settings.timeouts.load,
        stall_timeout=settings.timeouts.stall or plan.stall_timeout_s,
        restart=settings.restart,
        canary=_canary_times(settings, plan),
    )


def _canary_times(settings: Settings, plan: Plan) -> CanaryTimes | None:
    """When idle engines are asked for a token; a plan that is slow to compute a prompt is slow here, too."""
    health = settings.health
    if not health.canary_interval:
        return None
    return CanaryTimes(health.canary_interval, health.canary_timeout or plan.stall_timeout_s * CANARY_SHARE)
