"""Where jobs are handed in and asked about: admits them like any request, and stores them before it says yes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson

from stoker.admission.auth import Caller, Forbidden
from stoker.config.jobs import JobsConfig
from stoker.engine.queue import retry_after
from stoker.errors import NotFound, NotReady, RequestError, StokerError
from stoker.jobs.calls import Translator
from stoker.jobs.envelope import Envelope, pack_callback
from stoker.jobs.ids import Ids
from stoker.jobs.webhooks import WebhookPolicy, check_url
from stoker.observability.record import Record
from stoker.pipeline import Asked, Pipeline
from stoker.store.jobs import (
    MAX_LISTED,
    MAX_SUBMITTED,
    STATES,
    Event,
    Idempotency,
    Job,
    JobLog,
    NewJob,
    Page,
    QueueFull,
    QueueLimits,
    State,
    Submission,
)

KEPT_HEADERS: Final = ("cache-control", "x-request-timeout")
"""Of a submission's headers, those that the answer depends on, beside the ones that choose an expert."""
MAX_KEY_CHARS: Final = 255
MAX_METADATA: Final = 16
MAX_METADATA_CHARS: Final = 512
"""Of a value; OpenAI's bounds."""
MAX_METADATA_KEY_CHARS: Final = 64
SUBMITTING_S: Final = 60.0


class IdempotencyInFlight(StokerError):
    """The first request with this key has not been answered yet."""

    status = 409
    code = "idempotency_key_in_use"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("a request with this Idempotency-Key is being answered; ask again in a moment", retry_after=1)


