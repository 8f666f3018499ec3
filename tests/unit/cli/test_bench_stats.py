"""The arithmetic of a load run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.cli.loadstats import Sample, percentile, spread, summarise

finite = st.floats(min_value=-1e6, max_value=1e6)


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([4.0, 1.0, 3.0, 2.0], 75, 3.25),
        ([1.0, 5.0], 0, 1.0),
        ([1.0, 5.0], 100, 5.0),
    ],
)
def test_percentiles_interpolate_between_ranks(values, q, expected):
    assert percentile(values, q) == pytest.approx(expected)


@given(st.lists(finite, min_size=1), st.floats(min_value=0, max_value=100))
def test_a_percentile_lies_within_its_values(values, q):
    assert min(values) - 1e-6 <= percentile(values, q) <= max(values) + 1e-6


@given(st.lists(finite, min_size=1))
def test_percentiles_rise(values):
    found = spread(values)
    assert found is not None
    assert found.p50 <= found.p95 + 1e-6
    assert found.p95 <= found.p99 + 1e-6


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_percentiles_refuse_nonsense(values, q):
    with pytest.raises(ValueError):
        percentile(values, q)


def test_unknown_values_do_not_count():
    assert spread([None, None]) is None
    found = spread([None, 3.0])
    assert found is not None
    assert found.p50 == 3.0


def test_times_of_a_sample():
    sample = Sample(started=10.0, first=10.5, last=11.5, ended=12.0, completion_tokens=5)
    assert sample.first_ms == pytest.approx(500)
    assert sample.total_ms == pytest.approx(2000)
    assert sample.per_token_ms == pytest.approx(250), "1 s between five tokens has four pauses"


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_no_time_per_token_without_two_tokens(tokens):
    assert Sample(started=0.0, first=0.1, last=0.2, ended=0.2, completion_tokens=tokens).per_token_ms is None


def test_rates_count_complete_answers_over_the_whole_time():
    level = summarise(
        2,
        [
            Sample(started=0.0, first=0.1, last=1.0, ended=1.0, prompt_tokens=7, completion_tokens=10),
            Sample(started=0.5, first=0.7, last=4.0, ended=4.0, prompt_tokens=7, completion_tokens=30),
            Sample(started=1.0, ended=2.0, first=1.5, completion_tokens=99, error="timeout"),
            Sample(started=1.0, ended=2.0, error="timeout"),
            Sample(started=1.0, ended=2.0, first=1.1, last=1.2),
        ],
    )
    assert (level.requests, level.succeeded, level.without_usage) == (5, 3, 1)
    assert level.requests_per_s == pytest.approx(0.75)
    assert level.tokens_per_s == pytest.approx(10)
    assert level.prompt_tokens == 14
    assert level.errors == {"timeout": 2}
    assert level.as_json()["total_ms"]["p50"] == pytest.approx(1000)


def test_a_level_without_samples_is_all_zero():
    level = summarise(4, [])
    assert level.tokens_per_s == 0
    assert level.ttft_ms is None
