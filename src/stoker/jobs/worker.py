"""Works on jobs: claims them, makes their requests beside the interactive ones, and records what came of them.

A job is held by a lease that is renewed while it runs. Whoever dies loses it to another worker; one whose result was
recorded is never run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from stoker.config.jobs import JobsConfig
from stoker.jobs.attempt import Attempt, Verdict
from stoker.jobs.calls import Translator
from stoker.jobs.courier import Courier
from stoker.jobs.steadily import Steadily, report
from stoker.observability.logging import get_logger
from stoker.observability.record import Observer
from stoker.store.jobs import MAX_CLAIMED, Beat, Claimed, JobLog
from stoker.store.protocols import StoreError

_log = get_logger("jobs")
WAIT_S: Final = 5.0
"""Seconds after which the log is asked again, whatever it said."""
BEAT_S: Final = 2.0
"""Longest time between two signs of life, in seconds; a cancellation elsewhere is noticed with one."""
TELL_S: Final = 0.1
"""Seconds for which events are gathered."""
COLLECT_S: Final = 5.0
RECHECK_S: Final = 1.0
"""Seconds after which the engines' slots are counted again while there is no room."""
GIVE_BACK_S: Final = 2.0
"""Seconds in which a stopping worker gives back what it could not finish; leases see to the rest."""
RUN_S: Final = 3600.0


