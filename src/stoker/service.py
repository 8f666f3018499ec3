"""The composition root: opens every resource of a running server in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import shutil
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from stoker import __version__
from stoker.admission.auth import KeyRing
from stoker.admission.gate import Gate
from stoker.admission.guard.inspect import Guard
from stoker.admission.limits import Limiter
from stoker.backup.looking import looked_at
from stoker.backup.occupancy import InUse, serving
from stoker.backup.schedule import Schedule
from stoker.cache.answers import AnswerCache
from stoker.checks import register_checks
from stoker.config import Settings
from stoker.engine.pool import ModelPool
from stoker.errors import EngineDied, StokerError
from stoker.fleet import Fleet, socket_directory
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
from stoker.rollout.conductor import Conductor
from stoker.rollout.engines import Means
from stoker.rollout.shelf import Shelf
from stoker.rollout.watch import Watch
from stoker.routing.router import Router
from stoker.state import State
from stoker.store.jobs import JobLog
from stoker.store.opening import OpenJobLog, Stores, open_job_log, open_stores
from stoker.store.protocols import StoreError
from stoker.vitals import Vitals, read_vitals
from stoker.wayfinder import Wayfinder

REFRESH_S = 1.0
DRAIN_POLL_S = 0.02
_log = get_logger("service")
_trouble = Seldom("service", every_s=60.0)


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
    fleet: Fleet
    conductor: Conductor
    job_log: JobLog | None = None

    @property
    def pools(self) -> Mapping[str, ModelPool]:
        """The models' engines, by name."""
        return self.pipeline.wayfinder.pools

    @property
    def busy(self) -> int:
        """Requests that are at an engine or wait for one."""
        return sum(pool.running + len(pool.line) for pool in self.fleet.all())

    async def wait_ready(self) -> None:
        """Return when every model can answer; EngineDied when one cannot be brought up."""
        await asyncio.gather(*map(self._wait_for, tuple(self.pools)))

    async def _wait_for(self, model: str) -> None:
        while True:
            pool = self.pools[model]
            try:
                return await pool.wait_ready()
            except EngineDied:
                if not await self.conductor.replaces(model, pool):
                    raise

    async def drain(self, grace: float) -> bool:
        """Let no new request in and wait for the accepted ones; False when `grace` seconds did not suffice.

        Whoever has a connection may be told only by an answer that closes it: for `timeouts.lame_duck` seconds there
        are such answers.
        """
        self.state.draining = True
        await asyncio.sleep(self.settings.timeouts.lame_duck)
        await self.conductor.close()
        for pool in self.fleet.all():
            pool.refuse_new()
        limit = time.monotonic() + grace
        while self.busy and time.monotonic() < limit:  # noqa: ASYNC110 - what is waited for has no single event
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.busy


@asynccontextmanager
async def running(
    settings: Settings, models: Sequence[PlannedModel], config_file: Path | None = None
) -> AsyncGenerator[Service]:
    """A service whose engines are starting; at the end of the context they are stopped and their sockets gone.

    Args:
        settings: the configuration.
        models: from `line_up`.
        config_file: what the configuration was read from, for snapshots.

    Raises:
        StartupError: there is no place for the sockets.
        InUse: the data directory is being restored.
    """
    async with AsyncExitStack() as stack:
        _hold(settings.data_dir, stack)
        sockets = socket_directory()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        fleet = Fleet(settings, models, sockets)
        metrics, watch, health = Metrics(), Watch(), Health()
        stores = open_stores(settings.store, int(settings.cache.max_mib * 2**20), metrics.note_store_error)
        stack.push_async_callback(stores.close)
        pipeline = await asyncio.to_thread(_pipeline, settings, fleet.pools, stores, metrics)
        tracer, content = Tracer.open(settings.tracing, __version__), ContentWriter(settings.log)
        stack.push_async_callback(tracer.close)
        conductor = Conductor(
            Means(fleet, Shelf(settings.data_dir), settings.rollout, watch, pipeline.wayfinder.trials)
        )
        state = State(fleet.pools, fleet.aside, stores, LoopWatch(settings.health.lag_warn), conductor)
        service = Service(
            settings=settings,
            models=models,
            pipeline=pipeline,
            keys=KeyRing(settings),
            observer=Observer(metrics, tracer, content, (watch.see,)),
            health=health,
            state=state,
            reporter=Reporter(health, pipeline.cache, state, engine_version()),
            fleet=fleet,
            conductor=conductor,
        )
        jobs = await _open_jobs(service)
        if jobs is not None:
            stack.push_async_callback(jobs.close)
        register_checks(health, settings, state)
        metrics.registry.register(LiveFigures(service.reporter.snapshot))
        state.loop.start()
        stack.callback(state.loop.stop)
        stack.push_async_callback(fleet.stop)
        for pool in fleet.pools.values():
            pool.start()
        stack.push_async_callback(conductor.close)
        await conductor.open()
        for look in (_look_at_host, _ask_stores):
            stack.callback(asyncio.create_task(_again(look, service)).cancel)
        if settings.backup.repository is not None:
            stack.callback(asyncio.create_task(_again(_look_at_backup, service, settings.backup.look)).cancel)
        if settings.backup.schedule is not None:
            state.schedule = Schedule(settings, config_file)
            stack.push_async_callback(_end, asyncio.create_task(state.schedule.run()))
        yield service


def _hold(data_dir: Path, stack: AsyncExitStack) -> None:
    """Keep a restore off the data directory; one that cannot be written to nobody restores into."""
    try:
        stack.enter_context(serving(data_dir))
    except InUse:
        raise
    except StokerError as error:
        _log.debug("data directory is not held", reason=error.message)


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


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has cleaned up."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _again(look: Callable[[Service], Awaitable[None]], service: Service, every_s: float = REFRESH_S) -> None:
    """Look now and then at what lives outside, each thing apart: a store that is away takes its time."""
    while True:
        try:
            await look(service)
        except Exception:  # noqa: BLE001 - whatever it is, it must not be the last look
            _trouble.warning("looking around failed", reason=traceback.format_exc(limit=-3))
        await asyncio.sleep(every_s)


async def _look_at_host(service: Service) -> None:
    """The keys file, the disk and the processes."""
    service.state.vitals = await asyncio.to_thread(_look, service)


async def _ask_stores(service: Service) -> None:
    """Whether the stores are well, and how many jobs there are."""
    state = service.state
    state.store_trouble = await state.stores.ping()
    if service.job_log is not None:
        state.jobs, state.jobs_trouble = await _count_jobs(service.job_log)


async def _look_at_backup(service: Service) -> None:
    """What the repository of snapshots holds."""
    repository = service.settings.backup.repository or ""
    service.state.backup = await looked_at(repository, service.state.backup)


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
    pids = [engine.pid for pool in service.fleet.all() for engine in pool.engines if engine.pid is not None]
    return read_vitals(service.settings.data_dir, pids)
