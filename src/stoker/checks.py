"""The checks of a running server: what each finds, from what is known already, and by which threshold."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from stoker.backup.schedule import Schedule
from stoker.config import HealthConfig, Settings
from stoker.engine.pool import ModelPool
from stoker.engine.process import Engine, EngineState
from stoker.health import Finding, Health, Level, Outcome
from stoker.observability.snapshot import BackupFigures
from stoker.state import State
from stoker.vitals import Disk, Memory, Vitals

MIB = 1 << 20
HOUR_S = 3600.0


def register_checks(health: Health, settings: Settings, state: State) -> None:
    """Register the checks of a server with the thresholds of its configuration."""
    config = settings.health
    health.register("process", lambda: Finding("ok", "the event loop turns"), Level.LIVE)
    health.register("accepting", lambda: _accepting(draining=state.draining), Level.READY)
    health.register("event loop", lambda: _lag(state.loop.lag_s, config))
    health.register("memory", lambda: _known(state.vitals, lambda vitals: memory_finding(vitals.memory, config)))
    health.register("disk", lambda: _known(state.vitals, lambda vitals: disk_finding(vitals.disk, config)))
    health.register("store", lambda: _store(state.stores.description, state.store_trouble))
    health.register("jobs", lambda: _jobs(state.jobs_trouble or state.batches_trouble))
    if settings.backup.repository is not None:
        late = settings.backup.late
        health.register("backup", lambda: backup_finding(state.backup, state.schedule, late))
    for name in state.pools:  # by name: a rollout puts other engines in the place of these
        health.register(f"model {name}", partial(_of_pool, state, name, _answers), Level.READY)
        health.register(f"model {name} loaded", partial(_of_pool, state, name, _loaded), Level.STARTUP)
        health.register(f"queue {name}", partial(_of_pool, state, name, _queue), Level.READY)


def memory_finding(memory: Memory, config: HealthConfig) -> Finding:
    """How near the memory's limit is."""
    text = (
        f"{memory.used / MIB:,.0f} of {memory.limit / MIB:,.0f} MiB in use ({memory.share:.0%}) by {memory.source}, "
        f"the gateway has {memory.gateway / MIB:,.0f}, engines {sum(memory.engines.values()) / MIB:,.0f}"
    )
    threshold = f"warns from {config.memory_warn:.0%}, fails from {config.memory_fail:.0%}"
    return Finding(_above(memory.share, config.memory_warn, config.memory_fail), text, threshold)


def disk_finding(disk: Disk | None, config: HealthConfig) -> Finding:
    """How much room is left for models and whatever else must survive."""
    threshold = f"warns below {config.disk_warn_mib} MiB, fails below {config.disk_fail_mib}"
    if disk is None:
        return Finding("fail", "the data directory's file system does not answer", threshold)
    free = disk.free / MIB
    text = f"{free:,.0f} of {disk.size / MIB:,.0f} MiB free under {disk.path}"
    return Finding(_above(-free, -config.disk_warn_mib, -config.disk_fail_mib, strict=True), text, threshold)


def _above(value: float, warn: float, fail: float, *, strict: bool = False) -> Outcome:
    """What it means that a value has grown so far; `strict` when it may reach a threshold without crossing it."""
    if value > fail or (value == fail and not strict):
        return "fail"
    return "warn" if value > warn or (value == warn and not strict) else "ok"


def _known(vitals: Vitals | None, judge: Callable[[Vitals], Finding]) -> Finding:
    return Finding("ok", "not looked at so far") if vitals is None else judge(vitals)


def _accepting(*, draining: bool) -> Finding:
    if draining:
        return Finding("fail", "stopping; accepted requests are being finished")
    return Finding("ok", "takes requests")


def _lag(lag_s: float, config: HealthConfig) -> Finding:
    outcome: Outcome = "warn" if lag_s > config.lag_warn else "ok"
    return Finding(
        outcome, f"at most {lag_s * 1000:.0f} ms late in the last 10 s", f"warns above {config.lag_warn:g} s"
    )


def _store(description: str, trouble: str | None) -> Finding:
    return Finding("ok", f"answers and counters in {description}") if trouble is None else Finding("warn", trouble)


def _jobs(trouble: str | None) -> Finding:
    return Finding("ok", "the job log is well, or not wanted") if trouble is None else Finding("warn", trouble)


def backup_finding(backup: BackupFigures | None, schedule: Schedule | None, late_s: float) -> Finding:
    """How old the newest snapshot is, and what is wrong with the repository or with this server's schedule."""
    threshold = f"warns from {late_s / HOUR_S:g} h" if schedule is not None else None
    if schedule is not None and schedule.trouble is not None:
        return Finding("warn", f"the last backup failed: {schedule.trouble}", threshold)
    if backup is None:
        return Finding("ok", "not looked at so far", threshold)
    if backup.trouble is not None:
        return Finding("warn", backup.trouble, threshold)
    if backup.last_success_at is None:
        return Finding("ok" if schedule is None else "warn", "there is no snapshot so far", threshold)
    age = max(time.time() - backup.last_success_at, 0.0)
    text = f"the newest of {backup.snapshots} snapshots is {age / HOUR_S:.1f} h old"
    return Finding("warn" if schedule is not None and age > late_s else "ok", text, threshold)


def _of_pool(state: State, name: str, judge: Callable[[ModelPool], Finding]) -> Finding:
    return judge(state.pools[name])


def _answers(pool: ModelPool) -> Finding:
    ready = sum(engine.state is EngineState.READY for engine in pool.engines)
    threshold = "fails without a ready engine, warns with fewer than there are"
    if ready == len(pool.engines):
        canaries = [engine.canary.latency_s for engine in pool.engines if engine.canary.latency_s is not None]
        slowest = f"; canary answered in {max(canaries) * 1000:.0f} ms" if canaries else ""
        return Finding("ok", f"{ready} of {ready} engines ready{slowest}", threshold)
    outcome: Outcome = "warn" if ready else "fail"
    return Finding(outcome, f"{ready} of {len(pool.engines)} engines ready; {pool.trouble()}", threshold)


def _loaded(pool: ModelPool) -> Finding:
    if any(engine.load_seconds or engine.state is EngineState.READY for engine in pool.engines):
        return Finding("ok", "has been loaded")
    progress = ", ".join(map(_progress, pool.engines))
    return Finding("fail", f"still loading: {progress}")


def _progress(engine: Engine) -> str:
    """How far an engine is, in words."""
    waiting = f"{engine.name} {engine.state} for {engine.starting_s:.1f} s"
    return f"{waiting} after {engine.last_error}" if engine.last_error else waiting


def _queue(pool: ModelPool) -> Finding:
    line = pool.line
    text = f"{len(line)} of {line.max_requests} places, {line.tokens} of {line.max_tokens} tokens taken"
    full = line.max_requests > 0 and not line.has_room(0)  # jobs take no places
    return Finding("fail" if full else "ok", text, "fails when nothing more may wait")
