"""Our counters and histograms say what prometheus_client's would, within their bounds, from several threads."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stoker.observability.families import CounterFamily, HistogramFamily, number, renard

BOUNDS = (0.001, 0.25, 1.0, 60.0)
LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)
HELP = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12).map(lambda text: f"x{text}x")
AMOUNTS = st.floats(allow_nan=False, min_value=-1e12) | st.sampled_from(BOUNDS)


def parsed(text: str) -> dict[str, Any]:
    """Each family of an exposition: type, help and samples; without when it began, which ours do not tell."""
    return {
        family.name: (
            family.type,
            family.documentation,
            {(s.name, *sorted(s.labels.items())): (repr(float(s.value)), s.timestamp) for s in family.samples},
        )
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def text_of(*families: CounterFamily | HistogramFamily) -> str:
    return "".join(piece for family in families for piece in family.render())


@settings(deadline=None)
@given(
    text=HELP,
    counts=st.lists(st.tuples(LABELS, LABELS, st.integers(0, 10**14)), max_size=6),
    times=st.lists(st.tuples(LABELS, AMOUNTS), max_size=12),
)
def test_the_text_says_what_the_library_would(
    text: str, counts: Iterable[tuple[str, str, int]], times: Iterable[tuple[str, float]]
) -> None:
    registry = CollectorRegistry()
    counter = Counter("c", text, ["one", "two"], registry=registry)
    histogram = Histogram("h_seconds", text, ["model"], buckets=BOUNDS, registry=registry)
    ours = CounterFamily("c_total", ["one", "two"], text), HistogramFamily("h_seconds", ["model"], text, BOUNDS)
    for one, two, amount in counts:
        counter.labels(one, two).inc(amount)
        ours[0].labels(one, two).inc(amount)
    for model, value in times:
        histogram.labels(model).observe(value)
        ours[1].labels(model).observe(value)
    assert parsed(text_of(*ours)) == parsed(generate_latest(registry).decode())


@pytest.mark.parametrize("value", ["100% %d %s %%", 'say "x"', "back\\slash", "two\nlines", "naïve ✓", ""])
def test_label_values_survive(value: str) -> None:
    family = HistogramFamily("h", ["label"], "x", BOUNDS)
    family.labels(value).observe(0.5)
    (read,) = text_string_to_metric_families(text_of(family))
    assert {sample.labels["label"] for sample in read.samples} == {value}
    assert [sample.value for sample in read.samples] == [0, 0, 1, 1, 1, 0.5, 1]


@settings(deadline=None)
@given(st.floats())
def test_numbers_are_read_back(value: float) -> None:
    text = number(value)
    assert repr(float(text)) == repr(value) or math.isnan(value)
    assert text in {"+Inf", "-Inf", "NaN"} if not math.isfinite(value) else text[-1].isdigit()


@pytest.mark.parametrize(
    "family", [CounterFamily("c_total", ["a", "b"], "x", most=3), HistogramFamily("h", ["a", "b"], "x", BOUNDS, most=3)]
)
def test_what_comes_beyond_the_bound_is_counted_under_other(family: CounterFamily | HistogramFamily) -> None:
    for value in range(100):
        child = family.labels(str(value), "y")
        child.inc() if isinstance(family, CounterFamily) else child.observe(1)
    (read,) = text_string_to_metric_families(text_of(family))
    count = "c_total" if isinstance(family, CounterFamily) else "h_count"
    counted = {(s.labels["a"], s.labels["b"]): s.value for s in read.samples if s.name == count}
    assert counted == {("0", "y"): 1, ("1", "y"): 1, ("2", "y"): 1, ("other", "other"): 97}
    assert family.labels("50", "y") is family.labels("60", "y")


def test_too_few_or_too_many_labels_are_a_mistake() -> None:
    family = CounterFamily("c_total", ["a", "b"], "x")
    for values in [(), ("1",), ("1", "2", "3")]:
        with pytest.raises(ValueError, match="c_total"):
            family.labels(*values)
    assert text_of(family).count("\n") == 2


def test_reading_while_others_count_loses_and_invents_nothing() -> None:
    counter = CounterFamily("c_total", ["worker"], "x")
    histogram = HistogramFamily("h", ["worker"], "x", BOUNDS)
    rounds, workers = 3000, 3

    def work(name: str) -> None:
        for turn in range(rounds):
            counter.labels("all").inc()
            counter.labels(f"{name} {turn % 200}").inc()
            histogram.labels("all").observe((0.0005, 0.5, 100)[turn % 3])

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(workers)]
    for thread in threads:
        thread.start()
    seen = 0.0
    busy = True
    while busy:
        busy = any(thread.is_alive() for thread in threads)
        (read,) = text_string_to_metric_families(text_of(histogram))
        values = [s.value for s in read.samples if s.name != "h_sum"]
        assert values == sorted(values)  # buckets, of which the last is the count
        assert not values or values[-1] == values[-2]
        assert not values or values[-1] >= seen
        seen = values[-1] if values else 0.0
        text_of(counter)
    assert seen == rounds * workers
    assert counter.labels("all").value == rounds * workers
    assert sum(counter.labels(f"{n} {turn}").value for n in range(workers) for turn in range(200)) == rounds * workers


def test_bounds_follow_the_renard_series() -> None:
    assert renard(5, 0.001, 0.01) == (0.001, 0.0016, 0.0025, 0.004, 0.0063, 0.01)
    assert renard(10, 1, 10) == (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8, 10)
    bounds = renard(10, 0.0001, 630)
    assert bounds[0] == 0.0001
    assert bounds[-1] == 630
    assert all(1.2 < upper / lower < 1.3 for lower, upper in itertools.pairwise(bounds))
