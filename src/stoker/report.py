"""What a running server tells of itself: the health report for people and monitors, and the figures for metrics."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stoker import __version__
from stoker.cache.answers import AnswerCache
from stoker.engine.pool import ModelPool
from stoker.engine.process import Engine, EngineState
from stoker.health import Finding, Health, Level
from stoker.observability.logging import dropped
from stoker.observability.snapshot import (
    Build,
    CacheFigures,
    EngineFigures,
    HostFigures,
    ModelFigures,
    Snapshot,
)
from stoker.state import State
from stoker.vitals import Vitals

ENGINE_PACKAGE = "xllamacpp"


def engine_version() -> str:
    """The version of the engine's library; empty where it is not installed."""
    try:
        return version(ENGINE_PACKAGE)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Tells how a server is.

    Args:
        health: its checks.
        cache: stored answers.
        state: how it is just now.
        engine: the version of the engine's library.
    """

    health: Health
    cache: AnswerCache
    state: State
    engine: str

    def report(self) -> dict[str, Any]:
        """The full health report."""
        findings = self.health.findings()
        outcomes = {finding.outcome for _, finding in findings}
        state, python = self.state, sys.version.split()[0]
        return {
            "status": "fail" if "fail" in outcomes else "warn" if "warn" in outcomes else "ok",
            "version": __version__,
            "versions": {"stoker": __version__, "python": python, "llama.cpp": self.engine},
            "uptime_s": round(time.monotonic() - state.started, 1),
            "checks": [_check(name, found) for name, found in findings],
            "models": [describe_pool(pool, state.vitals) for pool in state.pools.values()],
            "aside": [describe_pool(pool, state.vitals) for pool in state.aside.values()],
            "rollout": self._rollout(),
            "backup": None if state.backup is None else asdict(state.backup),
            "process": {
                "pid": os.getpid(),
                "python": python,
                "loop_lag_s": round(state.loop.lag_s, 3),
            },
            "store": {"where": state.stores.description, "trouble": state.store_trouble},
            **_describe_vitals(state.vitals),
        }

    def _rollout(self) -> dict[str, Any] | None:
        """The rollout under way, shortly."""
        now = self.state.rollouts.current()
        if now is None:
            return None
        told = {"id": now.id, "model": now.model, "before": now.before.ref, "after": now.after.ref}
        return {**told, "phase": now.phase, "warm": now.warm}

    def snapshot(self) -> Snapshot:
        """The figures for metrics, now."""
        vitals = self.state.vitals
        findings = self.health.findings()
        return Snapshot(
            build=Build(version=__version__, engine=self.engine, python=sys.version.split()[0]),
            ready=not self.health.failing(Level.READY),
            draining=self.state.draining,
            uptime_seconds=time.monotonic() - self.state.started,
            event_loop_lag_seconds=self.state.loop.lag_s,
            models=[_model_figures(pool, vitals) for pool in self.state.pools.values()],
            cache=self._cache_figures(),
            host=_host_figures(vitals),
            checks={name: found.outcome for name, found in findings},
            lines_dropped=dropped(),
            jobs=self.state.jobs,
            work=self.state.work() if self.state.work is not None else None,
            backup=self.state.backup,
            backup_runs=dict(self.state.schedule.runs) if self.state.schedule is not None else None,
            rollout=self.state.rollouts.figures(),
            rollouts=dict(self.state.rollouts.outcomes),
        )

    def _cache_figures(self) -> CacheFigures:
        usage = self.state.stores.usage() if self.state.stores.usage is not None else None
        return CacheFigures(
            entries=usage.entries if usage else None,
            octets=usage.octets if usage else None,
            limit_bytes=usage.limit if usage else None,
            flights=len(self.cache.flights),
            lookups=dict(self.cache.lookups),
            store_up=self.state.store_trouble is None,
        )


def describe_pool(pool: ModelPool, vitals: Vitals | None) -> dict[str, Any]:
    """What the health report says of a model."""
    identity = pool.settings.identity
    tokens = [engine.client.last_token_at for engine in pool.engines if engine.client and engine.client.last_token_at]
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
        "kv_cache_ratio": pool.kv_cache_ratio,
        "last_token_at": max(tokens, default=None),
        "engines": [_describe_engine(engine, vitals) for engine in pool.engines],
    }


def _describe_engine(engine: Engine, vitals: Vitals | None) -> dict[str, Any]:
    canary = engine.canary
    now = time.time()
    return {
        "name": engine.name,
        "state": str(engine.state),
        "pid": engine.pid,
        "restarts": engine.restarts,
        "stalls": engine.stalls,
        "load_s": round(engine.load_seconds, 2),
        "loading_s": round(engine.starting_s, 1),
        "memory_bytes": _memory_of(engine, vitals),
        "last_token_at": engine.client.last_token_at if engine.client else None,
        "last_error": engine.last_error,
        "canary": {
            "age_s": None if canary.answered_at is None else round(now - canary.answered_at, 1),
            "latency_ms": None if canary.latency_s is None else round(canary.latency_s * 1000, 1),
            "refusal": canary.refusal,
        },
    }


def _memory_of(engine: Engine, vitals: Vitals | None) -> int | None:
    return vitals.memory.engines.get(engine.pid) if vitals is not None and engine.pid is not None else None


def _check(name: str, found: Finding) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "status": found.outcome, "reason": found.reason}
    return {**told, "threshold": found.threshold} if found.threshold is not None else told


def _describe_vitals(vitals: Vitals | None) -> dict[str, Any]:
    if vitals is None:
        return {}
    memory, disk, cpus = vitals.memory, vitals.disk, vitals.cpus
    return {
        "memory": {
            "used_bytes": memory.used,
            "limit_bytes": memory.limit,
            "limit_source": memory.source,
            "gateway_bytes": memory.gateway,
            "engines_bytes": sum(memory.engines.values()),
            "host_total_bytes": memory.host_total,
            "host_available_bytes": memory.host_available,
        },
        "disk": disk and {"path": str(disk.path), "free_bytes": disk.free, "size_bytes": disk.size},
        "cpu": {
            "granted": cpus.granted,
            "quota": cpus.quota,
            "load1": round(cpus.load1, 2),
            "throttled_s": round(cpus.throttled_s, 2),
        },
    }


def _model_figures(pool: ModelPool, vitals: Vitals | None) -> ModelFigures:
    identity = pool.settings.identity
    return ModelFigures(
        name=identity.name,
        version=identity.version,
        digest=identity.digest,
        running=pool.running,
        waiting=len(pool.line),
        waiting_tokens=pool.line.tokens,
        slots=pool.slots,
        refused=pool.refused,
        kv_cache_ratio=pool.kv_cache_ratio,
        engines=[_engine_figures(engine, vitals) for engine in pool.engines],
    )


def _engine_figures(engine: Engine, vitals: Vitals | None) -> EngineFigures:
    client = engine.client
    return EngineFigures(
        name=engine.name,
        up=engine.state is EngineState.READY,
        restarts=engine.restarts,
        watchdog_kills=engine.stalls,
        load_seconds=engine.load_seconds or None,
        memory_bytes=_memory_of(engine, vitals),
        last_token_at=client.last_token_at if client else None,
        canary_seconds=engine.canary.latency_s,
        canary_succeeded_at=engine.canary.answered_at,
    )


def _host_figures(vitals: Vitals | None) -> HostFigures:
    if vitals is None:
        return HostFigures()
    memory, disk, cpus = vitals.memory, vitals.disk, vitals.cpus
    return HostFigures(
        memory_limit_bytes=memory.limit,
        memory_used_bytes=memory.used,
        memory_available_bytes=memory.host_available,
        cpu_quota_cores=cpus.granted,
        cpu_throttled_seconds=cpus.throttled_s,
        load1=cpus.load1,
        disk_free_bytes=disk.free if disk else None,
        disk_size_bytes=disk.size if disk else None,
    )
