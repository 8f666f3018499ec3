"""The composition root: opens every resource of a running server in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stoker import __version__
from stoker.config import Settings
from stoker.engine.launch import custom_command, llamacpp_command
from stoker.engine.pool import ModelPool, PoolSettings
from stoker.engine.process import SOCKET_NAME_BYTES, Engine, EngineProcess, Launch
from stoker.engine.upstream import UpstreamEngine
from stoker.errors import StartupError
from stoker.health import Finding, Health, Level
from stoker.lineup import PlannedModel
from stoker.pipeline import Pipeline

DISK_WARN_BYTES = 1024**3
DRAIN_POLL_S = 0.02
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # of `sun_path`, unix(7)


@dataclass(slots=True)
class Service:
    """A running server's parts, as routes and the command line see them."""

    settings: Settings
    models: Sequence[PlannedModel]
    pipeline: Pipeline
    health: Health
    started: float = field(default_factory=time.monotonic)
    draining: bool = False

    @property
    def pools(self) -> Mapping[str, ModelPool]:
        """The models' engines, by name."""
        return self.pipeline.pools

    @property
    def busy(self) -> int:
        """Requests that are at an engine or wait for one."""
        return sum(pool.running + len(pool.line) for pool in self.pools.values())

    async def wait_ready(self) -> None:
        """Return when every model can answer; EngineDied when one cannot be brought up."""
        await asyncio.gather(*(pool.wait_ready() for pool in self.pools.values()))

    async def drain(self, grace: float) -> bool:
        """Let no new request in and wait for the accepted ones; False when `grace` seconds did not suffice."""
        self.draining = True
        for pool in self.pools.values():
            pool.refuse_new()
        limit = time.monotonic() + grace
        while self.busy and time.monotonic() < limit:  # noqa: ASYNC110 - what is waited for has no single event
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.busy

    def report(self) -> dict[str, Any]:
        """The full health report."""
        findings = self.health.findings()
        outcomes = {finding.outcome for _, finding in findings}
        status = "fail" if "fail" in outcomes else "warn" if "warn" in outcomes else "ok"
        checks = [{"name": name, "status": found.outcome, "reason": found.reason} for name, found in findings]
        return {
            "status": status,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self.started, 1),
            "checks": checks,
            "models": [describe_pool(pool) for pool in self.pools.values()],
            "process": {"pid": os.getpid(), "python": sys.version.split()[0]},
        }


@asynccontextmanager
async def running(settings: Settings, models: Sequence[PlannedModel]) -> AsyncGenerator[Service]:
    """A service whose engines are starting; at the end of the context they are stopped and their sockets gone.

    Raises StartupError when there is no place for the sockets.
    """
    sockets = _socket_directory()
    try:
        pools = {model.config.name: _pool(settings, model, sockets) for model in models}
        default = settings.default_model or next(iter(pools), "")
        service = Service(settings, models, Pipeline(pools, default, settings.limits), Health())
        _register_checks(service)
        for pool in pools.values():
            pool.start()
        try:
            yield service
        finally:
            await asyncio.gather(*(pool.stop() for pool in pools.values()))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


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
        )
        return [EngineProcess(f"{config.name}/{n}", launch, sockets, on_change) for n in range(config.replicas)]

    return ModelPool(pool_settings, engines)


def describe_pool(pool: ModelPool) -> dict[str, Any]:
    """What the health report says of a model."""
    identity = pool.settings.identity
    return {
        "name": identity.name,
        "version": identity.version,
        "digest": f"sha256:{identity.digest}",
        "ready": pool.ready,
        "slots": pool.slots,
        "running": pool.running,
        "waiting": len(pool.line),
        "waiting_tokens": pool.line.tokens,
        "refused": pool.refused,
        "engines": [
            {
                "name": engine.name,
                "state": str(engine.state),
                "pid": engine.pid,
                "restarts": engine.restarts,
                "stalls": engine.stalls,
                "load_s": round(engine.load_seconds, 2),
                "last_token_at": engine.client.last_token_at if engine.client else None,
                "last_error": engine.last_error,
            }
            for engine in pool.engines
        ],
    }


def _register_checks(service: Service) -> None:
    health = service.health
    health.register("process", lambda: Finding("ok", "the event loop turns"), Level.LIVE)
    health.register("accepting", lambda: _accepting(service), Level.READY)
    health.register("disk", lambda: _disk(service.settings.data_dir))
    for name, pool in service.pools.items():
        health.register(f"model {name}", lambda pool=pool: _answers(pool), Level.READY)  # type: ignore[misc]
        health.register(f"model {name} loaded", lambda pool=pool: _loaded(pool), Level.STARTUP)  # type: ignore[misc]
        health.register(f"queue {name}", lambda pool=pool: _queue(pool), Level.READY)  # type: ignore[misc]


def _accepting(service: Service) -> Finding:
    if service.draining:
        return Finding("fail", "stopping; accepted requests are being finished")
    return Finding("ok", "takes requests")


def _answers(pool: ModelPool) -> Finding:
    ready = sum(engine.state == "ready" for engine in pool.engines)
    if ready == len(pool.engines):
        return Finding("ok", f"{ready} of {ready} engines ready")
    outcome = "warn" if ready else "fail"
    return Finding(outcome, f"{ready} of {len(pool.engines)} engines ready; {pool.trouble()}")  # type: ignore[arg-type]


def _loaded(pool: ModelPool) -> Finding:
    if any(engine.load_seconds or engine.state == "ready" for engine in pool.engines):
        return Finding("ok", "has been loaded")
    return Finding("fail", f"still loading; {pool.trouble()}")


def _queue(pool: ModelPool) -> Finding:
    line = pool.line
    text = f"{len(line)} of {line.max_requests} places, {line.tokens} of {line.max_tokens} tokens taken"
    full = line.max_requests > 0 and len(line) >= line.max_requests
    return Finding("fail" if full else "ok", text)


def _disk(directory: Path) -> Finding:
    existing = next((path for path in (directory, *directory.parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    text = f"{free / 1024**3:.1f} GiB free under {directory} (threshold {DISK_WARN_BYTES / 1024**3:.0f} GiB)"
    return Finding("warn" if free < DISK_WARN_BYTES else "ok", text)
