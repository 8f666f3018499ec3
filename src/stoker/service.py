"""The composition root: opens every resource of a running server in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from stoker import __version__
from stoker.admission.auth import KeyRing
from stoker.admission.gate import Gate
from stoker.admission.guard.inspect import Guard
from stoker.admission.limits import Limiter
from stoker.cache.answers import AnswerCache
from stoker.checks import register_checks
from stoker.config import Settings
from stoker.engine.canary import CanaryTimes
from stoker.engine.launch import custom_command, llamacpp_command
from stoker.engine.plan import Plan
from stoker.engine.pool import ModelPool, PoolSettings
from stoker.engine.process import SOCKET_NAME_BYTES, Engine, EngineProcess, Launch
from stoker.engine.upstream import UpstreamEngine
from stoker.errors import StartupError
from stoker.health import Health
from stoker.lineup import PlannedModel
from stoker.observability.content import ContentWriter
from stoker.observability.live import LiveFigures
from stoker.observability.logging import get_logger
from stoker.observability.loopwatch import LoopWatch
from stoker.observability.metrics import Metrics
from stoker.observability.notices import Seldom
from stoker.observability.record import Observer
from stoker.observability.snapshot import JobFigures
from stoker.observability.tracing import Tracer
from stoker.pipeline import Pipeline
from stoker.report import Reporter, engine_version
from stoker.routing.router import Router
from stoker.state import State
from stoker.store.jobs import JobLog
from stoker.store.opening import OpenJobLog, Stores, open_job_log, open_stores
from stoker.store.protocols import StoreError
from stoker.vitals import Vitals, read_vitals
from stoker.wayfinder import Wayfinder

REFRESH_S = 1.0
DRAIN_POLL_S = 0.02
CANARY_SHARE = 1 / 3
_log = get_logger("service")
_trouble = Seldom("service", every_s=60.0)
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # of `sun_path`, unix(7)


@dataclass(slots=True)
class Service:
    """A running server's parts, as routes and the command line see them."""

    settings: Settings
    models: Sequence[PlannedModel]
    pipeline: Pipeline
    keys: KeyRing
    observer: Observer
    health: Health
    state: State
    reporter: Reporter
    job_log: JobLog | None = None

    @property
    def pools(self) -> Mapping[str, ModelPool]:
        """The models' engines, by name."""
        return self.pipeline.wayfinder.pools

    @property
    def busy(self) -> int:
        """Requests that are at an engine or wait for one."""
        return sum(pool.running + len(pool.line) for pool in self.pools.values())

    async def wait_ready(self) -> None:
        """Return when every model can answer; EngineDied when one cannot be brought up."""
        await asyncio.gather(*(pool.wait_ready() for pool in self.pools.values()))

    async def drain(self, grace: float) -> bool:
        """Let no new request in and wait for the accepted ones; False when `grace` seconds did not suffice."""
        self.state.draining = True
        for pool in self.pools.values():
            pool.refuse_new()
        limit = time.monotonic() + grace
        while self.busy and time.monotonic() < limit:  # noqa: ASYNC110 - what is waited for has no single event
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.busy


@asynccontextmanager
async def running(settings: Settings, models: Sequence[PlannedModel]) -> AsyncGenerator[Service]:
    """A service whose engines are starting; at the end of the context they are stopped and their sockets gone.

    Raises StartupError when there is no place for the sockets.
    """
    sockets = _socket_directory()
    try:
        pools = {model.config.name: _pool(settings, model, sockets) for model in models}
        metrics = Metrics()
        stores = open_stores(settings.store, int(settings.cache.max_mib * 2**20), metrics.note_store_error)
        pipeline = await asyncio.to_thread(_pipeline, settings, pools, stores, metrics)
        observer = Observer(metrics, Tracer.open(settings.tracing, __version__), ContentWriter(settings.log))
        health = Health()
        state = State(pools, stores, LoopWatch(settings.health.lag_warn))
        reporter = Reporter(health, pipeline.cache, state, engine_version())
        service = Service(settings, models, pipeline, KeyRing(settings), observer, health, state, reporter)
        jobs = await _open_jobs(service)
        register_checks(health, settings.health, state)
        metrics.registry.register(LiveFigures(reporter.snapshot))
        state.loop.start()
        looking = [asyncio.create_task(_again(look, service)) for look in (_look_at_host, _ask_stores)]
        for pool in pools.values():
            pool.start()
        try:
            yield service
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*(pool.stop() for pool in pools.values()))
            if jobs is not None:
                await jobs.close()
            await stores.close()
            await observer.tracer.close()
            state.loop.stop()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _pipeline(settings: Settings, pools: Mapping[str, ModelPool], stores: Stores, metrics: Metrics) -> Pipeline:
    """The path of requests. Reads the guard's data and trains the router: not for an event loop."""
    default = settings.default_model or next(iter(pools), "")
    router = Router.from_config(settings.routing, default) if settings.routing.experts else None
    guard = Guard.load() if _guards(settings) else None
    gate = Gate(settings, Limiter(settings.rate_limits, stores.counters), guard, metrics)
    shaping = orjson.dumps([settings.generation.model_dump(), [(m.name, m.tools) for m in settings.models]])
    return Pipeline(
        Wayfinder(pools, default, settings.routing.experts, router),
        gate,
        AnswerCache(settings.cache, stores.key_value, shaping),
    )


