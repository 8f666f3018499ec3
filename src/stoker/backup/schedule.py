"""When the server makes snapshots by itself, and the child process in which each one is made."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from cronsim import CronSim, CronSimError

from stoker.backup.looking import looked_at
from stoker.backup.order import COMMAND, Order, Result
from stoker.config import Settings
from stoker.errors import ConfigError
from stoker.observability.logging import get_logger

CLOCK_JUMP_S: Final = 3600.0
"""A clock that is set back by more than this, and not only corrected, makes the schedule begin anew."""
TAIL_BYTES: Final = 1 << 16
_log = get_logger("backup")


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. A backup begins up to `jitter` late, so that replicas do not all begin at once; one that failed is
    tried again `retries` times after `retry_pause`, and given up after `limit`. The clock is looked at every `step`.
    """

    jitter: float = 60.0
    retries: int = 3
    retry_pause: float = 600.0
    limit: float = 6 * 3600.0
    step: float = 60.0
    stop_grace: float = 3.0


def next_time(expression: str, after: datetime) -> datetime:
    """The first moment after `after` at which a cron expression of five fields is due, in UTC.

    Raises:
        ConfigError: the expression is none, or never comes true.
    """
    try:
        return next(CronSim(expression, after.astimezone(UTC)))
    except (CronSimError, StopIteration) as error:
        reason = str(error) or "it never comes true"
        raise ConfigError(
            f"backup.schedule: {expression!r} is no cron expression of five fields: {reason}", param="backup.schedule"
        ) from None


class Schedule:
    """Makes snapshots of this server when they are due.

    Args:
        settings: the server's; with `backup.schedule` and `backup.repository`.
        config_file: the file that they were read from, if any.
        times: how patient it is.
        make: makes one snapshot, in a child process.
        clock: Unix seconds.
        sleep: waits for so many seconds.
        last_made: when the newest good snapshot was made; None where that is not known.

    Attributes:
        runs: attempts by what came of them.
        trouble: why there is no snapshot of the last time that was due; None when there is one.
        next_at: when the next one is due, in Unix seconds.
        running: whether one is being made.

    Raises:
        ConfigError: the schedule never comes true.
    """

    def __init__(
        self,
        settings: Settings,
        config_file: Path | None = None,
        *,
        times: Times | None = None,
        make: Callable[[], Awaitable[Result]] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        last_made: Callable[[], Awaitable[float | None]] | None = None,
    ) -> None:
        if settings.backup.schedule is None or settings.backup.repository is None:
            raise ConfigError("backup.schedule: wants a cron expression, and backup.repository a place for snapshots")
        self._expression = settings.backup.schedule
        self._repository = settings.backup.repository
        self._times = times or Times()
        self._make = make or partial(run_child, Order(settings, config_file), self._times)
        self._clock = clock
        self._sleep = sleep
        self._last_made = last_made or self._ask_repository
        self.runs = {"succeeded": 0, "failed": 0}
        self.trouble: str | None = None
        self.running = False
        self.next_at = self._due(clock())

    async def run(self) -> None:
        """Make snapshots until cancelled; not even a defect of ours ends it. A cancelled backup leaves nothing."""
        since = await self._since_when()
        while True:
            try:
                since = await self._wait(since)
                await self._sleep(random.random() * self._times.jitter)  # noqa: S311 - spreads replicas, nothing secret
                await self._persist()
            except Exception:  # noqa: BLE001 - see above
                _log.exception("backup schedule failed")
                await self._sleep(self._times.step)

    async def _since_when(self) -> float:
        """From when on a due time counts: a server that was away makes up for the one that it missed."""
        now = self._clock()
        try:
            made = await self._last_made()
        except Exception:  # noqa: BLE001 - then nothing is made up for
            _log.exception("repository cannot be looked at")
            made = None
        return now if made is None else min(made, now)

    async def _ask_repository(self) -> float | None:
        return (await looked_at(self._repository)).last_success_at

    async def _wait(self, since: float) -> float:
        """Return the time, once the first due time after `since` has come; how many came meanwhile does not matter."""
        while True:
            now = self._clock()
            if now < since - CLOCK_JUMP_S:
                since = now
            self.next_at = self._due(since)
            if self.next_at <= now:
                return now
            await self._sleep(min(self.next_at - now, self._times.step))

    def _due(self, since: float) -> float:
        return next_time(self._expression, datetime.fromtimestamp(since, UTC)).timestamp()

    async def _persist(self) -> None:
        """Make the snapshot that is due, with several tries."""
        tries = self._times.retries + 1
        for attempt in range(1, tries + 1):
            self.running = True
            try:
                result = await self._make()
            finally:
                self.running = False
            if result.ok:
                self._note_success(result)
                return
            self.runs["failed"] += 1
            self.trouble = result.reason
            _log.error("backup failed", reason=result.reason, attempt=attempt, attempts=tries)
            if attempt < tries:
                await self._sleep(self._times.retry_pause)

    def _note_success(self, result: Result) -> None:
        self.runs["succeeded"] += 1
        self.trouble = None
        _log.info(
            "backup made",
            snapshot=result.snapshot,
            size_bytes=result.size_bytes,
            sent_bytes=result.sent_bytes,
            seconds=result.seconds,
            removed=result.removed,
            freed_bytes=result.freed_bytes,
        )
        if result.prune_trouble:
            _log.warning("old snapshots could not all be removed", reason=result.prune_trouble)


async def run_child(order: Order, times: Times, command: Sequence[str] = COMMAND) -> Result:
    """What a child makes of an order. When this is cancelled, the child ends first."""
    try:
        with tempfile.TemporaryDirectory(prefix="stoker-backup-", ignore_cleanup_errors=True) as scratch:
            return await _run_child(order.encode(Path(scratch)), times, command)
    except OSError as error:
        return Result(ok=False, reason=f"the process for it cannot be started: {error.strerror or error}")


async def _run_child(line: bytes, times: Times, command: Sequence[str]) -> Result:
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal must reach the gateway only
    )
    try:
        async with asyncio.timeout(times.limit):
            said, complaints = await _converse(child, line)
    except TimeoutError:
        return Result(ok=False, reason=f"it took longer than {times.limit / 3600:g} h and was ended")
    finally:
        await _end(child, times.stop_grace)
    if complaints:
        _log.warning("backup output", output=complaints.decode(errors="replace")[-2000:])
    try:
        return Result.decode(said.strip().rpartition(b"\n")[2])
    except ValueError:
        return Result(ok=False, reason=_obituary(child.returncode))


async def _converse(child: asyncio.subprocess.Process, line: bytes) -> tuple[bytes, bytes]:
    """Give the order, keep the input open, and take in what the child says until it ends."""
    if child.stdin is not None:
        with contextlib.suppress(ConnectionError):
            child.stdin.write(line)
            await child.stdin.drain()
    said, complaints, _ = await asyncio.gather(_tail(child.stdout), _tail(child.stderr), child.wait())
    return said, complaints


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    """The end of what a stream says."""
    tail = b""
    while stream is not None and (data := await stream.read(TAIL_BYTES)):
        tail = (tail + data)[-TAIL_BYTES:]
    return tail


async def _end(child: asyncio.subprocess.Process, grace: float) -> None:
    """Close the child's input, which ends it, and kill it if that does not."""
    if child.returncode is not None:
        return
    if child.stdin is not None:
        child.stdin.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), grace)
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _obituary(status: int | None) -> str:
    """Why a child that left no result may have ended."""
    if status is not None and status < 0:
        return f"its process was killed by signal {-status}; if that was the kernel for want of memory, give more"
    return f"its process ended with status {status} and no result; the log has what it said"
