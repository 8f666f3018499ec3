"""The job log: what it holds, and what the rest of Stoker may ask of it, whichever adapter keeps it.

A job is queued, claimed by a worker under a lease, and ends exactly once. A worker proves its claim by a token; one
whose lease ended may find the job claimed by another, and its token refused. So work is done at least once, and one
result is recorded.

The queue is fair: tenants that have due jobs take turns, and within a tenant the job that is due longest comes first. A
tenant keeps its place in the round until its turn comes. A job that goes back into the queue keeps its place there,
unless it was told to wait.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, Protocol

from stoker.errors import StokerError

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
EndState = Literal["succeeded", "failed", "cancelled"]
STATES: Final[tuple[State, ...]] = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
ENDED: Final[frozenset[State]] = frozenset({"succeeded", "failed", "cancelled", "expired"})

MAX_SUBMITTED: Final = 1000
"""Jobs of one submission."""
MAX_CLAIMED: Final = 256
"""Jobs of one claim."""
MAX_LISTED: Final = 1000
"""Jobs of one page."""
POSITIONS: Final = 1000
"""How far back in the queue a position is counted."""
EVENTS_KEPT: Final = 4096
EVENT_OCTETS_KEPT: Final = 1 << 20
"""Events of one job that are kept, by number and by bytes: the oldest go first."""
KEEP_S: Final = 86_400.0
WORKER_LOST: Final = (
    b'{"code":"worker_lost","message":"every worker that took the job died or lost it; none finished it"}'
)
"""Error of a job whose lease ended as often as it may be tried."""


class QueueFull(StokerError):
    """Nothing was submitted: the tenant, or all together, have as many queued jobs as they may."""

    status = 429
    code = "queue_full"
    type = "rate_limit_error"

    def __init__(self, scope: Literal["tenant", "total"], limit: int) -> None:
        whose = "this caller has" if scope == "tenant" else "the server has"
        super().__init__(f"{whose} at most {limit} queued jobs at once; wait until some of them have started")
        self.scope = scope
        self.limit = limit


class IdempotencyMismatch(StokerError):
    """The key was used for another request."""

    status = 422
    code = "idempotency_key_reused"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("Idempotency-Key was used with another request; use a new key for each request")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted.

    `id` is chosen by the caller, unique, and sorts by time, as `uuid7` in hexadecimal does: lists are ordered by it.
    `tenant` owns the job. `request` and `callback` (where to send the result) are opaque. It is not started before
    `not_before`, and expires when it is still queued at `expires_at`, both in Unix seconds. `max_attempts` >= 1. It is
    removed `keep_s` seconds after its end. `batch` names a set of jobs of one tenant, `custom_id` the job within it.
    """

    id: str
    tenant: str
    endpoint: str
    request: bytes
    max_attempts: int = 3
    not_before: float | None = None
    expires_at: float | None = None
    keep_s: float = KEEP_S
    batch: str | None = None
    custom_id: str | None = None
    callback: bytes | None = None


