"""How well pods serve, from their metrics: what was counted between two looks, as levels that can be compared. Pure."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from stoker.config import RolloutConfig
from stoker.observability.metrics import COMPUTED
from stoker.rollout.watch import LATENCY_SAMPLES, WINDOW_S, Level, worse

REQUESTS: Final = "stoker_requests_total"
ENDS: Final = "gen_ai_server_request_duration_seconds_count"
BUCKETS: Final = "gen_ai_server_time_to_first_token_seconds_bucket"
FAILED: Final = frozenset(
    {
        "internal_error",
        "overloaded",
        "not_ready",
        "engine_died",
        "engine_error",
        "deadline_exceeded",
        "store_down",
        "storage_full",
    }
)
"""`error_type` of requests that failed through the server's fault, streams that broke included; as in the alerts."""
LEFT: Final = "499"
"""Status of requests whose client left, which says nothing about the version."""
_LINE: Final = re.compile(r"(\w+)\{(.*)\} (\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pod has counted since it started: ended and failed requests, times to a computed first token.

    `buckets` is cumulative, by its upper bound in seconds.
    """

    requests: float = 0.0
    failed: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)

    def since(self, before: Counts) -> Counts:
        """What was counted since; everything where the pod has started anew in between."""
        if self.requests < before.requests or self.failed < before.failed:
            return self
        buckets = {bound: count - before.buckets.get(bound, 0.0) for bound, count in self.buckets.items()}
        return Counts(self.requests - before.requests, self.failed - before.failed, buckets)

    def plus(self, another: Counts) -> Counts:
        """Both together."""
        bounds = {*self.buckets, *another.buckets}
        buckets = {bound: self.buckets.get(bound, 0.0) + another.buckets.get(bound, 0.0) for bound in bounds}
        return Counts(self.requests + another.requests, self.failed + another.failed, buckets)

    @property
    def level(self) -> Level:
        """The service level that they add up to."""
        timed = round(self.buckets.get(math.inf, 0.0))
        return Level(round(self.requests), round(self.failed), timed, quantile(self.buckets, 0.95))


Sample = Mapping[str, Counts]
"""What each pod of a slot has counted, by its name."""


def counts_of(text: str) -> Counts:
    """What a pod's metrics say, in Prometheus's text format. Lines of other series are passed over."""
    requests = failed = 0.0
    buckets: dict[float, float] = {}
    for line in text.splitlines():
        if not line.startswith((REQUESTS, ENDS, BUCKETS)) or (found := _LINE.match(line)) is None:
            continue
        labels = dict(_LABEL.findall(found[2]))
        value = float(found[3])
        if found[1] == REQUESTS and labels.get("status") != LEFT:
            requests += value
        elif found[1] == ENDS and labels.get("error_type") in FAILED:
            failed += value
        elif found[1] == BUCKETS and labels.get("cache") in COMPUTED:
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    return Counts(requests, failed, buckets)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which that share of a cumulative histogram lies; inside a bucket by a straight line.

    None where nothing was counted; above the last finite bound that bound.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    below = start = 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count >= share * total and count > below:
            if math.isinf(bound):
                return start
            return start + (bound - start) * (share * total - below) / (count - below)
        below, start = count, bound
    return start


def between(before: Sample, after: Sample) -> Level:
    """The level of a slot between two looks, over the pods that are there at the second."""
    return total(counts.since(before.get(pod, Counts())) for pod, counts in after.items())


def total(counts: Iterable[Counts]) -> Level:
    """The level that counts add up to."""
    added = Counts()
    for one in counts:
        added = added.plus(one)
    return added.level


class Looks:
    """Looks at the pods of one slot, of which those of the last five minutes count."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Sample]] = deque()

    def add(self, at: float, sample: Sample) -> None:
        """What was seen at an instant (Unix seconds). Pods that did not answer keep what they said last."""
        if self._kept:
            sample = {**{pod: seen for pod, seen in self._kept[-1][1].items() if pod in sample}, **sample}
        self._kept.append((at, sample))
        while len(self._kept) > 2 and self._kept[1][0] <= at - WINDOW_S:  # noqa: PLR2004
            self._kept.popleft()

    @property
    def level(self) -> Level:
        """Between the first and the last look that count."""
        return between(self._kept[0][1], self._kept[-1][1]) if self._kept else Level()

    @property
    def whole(self) -> Level:
        """Since the pods started."""
        return total(self._kept[-1][1].values()) if self._kept else Level()


def baseline(looks: Looks, limits: RolloutConfig) -> Level:
    """How the old version served before the switch: lately, or since its pods started where that was too little."""
    lately = looks.level
    return lately if lately.timed >= LATENCY_SAMPLES * limits.min_requests else looks.whole


def judged(before: Level | None, after: Level, limits: RolloutConfig) -> str | None:
    """Why the new version must go, in words, by the rules of rollouts; None while nothing speaks against it."""
    return worse(before or Level(), after, limits)


def level_document(level: Level) -> dict[str, float | int | None]:
    """A level as it is kept in the release's values."""
    return {"requests": level.requests, "failed": level.failed, "timed": level.timed, "ttft_p95": level.ttft_p95}


def level_of(document: Mapping[str, float | int | None] | None) -> Level | None:
    """A level as it was kept."""
    if not document:
        return None
    p95 = document.get("ttft_p95")
    requests, failed, timed = (int(document.get(name) or 0) for name in ("requests", "failed", "timed"))
    return Level(requests, failed, timed, None if p95 is None else float(p95))