def _guards(settings: Settings) -> bool:
    """Whether texts will be looked at from the start; keys that come later may still want it."""
    return settings.guard.mode != "off" or any(
        policy.mode not in {None, "off"}
        for policy in (*(m.guard for m in settings.models), *(k.guard for k in settings.keys))
    )


async def _again(look: Callable[[Service], Awaitable[None]], service: Service) -> None:
    """Look now and then at what lives outside, each thing apart: a store that is away takes its time."""
    while True:
        try:
            await look(service)
        except Exception:  # noqa: BLE001 - whatever it is, it must not be the last look
            _trouble.warning("looking around failed", reason=traceback.format_exc(limit=-3))
        await asyncio.sleep(REFRESH_S)


async def _look_at_host(service: Service) -> None:
    """The keys file, the disk and the processes."""
    service.state.vitals = await asyncio.to_thread(_look, service)


async def _ask_stores(service: Service) -> None:
    """Whether the stores are well, and how many jobs there are."""
    state = service.state
    state.store_trouble = await state.stores.ping()
    if service.job_log is not None:
        state.jobs, state.jobs_trouble = await _count_jobs(service.job_log)


async def _open_jobs(service: Service) -> OpenJobLog | None:
    """The job log, if jobs are wanted and there is a place for them. Without one all else goes on."""
    if not service.settings.jobs.enabled:
        return None
    try:
        opened = await open_job_log(service.settings.store, service.settings.data_dir)
    except StoreError as error:
        service.state.jobs_trouble = f"jobs are off: {error.message}"
        _log.error("no job log", reason=error.message)
        return None
    service.job_log = opened.log
    return opened


async def _count_jobs(log: JobLog) -> tuple[JobFigures | None, str | None]:
    """How many jobs there are, and what is wrong with the log, in words."""
    try:
        counts = await log.counts()
        figures = JobFigures(
            states={str(state): count for state, count in counts.items()}, oldest_due_seconds=await log.oldest_due_s()
        )
        return figures, "; ".join(await log.warnings()) or None
    except StoreError as error:
        return None, error.message


def _look(service: Service) -> Vitals:
    """What the disk is asked for, which may take its time."""
    service.keys.refresh()
    pids = [engine.pid for pool in service.pools.values() for engine in pool.engines if engine.pid is not None]
    return read_vitals(service.settings.data_dir, pids)


def _socket_directory() -> Path:
    """A fresh private directory for Unix sockets, whose paths must be short."""
    try:
        sockets = Path(tempfile.mkdtemp(prefix="stoker-"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartupError(f"no directory for the engines' sockets can be made: {reason}; set TMPDIR to one") from None
    if len(os.fsencode(sockets)) + 1 + SOCKET_NAME_BYTES > MAX_SOCKET_PATH_BYTES:
        sockets.rmdir()
        raise StartupError(f"{sockets} is too long a path for the engines' sockets; set TMPDIR to a shorter one")
    return sockets


def _pool(settings: Settings, model: PlannedModel, sockets: Path) -> ModelPool:
    config, plan = model.config, model.plan
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
            return [UpstreamEngine(f"{config.name}/upstream", config.upstream or "", key, on_change)]
        path = model.path
        command = (
            partial(custom_command, config.command, plan, path)
            if config.command
            else partial(llamacpp_command, plan, path)
        )
        launch = Launch(
            command=command,
            load_timeout=settings.timeouts.load,
            stall_timeout=settings.timeouts.stall or plan.stall_timeout_s,
            restart=settings.restart,
            canary=_canary_times(settings, plan),
        )
        return [EngineProcess(f"{config.name}/{n}", launch, sockets, on_change) for n in range(config.replicas)]

    return ModelPool(pool_settings, engines)


def _canary_times(settings: Settings, plan: Plan) -> CanaryTimes | None:
    """When idle engines are asked for a token; a plan that is slow to compute a prompt is slow here, too."""
    health = settings.health
    if not health.canary_interval:
        return None
    return CanaryTimes(health.canary_interval, health.canary_timeout or plan.stall_timeout_s * CANARY_SHARE)