@dataclass(frozen=True, slots=True)
class Job(NewJob):
    """A job as it stands; times in Unix seconds.

    `attempts` counts claims, without those given back. `started` is the latest claim. `error` of a queued job is that
    of its last attempt. `cancelling` says that a running job was asked to end. `progress` is what its worker last said.
    `deliveries` is what was last noted about its callback. `request`, `result` and `error` are left out of lists
    (`b""`, None, None) unless they are asked for.
    """

    state: State = "queued"
    created: float = 0.0
    attempts: int = 0
    started: float | None = None
    finished: float | None = None
    result: bytes | None = None
    error: bytes | None = None
    cancelling: bool = False
    progress: bytes | None = None
    worker: str | None = None
    deliveries: bytes | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """`key` is the caller's own within `scope` for `ttl` seconds; `fingerprint` tells requests apart."""

    scope: str
    key: str
    fingerprint: str
    ttl: float = 86_400.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many jobs may be queued at once. Jobs that come back into the queue are let in all the same."""

    per_tenant: int
    total: int


@dataclass(frozen=True, slots=True)
class Submission:
    """`jobs` as they are stored; `replayed` when an idempotency key was met again: those then, as they stand now.

    A replayed submission has only the jobs that are still kept.
    """

    jobs: tuple[Job, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job to run now, and the token that proves the claim."""

    job: Job
    token: str


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life for a claimed job; `progress` of at most a few kilobytes, None to leave it as it is."""

    id: str
    token: str
    progress: bytes | None = None


Held = Literal["held", "cancelled", "lost"]
"""What a beat learns: go on; end, for the job was cancelled; drop it, for another has it or it has ended."""
Retried = Literal["queued", "failed", "cancelled", "lost"]


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs of a list, and the cursor of the next page; None after the last."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """`number` counts a job's events from 1; `attempt` tells which one said it, for a new one begins anew."""

    number: int
    attempt: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collecting did: ended jobs removed, queued ones expired, lost ones taken from dead workers.

    `more` when there is more to do at once.
    """

    removed: int
    expired: int
    taken_back: int
    more: bool


class JobLog(Protocol):
    """A durable log of jobs. Every operation is atomic, bounded in time, and raises StoreError when the store fails.

    A StoreError of a submission means that it was not acknowledged; where the store was too slow it may have been
    kept nevertheless, and the same submission may be repeated: jobs whose ids are there already are left as they are.

    `now` stands in for the store's own clock, in Unix seconds, for tests. All else goes by that clock, by which all
    replicas agree: this host's for SQLite, the server's for Redis.
    """

    @property
    def description(self) -> str:
        """Where the log is kept, for people, without credentials."""
        ...

    async def submit(
        self,
        jobs: Sequence[NewJob],
        *,
        limits: QueueLimits,
        idempotency: Idempotency | None = None,
        now: float | None = None,
    ) -> Submission:
        """Queue all jobs (1 to `MAX_SUBMITTED`) or none, durably; raises QueueFull and IdempotencyMismatch."""
        ...

    async def claim(self, worker: str, lease_s: float, most: int, now: float | None = None) -> list[Claimed]:
        """Start up to `most` (1 to `MAX_CLAIMED`) due jobs under a lease of `lease_s` seconds.

        Before that, jobs whose lease ended are queued again, or fail when they were tried as often as they may be, and
        queued ones whose time is over expire.
        """
        ...

    async def heartbeat(self, beats: Sequence[Beat], lease_s: float, now: float | None = None) -> list[Held]:
        """Renew leases, and learn for each whether to go on."""
        ...

    async def finish(
        self,
        job_id: str,
        token: str,
        state: EndState,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
        now: float | None = None,
    ) -> bool:
        """Record the end of a running job; False, and nothing recorded, when the token is stale or it has ended."""
        ...

    async def retry(
        self, job_id: str, token: str, error: bytes, not_before: float | None = None, now: float | None = None
    ) -> Retried:
        """Queue a job whose attempt failed again, or end it: failed after its last attempt, or cancelled if asked."""
        ...

    async def release(self, job_id: str, token: str, now: float | None = None) -> bool:
        """Give a job back as if it had not been claimed; False when the token is stale. A cancelled one ends."""
        ...

    async def cancel(self, job_id: str, now: float | None = None) -> State | None:
        """Cancel a queued job at once; ask a running one to end. The state after that, None when there is no such."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """The whole job, or None."""
        ...

    async def position(self, job_id: str) -> int | None:
        """How many queued jobs are due before it; None for more than `POSITIONS`, or when it is not queued."""
        ...

    async def page(
        self,
        *,
        tenant: str | None = None,
        states: Sequence[State] = STATES,
        batch: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
        bodies: bool = False,
    ) -> Page:
        """Jobs by id, newest first, at most `limit` (1 to `MAX_LISTED`); ValueError when the cursor is none of ours."""
        ...

    async def counts(self, tenant: str | None = None) -> Mapping[State, int]:
        """How many jobs of a tenant, or of all, are kept in each state."""
        ...

    async def batch_counts(self, batch: str) -> Mapping[State, int]:
        """How many jobs of a batch are kept in each state."""
        ...

    async def oldest_due_s(self, now: float | None = None) -> float:
        """For how many seconds the oldest due job has waited; 0 when none is due."""
        ...

    async def wait_work(self, timeout_s: float) -> bool:
        """Wait until `claim` may find a job; False when the time passed instead."""
        ...

    async def wait_ended(self, job_id: str, timeout_s: float) -> Job | None:
        """The job once it has ended, or as it stands when the time has passed; None when there is no such."""
        ...

    async def append(self, job_id: str, token: str, data: Sequence[bytes]) -> bool:
        """Tell those who follow a running job; False when the token is stale. Events are not durable."""
        ...

    def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events that are kept and numbered above `after`, then those to come, until the job has ended."""
        ...

    async def due_callbacks(self, lease_s: float, most: int, now: float | None = None) -> list[Job]:
        """Ended jobs whose callback is due, oldest first, each hidden from the next asking for `lease_s` seconds."""
        ...

    async def settle_callback(self, job_id: str, deliveries: bytes, again_at: float | None = None) -> None:
        """Note what became of a delivery, and when to try again; None for never."""
        ...

    async def wait_callbacks(self, timeout_s: float) -> bool:
        """Wait until a callback may be due; False when the time passed instead."""
        ...

    async def collect(self, now: float | None = None) -> Collected:
        """Remove ended jobs and idempotency keys whose time is over, a bounded number, and see to lost ones."""
        ...

    async def ping(self) -> None:
        """Raise StoreError unless the store takes a write."""
        ...

    async def warnings(self) -> Sequence[str]:
        """What about the store endangers what it has acknowledged, for the operator; empty when nothing does."""
        ...

    async def close(self) -> None:
        """Finish what was begun and free what the log holds open."""
        ...


def encode_cursor(job_id: str) -> str:
    """The cursor of the page after this job."""
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """The job after which a page begins; ValueError when the cursor is none of ours."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("not a cursor of this list") from None


def as_stored(job: NewJob, created: float) -> Job:
    """A new job as it stands once it is queued."""
    return Job(**{field.name: getattr(job, field.name) for field in fields(job)}, created=created)


def check_submission(jobs: Sequence[NewJob]) -> None:
    """Raise ValueError for a submission that no log takes."""
    if not 1 <= len(jobs) <= MAX_SUBMITTED:
        raise ValueError(f"a submission has 1 to {MAX_SUBMITTED} jobs, not {len(jobs)}")
    if len({job.id for job in jobs}) != len(jobs):
        raise ValueError("two jobs of a submission have the same id")
    if any(job.max_attempts < 1 or job.keep_s < 0 or job.batch == "" for job in jobs):
        raise ValueError("max_attempts is at least 1, keep_s at least 0, and a batch has a name")


def check_claim(most: int) -> None:
    """Raise ValueError for a claim that no log takes."""
    if not 1 <= most <= MAX_CLAIMED:
        raise ValueError(f"a claim is of 1 to {MAX_CLAIMED} jobs, not {most}")


def check_list(limit: int) -> None:
    """Raise ValueError for a page that no log gives."""
    if not 1 <= limit <= MAX_LISTED:
        raise ValueError(f"a page has 1 to {MAX_LISTED} jobs, not {limit}")
