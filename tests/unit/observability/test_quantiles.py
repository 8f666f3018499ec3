"""Quantiles that Prometheus computes from the buckets lie near the samples' own, as docs/metrics.md says."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stoker.observability.families import HistogramFamily
from stoker.observability.metrics import Metrics
from stoker.types import Usage

MEDIANS = np.geomspace(0.005, 5, 25)
SAMPLES = 20_000


def histogram_quantile(quantile: float, family: HistogramFamily, values: np.ndarray) -> float:
    """As Prometheus's function of that name: linear within the bucket in which the rank lies."""
    one = HistogramFamily(family.name, ["a"], family.text, family.bounds)
    child = one.labels("a")
    for value in values.tolist():
        child.observe(value)
    (read,) = text_string_to_metric_families("".join(one.render()))
    buckets = [(float(s.labels["le"]), s.value) for s in read.samples if s.name.endswith("_bucket")]
    rank = quantile * buckets[-1][1]
    place = next(number for number, (_, below) in enumerate(buckets) if below >= rank)
    (low, before), (high, below) = buckets[place - 1] if place else (0.0, 0.0), buckets[place]
    return low + (high - low) * (rank - before) / (below - before)


def worst(family: HistogramFamily, sigma: float, hits: float = 0.0) -> float:
    """The largest relative error of the 95th percentile over medians; a share of `hits` are answers from the cache."""
    rng = np.random.default_rng(7)
    errors = []
    for median in MEDIANS:
        values = rng.lognormal(np.log(median), sigma, SAMPLES)
        cached = rng.random(SAMPLES) < hits
        values[cached] = rng.lognormal(np.log(0.002), 0.5, cached.sum())
        errors.append(abs(histogram_quantile(0.95, family, values) / np.quantile(values, 0.95) - 1))
    return max(errors)


@pytest.mark.parametrize(
    ("sigma", "hits", "most"),
    [(0.05, 0, 0.17), (0.2, 0, 0.08), (0.5, 0, 0.035), (1.2, 0, 0.035), (0.5, 0.3, 0.035), (0.2, 0.6, 0.08)],
)
def test_times_to_the_first_token(sigma: float, hits: float, most: float) -> None:
    assert worst(Metrics().first_token_times, sigma, hits) < most


@pytest.mark.parametrize(("sigma", "most"), [(0.2, 0.25), (0.5, 0.14)])
def test_durations(sigma: float, most: float) -> None:
    assert worst(Metrics().durations, sigma) < most


def test_buckets_reach_from_a_millisecond_to_minutes() -> None:
    metrics = Metrics()
    for family in (metrics.first_token_times, metrics.durations, metrics.queue_times):
        assert family.bounds[0] == 0.001
        assert family.bounds[-1] == 630
    assert metrics.per_token_times.bounds[0] == 0.0001
    assert metrics.per_token_times.bounds[-1] == 63


def test_the_time_per_token_is_of_those_after_the_first() -> None:
    metrics = Metrics()
    about = {"route": "/query", "model": "m", "expert": None, "reason": "named", "status": 200, "cache": "miss"}
    metrics.note_request(**about, error="", seconds=3.0, queue=0.5, first_token=1.0, usage=Usage(10, 5))
    child = metrics.per_token_times.labels("chat", "m")
    assert child.total == pytest.approx((3.0 - 1.0) / 4)
    assert sum(child.counts) == 1
