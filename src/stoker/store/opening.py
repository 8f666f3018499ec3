"""Opens the stores that the configuration names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stoker.config.serving import StoreConfig
from stoker.store.circuit import Circuit
from stoker.store.fallback import FallbackCounters, FallbackKeyValue
from stoker.store.jobs import JobLog
from stoker.store.memory import MemoryKeyValue
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import Counters, KeyValue, StoreError
from stoker.store.redis import RedisCounters, RedisKeyValue, RedisServer
from stoker.store.redis_jobs import RedisJobs
from stoker.store.sqlite_jobs import open_sqlite_jobs

JOBS_TIMEOUT_S = 5.0


class Usage(NamedTuple):
    """Values in this process: how many, and in bytes what they take and may take."""

    entries: int
    octets: int
    limit: int


@dataclass(frozen=True, slots=True)
class Stores:
    """What is open. `description` names the place for people, without credentials; `usage` is None where values are
    elsewhere.
    """

    key_value: KeyValue
    counters: Counters
    description: str
    probe: Callable[[], Awaitable[None]] | None = None
    usage: Callable[[], Usage] | None = None
    closers: tuple[Callable[[], Awaitable[None]], ...] = ()

    async def ping(self) -> str | None:
        """None when the store is well; else a sentence for the health report. Bounded by the store's time limit."""
        if self.probe is None:
            return None
        try:
            await self.probe()
        except StoreError as error:
            return f"{error.message}; limits are local and nothing is cached until it is back"
        return None

    async def close(self) -> None:
        """Close everything, in reverse of how it was opened."""
        for close in self.closers:
            await close()


def open_stores(config: StoreConfig, cache_bytes: int, on_failure: Callable[[str, str], None]) -> Stores:
    """Open the stores; a Redis that is down does not hinder it. Call it inside the event loop that will use them.

    Args:
        config: where values and counters are kept.
        cache_bytes: memory for values in this process, in bytes; Redis has a bound of its own.
        on_failure: see `Circuit`.

    Raises:
        ConfigError: when the URL of Redis cannot be understood.
    """
    if config.redis is None:
        values, counters = MemoryKeyValue(cache_bytes), MemoryCounters()
        return Stores(
            values,
            counters,
            "memory",
            usage=lambda: Usage(values.entries, values.octets, cache_bytes),
            closers=(counters.close, values.close),
        )
    server = RedisServer(config.redis.get_secret_value(), config.prefix, config.timeout)
    circuit = Circuit(server.name, server.probe, on_failure)
    shared_values = FallbackKeyValue(RedisKeyValue(server), circuit)
    shared_counters = FallbackCounters(RedisCounters(server), MemoryCounters(), circuit)
    closers = (circuit.close, shared_counters.close, shared_values.close, server.close)
    return Stores(shared_values, shared_counters, f"redis at {server.name}", server.probe, closers=closers)


@dataclass(frozen=True, slots=True)
class OpenJobLog:
    """A job log, and how it is closed."""

    log: JobLog
    closers: tuple[Callable[[], Awaitable[None]], ...]

    async def close(self) -> None:
        """Close the log, and then what it stands on."""
        for close in self.closers:
            await close()


async def open_job_log(config: StoreConfig, data_dir: Path) -> OpenJobLog:
    """Open the job log: in Redis where one is configured, else in `data_dir`; raises StoreError.

    Its connections are its own, for it has more time than a cache has: what is acknowledged must be kept.
    """
    if config.redis is not None:
        server = RedisServer(config.redis.get_secret_value(), config.prefix, JOBS_TIMEOUT_S)
        shared = RedisJobs(server)
        return OpenJobLog(shared, (shared.close, server.close))
    own = await open_sqlite_jobs(data_dir / "jobs", JOBS_TIMEOUT_S)
    return OpenJobLog(own, (own.close,))
