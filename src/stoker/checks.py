"""What the health report says of models and of what they stand on, from what is known already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stoker.engine.pool import ModelPool
from stoker.health import Finding, Health, Level

DISK_WARN_BYTES = 1024**3


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


def register_checks(
    health: Health,
    pools: Mapping[str, ModelPool],
    data_dir: Path,
    draining: Callable[[], bool],
    store: Callable[[], tuple[str, str | None]],
) -> None:
    """Register the checks of a server.

    Args:
        health: where.
        pools: the models' engines, by name.
        data_dir: whose disk is watched.
        draining: whether the server is stopping.
        store: where answers and counters are kept, and what is wrong there.
    """
    health.register("process", lambda: Finding("ok", "the event loop turns"), Level.LIVE)
    health.register("accepting", lambda: _accepting(draining=draining()), Level.READY)
    health.register("disk", lambda: _disk(data_dir))
    health.register("store", lambda: _store(*store()))
    for name, pool in pools.items():
        health.register(f"model {name}", lambda pool=pool: _answers(pool), Level.READY)  # type: ignore[misc]
        health.register(f"model {name} loaded", lambda pool=pool: _loaded(pool), Level.STARTUP)  # type: ignore[misc]
        health.register(f"queue {name}", lambda pool=pool: _queue(pool), Level.READY)  # type: ignore[misc]


def _accepting(*, draining: bool) -> Finding:
    if draining:
        return Finding("fail", "stopping; accepted requests are being finished")
    return Finding("ok", "takes requests")


def _store(description: str, trouble: str | None) -> Finding:
    return Finding("ok", f"answers and counters in {description}") if trouble is None else Finding("warn", trouble)


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
