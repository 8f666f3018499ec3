"""How well each version serves: what became of its requests, and whether the new one is worse than the old one."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from stoker.config import RolloutConfig
from stoker.errors import Overloaded
from stoker.observability.metrics import COMPUTED
from stoker.observability.record import SERVER_ERRORS, Record
from stoker.types import Priority

CLIENT_ERRORS: Final = 400
KEPT: Final = 5000
"""Requests that are remembered of each version."""
VERSIONS: Final = 16
"""Versions that are remembered."""
WINDOW_S: Final = 300.0
"""Seconds over which a version is judged: what went well long ago must not hide what goes wrong now."""
SLOWER_BY_S: Final = 0.1
"""A first token that comes later by less than this has slowed nobody down, whatever the ratio."""
PACE_SLOWER_BY_S: Final = 0.02
"""The same for a later token."""
PACED_TOKENS: Final = 8
"""Later tokens that an answer needs for its pace to say something."""
LATENCY_SAMPLES: Final = 3
"""Times `min_requests` from which latency is judged: its 95th percentile needs more than a rate does."""


class Seen(NamedTuple):
    """One request: when it ended (monotonic), whether the server failed it, and how quick the engine was: seconds from
    the slot to the first computed token, and for each token after it.

    The time in the waiting line is not in them: a rush of users is not the version's doing.
    """

    at: float
    failed: bool
    first_token_s: float | None
    token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """The service level of a version; the rates are None where nothing was seen."""

    requests: int = 0
    failed: int = 0
    timed: int = 0
    ttft_p95: float | None = None
    paced: int = 0
    tpot_p95: float | None = None

    @property
    def error_rate(self) -> float | None:
        """Share of requests that the server failed, 0..1."""
        return self.failed / self.requests if self.requests else None


class Watch:
    """Remembers how requests ended, by the digest of the version that served them."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[Seen]] = OrderedDict()

    def see(self, record: Record) -> None:
        """A request's record was closed. Says nothing of the version: what a client gave up or asked wrongly, what a
        full line refused, and how quickly a job was done.
        """
        error, status = record.error, record.status
        failed = status >= SERVER_ERRORS or (error is not None and error.status >= SERVER_ERRORS)
        silent = record.disconnected or isinstance(error, Overloaded) or (status >= CLIENT_ERRORS and not failed)
        if record.model is None or silent:
            return
        timings, later = record.timings, record.usage.completion_tokens - 1
        timed = timings.first_token_ms >= 0 and record.cache in COMPUTED and not _is_job(record)
        paced = timed and not failed and later >= PACED_TOKENS
        self.note(
            record.model.digest,
            failed=failed,
            first_token_s=(timings.first_token_ms - max(timings.queue_ms, 0.0)) / 1000 if timed else None,
            token_s=(timings.total_ms - timings.first_token_ms) / 1000 / later if paced else None,
        )

    def note(self, digest: str, *, failed: bool, first_token_s: float | None, token_s: float | None = None) -> None:
        """A request has ended."""
        seen = self._seen.get(digest)
        if seen is None:
            seen = self._seen[digest] = deque(maxlen=KEPT)
            if len(self._seen) > VERSIONS:
                self._seen.popitem(last=False)
        self._seen.move_to_end(digest)
        seen.append(Seen(time.monotonic(), failed, first_token_s, token_s))

    def level(self, digest: str, since: float = -math.inf, until: float = math.inf) -> Level:
        """The level of a version between two instants of `time.monotonic()`."""
        return level(one for one in self._seen.get(digest, ()) if since <= one.at <= until)


def _is_job(record: Record) -> bool:
    return bool(record.requests) and record.requests[0].priority is Priority.JOB


def level(seen: Iterable[Seen]) -> Level:
    """The level that requests add up to."""
    requests = failed = 0
    firsts: list[float] = []
    paces: list[float] = []
    for one in seen:
        requests += 1
        failed += one.failed
        if one.first_token_s is not None:
            firsts.append(one.first_token_s)
        if one.token_s is not None:
            paces.append(one.token_s)
    return Level(requests, failed, len(firsts), percentile(firsts, 0.95), len(paces), percentile(paces, 0.95))


def percentile(values: list[float], share: float) -> float | None:
    """The value at or below which that share of the values lies (nearest rank); None without values."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def worse(before: Level, after: Level, limits: RolloutConfig) -> str | None:
    """Why the new version must go, in words; None while nothing speaks against it.

    Args:
        before: how the old version served, lately.
        after: how the new one does.
        limits: by how much it may be worse, and how many requests it takes to tell.
    """
    if after.requests >= limits.min_requests and after.error_rate is not None:
        bound = (before.error_rate or 0.0) + limits.error_rate
        if after.error_rate > bound:
            return (
                f"{after.failed} of {after.requests} requests failed ({after.error_rate:.1%}), more than the "
                f"{bound:.1%} that are allowed"
            )
    samples = LATENCY_SAMPLES * limits.min_requests
    if min(before.timed, after.timed) >= samples:
        slower = _slower("the first token", before.ttft_p95, after.ttft_p95, limits.latency_ratio, SLOWER_BY_S)
        if slower is not None:
            return slower
    if min(before.paced, after.paced) >= samples:
        return _slower("each later token", before.tpot_p95, after.tpot_p95, limits.latency_ratio, PACE_SLOWER_BY_S)
    return None


def _slower(what: str, before: float | None, after: float | None, ratio: float, least: float) -> str | None:
    """In words that something takes longer than it may; None when it does not."""
    if before is None or after is None or after <= max(before * ratio, before + least):
        return None
    bound = max(before * ratio, before + least)
    return (
        f"{what} takes {after * 1000:.0f} ms at the 95th percentile, more than the {bound * 1000:.0f} ms that are "
        f"allowed after {before * 1000:.0f} ms before"
    )
