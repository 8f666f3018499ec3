"""One attempt at a job: its request is made like any other, under a record of its own, and its end is judged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import orjson

from stoker.config.jobs import JobsConfig
from stoker.errors import DeadlineExceeded, StokerError, Unsupported
from stoker.jobs.calls import Translator
from stoker.jobs.envelope import Envelope, pack_error
from stoker.observability.logging import get_logger
from stoker.observability.record import Observer, Record
from stoker.store.jobs import EVENT_OCTETS_KEPT, EVENTS_KEPT, Claimed, Job

_log = get_logger("jobs")
SERVER_ERRORS = 500

Reason = Literal["cancelled", "lost", "stopping"]
"""Why an attempt is broken off: its owner wants it no more, another worker has it, this one stops."""


class ResultTooLarge(StokerError):
    """The answer is larger than results may be."""

    status = 413
    code = "result_too_large"
    type = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job after an attempt. `retry` has an error, and perhaps a pause in seconds before it."""

    what: Literal["succeeded", "failed", "cancelled", "retry", "release", "drop"]
    result: bytes | None = None
    error: StokerError | None = None
    pause_s: float = 0.0

    @property
    def packed_error(self) -> bytes | None:
        """The error as it is kept."""
        return None if self.error is None else pack_error(self.error)


@dataclass(slots=True)
class Telling:
    """Events that wait to be appended to the log. Bounded: the oldest go first, as they do in the log."""

    count: int = 0
    octets: int = 0
    pieces: deque[bytes] = field(default_factory=deque)

    def add(self, piece: bytes) -> None:
        """One more event."""
        self.count += 1
        self.pieces.append(piece)
        self.octets += len(piece)
        while len(self.pieces) > EVENTS_KEPT or (self.octets > EVENT_OCTETS_KEPT and len(self.pieces) > 1):
            self.octets -= len(self.pieces.popleft())

    def take(self) -> list[bytes]:
        """All of them, once."""
        taken = list(self.pieces)
        self.pieces.clear()
        self.octets = 0
        return taken


class Attempt:
    """Runs a claimed job once.

    Args:
        claimed: the job and its token.
        observer: told of the request.
        told: called after an event was added to `telling`.

    Attributes:
        telling: what the answer's stream said and nobody has been told yet.
        appending: held while events are appended, so that they stay in order.
    """

    def __init__(self, claimed: Claimed, observer: Observer, told: Callable[[], None]) -> None:
        self.job: Job = claimed.job
        self.token = claimed.token
        self.telling = Telling()
        self.appending = asyncio.Lock()
        self.work: asyncio.Task[None] | None = None
        self._observer = observer
        self._told = told
        self._making: asyncio.Task[bytes] | None = None
        self._reason: Reason | None = None
        self._record: Record | None = None
        self._last_progress = b""

    @property
    def begun(self) -> bool:
        """Whether an engine works on it, or has; or its answer comes from elsewhere."""
        timings = self._record.timings if self._record is not None else None
        return timings is not None and (timings.attempts > 0 or timings.first_token_ms >= 0)

    def end(self, reason: Reason) -> None:
        """Break it off, which frees what it holds; does nothing to one that has its answer. The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._making is not None:
                self._making.cancel()

    def news(self) -> bytes | None:
        """How far it is, as JSON for those who ask; None when nothing has changed since the last time."""
        model = self._record.model if self._record is not None else None
        said = {"events": self.telling.count, "begun": self.begun, "model": model.name if model else None}
        progress = orjson.dumps(said)
        if progress == self._last_progress:
            return None
        self._last_progress = progress
        return progress

    async def run(self, translator: Translator, config: JobsConfig, deadline: float, chance: float) -> Verdict:
        """Make the request, and say what becomes of the job.

        Args:
            translator: reads what is asked.
            config: bounds and pauses.
            deadline: a `time.monotonic()` instant by which the answer is there.
            chance: 0 <= chance < 1, random: pauses are spread between half of the backoff and all of it.
        """
        self._making = asyncio.create_task(self._make(translator, deadline), name=f"job-{self.job.id}")
        if self._reason is not None:
            self._making.cancel()
        try:
            await asyncio.wait({self._making})
        except asyncio.CancelledError:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
            self._close(Verdict("drop"))
            raise
        if self._making.cancelled():
            verdict = _broken_off(self._reason)
        elif (error := self._making.exception()) is None:
            verdict = _answered(self._making.result(), config)
        else:
            verdict = self._failed(error, config, chance)
        self._close(verdict)
        return verdict

    async def _make(self, translator: Translator, deadline: float) -> bytes:
        envelope = Envelope.unpack(self.job.request)
        headers, observer = envelope.headers, self._observer
        record = self._record = Record(
            id=self.job.id,
            route=self.job.endpoint,
            key=envelope.key,
            address=envelope.address,
            observer=observer,
            trace=observer.tracer.begin(headers.get("traceparent"), headers.get("tracestate")),
        )
        if self.job.endpoint not in translator.endpoints:
            raise Unsupported(f"{self.job.endpoint[:64]!r} is no route for jobs on this server", param="endpoint")
        call = translator.read(self.job.endpoint, envelope.body, envelope.caller, headers, deadline)
        return await call.run(record, self._tell)

    def _tell(self, piece: bytes) -> None:
        self.telling.add(piece)
        self._told()

    def _failed(self, error: BaseException, config: JobsConfig, chance: float) -> Verdict:
        if not isinstance(error, StokerError):
            _log.error("job_broke", id=self.job.id, endpoint=self.job.endpoint, exc_info=error)
            error = StokerError("an unexpected error; the server's log has more about it")
        if not _passing(error, begun=self.begun):
            return Verdict("failed", error=error)
        pause = min(config.backoff * 2.0 ** min(self.job.attempts - 1, 62), config.backoff_max) * (0.5 + chance / 2)
        return Verdict("retry", error=error, pause_s=max(pause, error.retry_after or 0.0))

    def _close(self, verdict: Verdict) -> None:
        record = self._record
        if record is None:
            return
        if verdict.error is not None:
            record.error, record.status = verdict.error, verdict.error.status
        record.disconnected = verdict.what in {"cancelled", "release", "drop"}
        record.close()


def _answered(result: bytes, config: JobsConfig) -> Verdict:
    if len(result) <= config.result_kib * 1024:
        return Verdict("succeeded", result)
    message = f"the result has {len(result)} bytes, more than the {config.result_kib} KiB that are kept; ask for less"
    return Verdict("failed", error=ResultTooLarge(message))


def _broken_off(reason: Reason | None) -> Verdict:
    if reason == "cancelled":
        return Verdict("cancelled")
    return Verdict("drop" if reason == "lost" else "release")


def _passing(error: StokerError, *, begun: bool) -> bool:
    """Whether another attempt may go better. An answer that took too long would do so again; a wait need not."""
    if isinstance(error, DeadlineExceeded):
        return not begun
    return error.status >= SERVER_ERRORS
