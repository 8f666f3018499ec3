"""Opens job logs of both kinds for tests, and makes jobs for them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stoker.store.jobs import JobLog, NewJob, QueueLimits
from stoker.store.redis import RedisServer
from stoker.store.redis_jobs import RedisJobs
from stoker.store.sqlite_jobs import open_sqlite_jobs
from tests.redis_server import RedisProcess

SOON_S = 30.0  # what is waited for at most; nothing is measured
NO_LIMITS = QueueLimits(1_000_000, 1_000_000)
_numbers = itertools.count()


def new_job(tenant: str = "ann", **fields: Any) -> NewJob:
    """A job whose id sorts after those before it."""
    defaults = {"id": f"{next(_numbers):032x}", "endpoint": "/query", "request": b'{"text":"hi"}'}
    return NewJob(tenant=tenant, **(defaults | fields))


@contextlib.asynccontextmanager
async def sqlite_log(directory: Path, timeout_s: float = SOON_S) -> AsyncIterator[JobLog]:
    """The log in a directory."""
    log = await open_sqlite_jobs(directory, timeout_s)
    try:
        yield log
    finally:
        await log.close()


@contextlib.asynccontextmanager
async def redis_log(valkey: RedisProcess, timeout_s: float = SOON_S) -> AsyncIterator[JobLog]:
    """The log in a server, as one replica sees it."""
    server = RedisServer(valkey.url, "test:", timeout_s)
    log = RedisJobs(server)
    try:
        yield log
    finally:
        await log.close()
        await server.close()
