"""What a load run's samples add up to: rates, percentiles and errors by kind.

Kept apart from the sending of requests, so that every figure of `stoker bench` can be checked without a server.

Percentiles are linearly interpolated between the two nearest ranks: the value at rank `q/100 * (n - 1)`, from 0
(Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996, definition 7; the default of numpy and R).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stoker.evaluation.report import percentile as interpolated


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it.

    Instants are `time.perf_counter()` seconds: `started` before the request was sent, `first` and `last` when the first
    and the last piece of the answer arrived (None when none did), `ended` when the request was over. Token counts are
    the server's own (None when it sent no usage). `error` is None for a complete answer, else the kind of failure.
    """

    started: float
    ended: float
    first: float | None = None
    last: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def total_ms(self) -> float:
        """From sending the request to the end of the answer, in milliseconds."""
        return (self.ended - self.started) * 1000

    @property
    def first_ms(self) -> float | None:
        """Time to first token, in milliseconds; None when no token came."""
        return None if self.first is None else (self.first - self.started) * 1000

    @property
    def per_token_ms(self) -> float | None:
        """Mean pause between tokens after the first, in milliseconds; None for answers of fewer than two tokens."""
        if self.first is None or self.last is None or self.completion_tokens is None or self.completion_tokens < 2:  # noqa: PLR2004 - a pause needs two tokens
            return None
        return (self.last - self.first) * 1000 / (self.completion_tokens - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one quantity, in its own unit."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Level:
    """What one level of concurrency gave.

    `wall_s` runs from the first request's start to the last one's end; rates count complete answers over it. Times are
    in milliseconds, over complete answers, None when there were none. `without_usage` complete answers came without
    token counts and are missing from `completion_tokens` and `tokens_per_s`.
    """

    clients: int
    wall_s: float
    requests: int
    succeeded: int
    requests_per_s: float
    tokens_per_s: float
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    total_ms: Spread | None
    errors: dict[str, int]
    without_usage: int

    def as_json(self) -> dict[str, Any]:
        """The level as plain JSON values."""
        return asdict(self)


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0..100) of `values`, by this module's definition.

    Raises:
        ValueError: no values, or `q` out of range.
    """
    if not 0 <= q <= 100:  # noqa: PLR2004 - percent
        raise ValueError(f"percentiles go from 0 to 100, not {q}")
    found = interpolated(values, q / 100)
    if found is None:
        raise ValueError("a percentile needs at least one value")
    return found


def spread(values: Iterable[float | None]) -> Spread | None:
    """p50, p95 and p99 of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    return Spread(*(percentile(known, q) for q in (50, 95, 99))) if known else None


def summarise(clients: int, samples: Sequence[Sample]) -> Level:
    """One level's figures from its samples; without samples, all rates are 0."""
    good = [sample for sample in samples if sample.error is None]
    wall = max(s.ended for s in samples) - min(s.started for s in samples) if samples else 0.0
    tokens = sum(sample.completion_tokens or 0 for sample in good)
    errors = Counter(sample.error for sample in samples if sample.error is not None)
    return Level(
        clients=clients,
        wall_s=wall,
        requests=len(samples),
        succeeded=len(good),
        requests_per_s=len(good) / wall if wall > 0 else 0.0,
        tokens_per_s=tokens / wall if wall > 0 else 0.0,
        prompt_tokens=sum(sample.prompt_tokens or 0 for sample in good),
        completion_tokens=tokens,
        ttft_ms=spread(sample.first_ms for sample in good),
        tpot_ms=spread(sample.per_token_ms for sample in good),
        total_ms=spread(sample.total_ms for sample in good),
        errors=dict(errors.most_common()),
        without_usage=sum(sample.completion_tokens is None for sample in good),
    )
