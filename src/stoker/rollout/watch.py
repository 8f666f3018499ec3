"""How well each version serves: what became of its requests, and whether the new one is worse than the old one."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from stoker.config import RolloutConfig
from stoker.observability.metrics import COMPUTED
from stoker.observability.record import SERVER_ERRORS, Record
from stoker.types import Priority

KEPT: Final = 5000
"""Requests that are remembered of each version."""
VERSIONS: Final = 16
"""Versions that are remembered."""
WINDOW_S: Final = 300.0
"""Seconds over which a version is judged: what went well long ago must not hide what goes wrong now."""
SLOWER_BY_S: Final = 0.1
"""A first token that comes later by less than this has slowed nobody down, whatever the ratio."""
LATENCY_SAMPLES: Final = 3
"""Times `min_requests` from which latency is judged: its 95th percentile needs more than a rate does."""


class Seen(NamedTuple):
    """One request: when it ended (monotonic), whether the server failed it, seconds to its first computed token."""

    at: float
    failed: bool
    first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """The service level of a version; the rates are None where nothing was seen."""

    requests: int = 0
    failed: int = 0
    timed: int = 0
    ttft_p95: float | None = None

    @property
    def error_rate(self) -> float | None:
        """Share of requests that the server failed, 0..1."""
        return self.failed / self.requests if self.requests else None


class Watch:
    """Remembers how requests ended, by the digest of the version that served them."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[Seen]] = OrderedDict()

    def see(self, record: Record) -> None:
        """A request's record was closed. What a client gave up says nothing; a job's time is not a user's."""
        if record.model is None or record.disconnected:
            return
        error = record.error
        failed = record.status >= SERVER_ERRORS or (error is not None and error.status >= SERVER_ERRORS)
        first = record.timings.first_token_ms
        timed = first >= 0 and record.cache in COMPUTED and not _is_job(record)
        self.note(record.model.digest, failed=failed, first_token_s=first / 1000 if timed else None)

    def note(self, digest: str, *, failed: bool, first_token_s: float | None) -> None:
        """A request has ended."""
        seen = self._seen.get(digest)
        if seen is None:
            seen = self._seen[digest] = deque(maxlen=KEPT)
            if len(self._seen) > VERSIONS:
                self._seen.popitem(last=False)
        self._seen.move_to_end(digest)
        seen.append(Seen(time.monotonic(), failed, first_token_s))

    def level(self, digest: str, since: float = -math.inf, until: float = math.inf) -> Level:
        """The level of a version between two instants of `time.monotonic()`."""
        return level(one for one in self._seen.get(digest, ()) if since <= one.at <= until)


def _is_job(record: Record) -> bool:
    return bool(record.requests) and record.requests[0].priority is Priority.JOB


def level(seen: Iterable[Seen]) -> Level:
    """The level that requests add up to."""
    requests = failed = 0
    times = []
    for one in seen:
        requests += 1
        failed += one.failed
        if one.first_token_s is not None:
            times.append(one.first_token_s)
    return Level(requests, failed, len(times), percentile(times, 0.95))


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
    if after.ttft_p95 is None or before.ttft_p95 is None or min(after.timed, before.timed) < samples:
        return None
    bound = max(before.ttft_p95 * limits.latency_ratio, before.ttft_p95 + SLOWER_BY_S)
    if after.ttft_p95 > bound:
        return (
            f"the first token takes {after.ttft_p95 * 1000:.0f} ms at the 95th percentile, more than the "
            f"{bound * 1000:.0f} ms that are allowed after {before.ttft_p95 * 1000:.0f} ms before"
        )
    return None
