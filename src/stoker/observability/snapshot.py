"""What is read of a running server when somebody asks for its figures; whoever knows the engines fills it in.

None stands for what is not known, and is left out of what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """One engine of a model. Times are seconds, instants seconds since 1970."""

    name: str
    up: bool
    restarts: int
    watchdog_kills: int
    load_seconds: float | None = None
    memory_bytes: int | None = None
    last_token_at: float | None = None
    canary_seconds: float | None = None
    canary_succeeded_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model; `kv_cache_ratio` is the share of its KV cache in use, 0..1."""

    name: str
    version: str
    digest: str
    running: int
    waiting: int
    waiting_tokens: int
    slots: int
    refused: int
    kv_cache_ratio: float | None = None
    engines: Sequence[EngineFigures] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """The answers' cache in this process; `lookups` by outcome. `limit_bytes` is None where there is no limit."""

    entries: int | None = None
    octets: int | None = None
    limit_bytes: int | None = None
    flights: int | None = None
    lookups: Mapping[str, int] = field(default_factory=dict)
    store_up: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFigures:
    """What the host grants and has; memory and processors by the cgroup where that limits them."""

    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_available_bytes: int | None = None
    cpu_quota_cores: float | None = None
    cpu_throttled_seconds: float | None = None
    load1: float | None = None
    disk_free_bytes: int | None = None
    disk_size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """Jobs that are kept, by state, and for how many seconds the oldest due one has waited."""

    states: Mapping[str, int]
    oldest_due_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFigures:
    """What this server's worker did: jobs it holds, attempts by what came of them, deliveries by what came of them."""

    running: int
    attempts: Mapping[str, int]
    deliveries: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFigures:
    """What the repository of snapshots holds, as of the last look at it that succeeded.

    `trouble` says why the latest look failed; None when it did not. `last_*` are of the newest good snapshot: when it
    was made, its content, what of that had to be sent, and for how long. `damaged` ones cannot be read.
    """

    trouble: str | None = None
    snapshots: int | None = None
    pinned: int | None = None
    damaged: int | None = None
    last_id: str | None = None
    last_success_at: float | None = None
    last_size_bytes: int | None = None
    last_sent_bytes: int | None = None
    last_seconds: float | None = None
    drill_at: float | None = None
    drill_ok: bool | None = None
    drill_succeeded_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFigures:
    """The rollout under way: of a served model to a version, the phase it is in and for how many seconds."""

    model: str
    version: str
    phase: str
    phase_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Versions: of Stoker, of the engine's library, and of Python."""

    version: str
    engine: str
    python: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A server at one moment.

    `lines_dropped` of the log, by where they should have gone; `backup_runs` of this server's schedule and `rollouts`
    since its start by what came of them.
    """

    build: Build
    ready: bool
    draining: bool
    uptime_seconds: float
    event_loop_lag_seconds: float | None = None
    models: Sequence[ModelFigures] = ()
    cache: CacheFigures = CacheFigures()
    host: HostFigures = HostFigures()
    checks: Mapping[str, Literal["ok", "warn", "fail"]] = field(default_factory=dict)
    lines_dropped: Mapping[str, int] = field(default_factory=dict)
    jobs: JobFigures | None = None
    work: WorkFigures | None = None
    backup: BackupFigures | None = None
    backup_runs: Mapping[str, int] | None = None
    rollout: RolloutFigures | None = None
    rollouts: Mapping[str, int] | None = None