@dataclass(frozen=True, slots=True)
class Order:
    """A job that is wanted; times in Unix seconds."""

    endpoint: str
    body: bytes
    callback_url: str | None = None
    not_before: float | None = None
    expires_at: float | None = None
    batch: str | None = None
    custom_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class JobDesk:
    """What callers may ask about jobs.

    Args:
        log: keeps them.
        pipeline: says what may pass.
        translator: reads what is asked.
        config: bounds and times.
        policy: where callbacks may go; None where there are none.
        cancelling: told the id of a running job that was asked to end, so that its worker need not find out by itself.
    """

    def __init__(
        self,
        log: JobLog,
        pipeline: Pipeline,
        translator: Translator,
        config: JobsConfig,
        policy: WebhookPolicy | None,
        *,
        cancelling: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._pipeline = pipeline
        self._translator = translator
        self._config = config
        self._policy = policy
        self._cancelling = cancelling
        self._ids = Ids()
        self._in_flight: set[tuple[str, str]] = set()
        self._closed = False
        experts = pipeline.wayfinder.experts.values()
        routing = {expert.header.partition(":")[0].strip().lower() for expert in experts if expert.header}
        self._kept_headers = (*KEPT_HEADERS, *sorted(routing))

    def close(self) -> None:
        """Take nothing more in; all else may still be asked."""
        self._closed = True

    async def submit(
        self,
        orders: Sequence[Order],
        caller: Caller,
        headers: Mapping[str, str],
        record: Record,
        *,
        idempotency_key: str | None = None,
        said: bytes | None = None,
    ) -> Submission:
        """Accept all orders (1 to `MAX_SUBMITTED`) or none; once this returns, they are not lost.

        Args:
            orders: what is wanted.
            caller: who asks.
            headers: of the request, by lower-case names.
            record: of the request; it is the caller who closes it.
            idempotency_key: makes a repetition give the same jobs.
            said: what the key stands for, as the client sent it; by default the orders, but for when they expire.

        Raises:
            RequestError: an order that cannot be taken; AttackBlocked is one.
            RateLimited, Forbidden: as for any request.
            QueueFull: the caller, or all together, have too many queued jobs.
            IdempotencyMismatch, IdempotencyInFlight: the key is another request's, or that of one under way.
            StoreError: they could not be kept.
        """
        if self._closed:
            raise NotReady("the server is stopping; hand the job in again, or to another replica", retry_after=5)
        if not 1 <= len(orders) <= MAX_SUBMITTED:
            raise RequestError(f"{len(orders)} jobs at once; send 1 to {MAX_SUBMITTED}")
        idempotency = self._idempotency(orders, caller, idempotency_key, said)
        with self._alone(idempotency):
            deadline = time.monotonic() + SUBMITTING_S  # of no account: the answer is not made now
            calls = []
            for order in orders:
                calls.append(self._read(order, caller, headers, deadline))
                await asyncio.sleep(0)  # many orders take a while, in which others are served
            async with self._pipeline.accepted(calls, caller, headers, record) as permit:
                jobs = [self._job(order, caller, headers, record) for order in orders]
                limits = QueueLimits(self._config.per_key, self._config.total)
                try:
                    submission = await self._log.submit(jobs, limits=limits, idempotency=idempotency)
                except QueueFull as error:
                    error.retry_after = self._wait_for_room()
                    raise
                if submission.replayed:
                    await permit.settle(0)
            return submission

    async def get(self, job_id: str, caller: Caller) -> Job:
        """The whole job; NotFound when there is none, or it is another's."""
        job = await self._log.get(job_id)
        if job is None or not _may_see(caller, job):
            raise _unknown(job_id)
        return job

    async def position(self, job: Job) -> int | None:
        """How many queued jobs are due before it; None for one far back, or that does not wait."""
        return await self._log.position(job.id) if job.state == "queued" else None

    async def page(
        self,
        caller: Caller,
        *,
        states: Sequence[State] = STATES,
        batch: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
        bodies: bool = False,
    ) -> Page:
        """The caller's own jobs, or those of its batch; RequestError for a cursor or limit that is none.

        Callers without a key cannot be told apart: they know their jobs by their ids, and a list of all is Forbidden.
        """
        if caller.key_name is None and batch is None and "admin" not in caller.scopes:
            raise Forbidden("a list of jobs needs a key, for callers without one share it; ask for a job by its id")
        if not 1 <= limit <= MAX_LISTED:
            raise RequestError(f"limit: is from 1 to {MAX_LISTED}", param="limit")
        try:
            return await self._log.page(
                tenant=caller.principal.tenant,
                states=states,
                batch=batch,
                cursor=cursor,
                limit=limit,
                oldest_first=oldest_first,
                bodies=bodies,
            )
        except ValueError:
            message = "after: is no cursor of this list; use the one that the last page gave, unchanged"
            raise RequestError(message, param="after") from None

    async def cancel(self, job_id: str, caller: Caller) -> Job:
        """Cancel a queued job at once, ask a running one to end; the job after that. NotFound as `get`."""
        await self.get(job_id, caller)
        if await self._log.cancel(job_id) == "running":
            self._cancelling(job_id)
        return await self.get(job_id, caller)

    async def wait(self, job_id: str, caller: Caller, seconds: float) -> Job:
        """The job once it has ended, or as it stands after so many seconds. NotFound as `get`."""
        await self.get(job_id, caller)
        job = await self._log.wait_ended(job_id, seconds)
        if job is None:
            raise _unknown(job_id)
        return job

    def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """What a job tells from event `after` on, until it has ended; `get` says before whether the caller may hear."""
        return self._log.follow(job_id, after)

    async def batch_counts(self, batch: str) -> Mapping[State, int]:
        """How many jobs of a batch are in each state; whose batch it is, is not asked here."""
        return await self._log.batch_counts(batch)

    def _read(self, order: Order, caller: Caller, headers: Mapping[str, str], deadline: float) -> Asked:
        """What an order asks of the pipeline, once everything else about it is in order; raises RequestError."""
        if order.endpoint not in self._translator.endpoints:
            known = ", ".join(sorted(self._translator.endpoints))
            raise RequestError(
                f"endpoint: {order.endpoint[:64]!r} is none for jobs; there is: {known}", param="endpoint"
            )
        if order.callback_url is not None:
            self._check_callback(order.callback_url)
        _check_times(order, time.time())
        _check_metadata(order.metadata)
        return self._translator.read(order.endpoint, order.body, caller, headers, deadline).asked

    def _check_callback(self, url: str) -> None:
        if self._policy is None:
            raise RequestError("callback_url: this server sends no webhooks", param="callback_url")
        check_url(url, self._policy)

    def _job(self, order: Order, caller: Caller, headers: Mapping[str, str], record: Record) -> NewJob:
        kept = {name: value for name in self._kept_headers if (value := headers.get(name)) is not None}
        if record.trace is not None:
            kept |= record.trace.headers()
        envelope = Envelope(order.body, kept, order.metadata, caller.key_name, caller.models, record.address)
        begin = max(time.time(), order.not_before or 0.0)
        expires_at = begin + self._config.expires if order.expires_at is None else order.expires_at
        # The first results of a batch are wanted when its last one is there.
        longer = max(0.0, expires_at - begin) if order.batch else 0.0
        return NewJob(
            id=self._ids.next(),
            tenant=caller.principal.tenant,
            endpoint=order.endpoint,
            request=envelope.pack(),
            max_attempts=self._config.attempts,
            not_before=order.not_before,
            expires_at=expires_at,
            keep_s=self._config.keep + longer,
            batch=order.batch,
            custom_id=order.custom_id,
            callback=None if order.callback_url is None else pack_callback(order.callback_url),
        )

    def _idempotency(
        self, orders: Sequence[Order], caller: Caller, key: str | None, said: bytes | None
    ) -> Idempotency | None:
        if key is None:
            return None
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            raise RequestError(f"Idempotency-Key: has 1 to {MAX_KEY_CHARS} characters, not {len(key)}")
        fingerprint = hashlib.sha256(_told(orders) if said is None else said).hexdigest()
        return Idempotency(caller.principal.tenant, key, fingerprint, self._config.idempotency)

    @contextmanager
    def _alone(self, idempotency: Idempotency | None) -> Iterator[None]:
        """Nobody else with the same key meanwhile; other replicas are held apart by the store."""
        if idempotency is None:
            yield
            return
        place = (idempotency.scope, idempotency.key)
        if place in self._in_flight:
            raise IdempotencyInFlight
        self._in_flight.add(place)
        try:
            yield
        finally:
            self._in_flight.discard(place)

    def _wait_for_room(self) -> float:
        """Seconds after which a full queue may have a place again: about the wait in front of the engines."""
        pools = self._pipeline.wayfinder.pools.values()
        return retry_after(max((pool.expected_wait() for pool in pools), default=0.0))


def _may_see(caller: Caller, job: Job) -> bool:
    return "admin" in caller.scopes or job.tenant == caller.principal.tenant


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:64]!r}, or its result was kept for long enough and removed")


def _check_times(order: Order, now: float) -> None:
    if order.expires_at is None:
        return
    if order.expires_at <= now:
        raise RequestError("expires_in: the job would have expired already", param="expires_in")
    if order.not_before is not None and order.expires_at <= order.not_before:
        raise RequestError("not_before: the job would expire before it may start", param="not_before")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > MAX_METADATA:
        raise RequestError(f"metadata: has {len(metadata)} entries, at most {MAX_METADATA} here", param="metadata")
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_KEY_CHARS or len(value) > MAX_METADATA_CHARS:
            message = f"metadata: names have at most {MAX_METADATA_KEY_CHARS} characters, values {MAX_METADATA_CHARS}"
            raise RequestError(message, param="metadata")


def _told(orders: Sequence[Order]) -> bytes:
    """Orders as one text; without when they expire, which a client may have said as a time from now."""
    plain = [
        [
            order.endpoint,
            hashlib.sha256(order.body).hexdigest(),
            order.callback_url,
            order.not_before,
            order.batch,
            order.custom_id,
            order.metadata,
        ]
        for order in orders
    ]
    return orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