class Worker:
    """Runs jobs until it is stopped. One for each process.

    Args:
        log: has the jobs.
        translator: makes calls of them.
        config: how many at once, leases, pauses.
        observer: told of each attempt as of any request.
        slots: how many requests the engines take at once; asked again and again.
        courier: takes results to callbacks; None where there are none.
        run_s: seconds for one attempt, waiting for a slot included.

    Attributes:
        ended: what became of attempts so far: `succeeded`, `failed`, `cancelled`, `retried`, `released`, `lost`; and
            the `expired` jobs that its collecting found.
    """

    def __init__(
        self,
        log: JobLog,
        translator: Translator,
        config: JobsConfig,
        observer: Observer,
        *,
        slots: Callable[[], int],
        courier: Courier | None = None,
        run_s: float = RUN_S,
    ) -> None:
        self.ended: Counter[str] = Counter()
        self.courier = courier
        self._log = log
        self._translator = translator
        self._config = config
        self._observer = observer
        self._slots = slots
        self._run_s = run_s
        self._beat_s = min(config.lease / 3, BEAT_S)
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._attempts: dict[tuple[str, str], Attempt] = {}
        self._claiming: asyncio.Task[None] | None = None
        self._stopping = False
        self._stopped = asyncio.Event()
        self._freed = asyncio.Event()
        self._told = asyncio.Event()
        self._nudged = asyncio.Event()

    @property
    def running(self) -> int:
        """Jobs that this worker holds."""
        return len(self._attempts)

    async def run(self) -> None:
        """Work until `stop` is done."""
        beats = Steadily("renew leases", longest_pause_s=self._beat_s)
        loops = [
            asyncio.create_task(beats.forever(self._beat)),
            asyncio.create_task(Steadily("tell events").forever(self._tell)),
            asyncio.create_task(Steadily("collect").forever(self._collect)),
        ]
        if self.courier is not None:
            loops.append(asyncio.create_task(self.courier.run()))
        if not self._stopping:
            self._claiming = asyncio.create_task(Steadily("claim").forever(self._claim))
            loops.append(self._claiming)
        try:
            await self._stopped.wait()
        finally:
            works = [attempt.work for attempt in self._attempts.values() if attempt.work is not None]
            for task in [*loops, *works]:
                task.cancel()
            await asyncio.gather(*loops, *works, return_exceptions=True)

    async def stop(self, grace: float) -> None:
        """Claim no more; give back what no engine works on, wait up to `grace` seconds for the rest, give that back."""
        self._stopping = True
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.wait({self._claiming})
        for attempt in self._attempts.values():
            if not attempt.begun:
                attempt.end("stopping")
        await self._wait_all(grace)
        for attempt in self._attempts.values():
            attempt.end("stopping")
        await self._wait_all(GIVE_BACK_S)
        self._stopped.set()

    def look_at(self, job_id: str) -> None:
        """A job was asked to end: see to it now, if it runs here."""
        if any(held == job_id for held, _ in self._attempts):
            self._nudged.set()

    async def _wait_all(self, seconds: float) -> None:
        works = [attempt.work for attempt in self._attempts.values() if attempt.work is not None]
        if works:
            await asyncio.wait(works, timeout=seconds)

    # -- rounds of the loops ---------------------------------------------------------------------------------------

    def _room(self) -> int:
        return (self._config.concurrency or self._slots()) - len(self._attempts)

    async def _claim(self) -> None:
        """Take up as many due jobs as there is room for, or wait for either."""
        if self._room() <= 0:
            await _heard(self._freed, RECHECK_S)
            return
        if not await self._log.wait_work(WAIT_S):
            return
        room = self._room()
        if room <= 0:
            return
        claimed = await self._log.claim(self._name, self._config.lease, min(room, MAX_CLAIMED))
        for one in claimed:
            self._start(one)
        if not claimed:  # another worker was faster
            await asyncio.sleep(0.02)

    def _start(self, claimed: Claimed) -> None:
        attempt = Attempt(claimed, self._observer, self._told.set)
        self._attempts[claimed.job.id, claimed.token] = attempt
        attempt.work = asyncio.create_task(self._work(attempt), name=f"work-{claimed.job.id}")
        attempt.work.add_done_callback(report)  # its lease runs out then

    async def _beat(self) -> None:
        """Renew the leases of all that runs, and end what is not wanted any more."""
        await _heard(self._nudged, self._beat_s)
        held = list(self._attempts.values())
        if not held:
            return
        beats = [Beat(attempt.job.id, attempt.token, attempt.news()) for attempt in held]
        answers = await self._log.heartbeat(beats, self._config.lease)
        for attempt, answer in zip(held, answers, strict=True):
            if answer != "held":
                attempt.end(answer)

    async def _tell(self) -> None:
        """Append what running jobs have told, a while's worth at once."""
        await self._told.wait()
        await asyncio.sleep(TELL_S)
        self._told.clear()
        await asyncio.gather(*(self._append(one) for one in self._attempts.values() if one.telling.pieces))

    async def _append(self, attempt: Attempt) -> None:
        async with attempt.appending:
            pieces = attempt.telling.take()
            if pieces:
                with contextlib.suppress(StoreError):  # events are for those who watch; the result has all of it
                    await self._log.append(attempt.job.id, attempt.token, pieces)

    async def _collect(self) -> None:
        """See to jobs whose time is over."""
        collected = await self._log.collect()
        self.ended["expired"] += collected.expired
        await asyncio.sleep(0 if collected.more else COLLECT_S)

    # -- one job ---------------------------------------------------------------------------------------------------

    async def _work(self, attempt: Attempt) -> None:
        try:
            deadline = time.monotonic() + self._run_s
            verdict = await attempt.run(self._translator, self._config, deadline, random.random())  # noqa: S311
            await self._append(attempt)
            if verdict.what == "retry" and self._stopping:
                verdict = Verdict("release")
            await Steadily("record an end").once(lambda: self._settle(attempt, verdict))
        finally:
            del self._attempts[attempt.job.id, attempt.token]
            self._freed.set()

    async def _settle(self, attempt: Attempt, verdict: Verdict) -> None:
        """Record what becomes of the job; StoreError when that must be tried again."""
        job, token = attempt.job, attempt.token
        ended: str
        match verdict.what:
            case "succeeded" | "failed" | "cancelled" as state:
                error = verdict.packed_error
                done = await self._log.finish(job.id, token, state, result=verdict.result, error=error)
                ended = state if done else "lost"
            case "retry":
                not_before = time.time() + verdict.pause_s
                again = await self._log.retry(job.id, token, verdict.packed_error or b"{}", not_before)
                ended = "retried" if again == "queued" else again
            case "release":
                ended = "released" if await self._log.release(job.id, token) else "lost"
            case "drop":
                ended = "lost"
        self.ended[ended] += 1
        code = verdict.error.code if verdict.error else None
        _log.info("job", id=job.id, endpoint=job.endpoint, ended=ended, attempt=job.attempts, error=code)


async def _heard(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, or for so long; it is silent afterwards."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
