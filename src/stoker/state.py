"""How a server is just now: whoever acts or looks writes it here, checks and reports read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stoker.backup.schedule import Schedule
from stoker.engine.pool import ModelPool
from stoker.observability.loopwatch import LoopWatch
from stoker.observability.snapshot import BackupFigures, JobFigures, WorkFigures
from stoker.rollout.conductor import Conductor
from stoker.store.opening import Stores
from stoker.vitals import Vitals


@dataclass(slots=True)
class State:
    """What is known of a server at this moment.

    Attributes:
        pools: the engines that serve, by the model's name.
        aside: those that rollouts have beside them, by `name@version`.
        stores: where answers and counters are.
        loop: knows how late the event loop was.
        draining: whether the server is stopping.
        vitals: of host and process, as of a moment ago; None before the first look.
        store_trouble: what is wrong with the stores, in words.
        jobs_trouble: what is wrong with the job log.
        batches_trouble: why there are no batches although there are jobs.
        jobs: how many there are; None where there are none.
        work: what this server's worker did; None where there is none.
        rollouts: of this server.
        schedule: makes snapshots; None where none is configured.
        backup: what the repository of snapshots holds; None without one, or before the first look.
        started: by `time.monotonic()`.
    """

    pools: Mapping[str, ModelPool]
    aside: Mapping[str, ModelPool]
    stores: Stores
    loop: LoopWatch
    rollouts: Conductor
    draining: bool = False
    vitals: Vitals | None = None
    store_trouble: str | None = None
    jobs_trouble: str | None = None
    batches_trouble: str | None = None
    jobs: JobFigures | None = None
    work: Callable[[], WorkFigures] | None = None
    schedule: Schedule | None = None
    backup: BackupFigures | None = None
    started: float = field(default_factory=time.monotonic)
