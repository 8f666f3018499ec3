"""When the next attempt is due, what an answer means, and the delivery log."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.jobs.webhooks import (
    LOG_ATTEMPTS,
    Attempt,
    Delivery,
    WebhookPolicy,
    judge,
    logged,
    next_attempt,
    read_retry_after,
)

NOW = 1_700_000_000.0
POLICY = WebhookPolicy((b"k" * 32,), 6, 2.0, 60.0, 5.0, allow_private=False)
FAILED = Delivery("failed", 500, "the receiver answered 500", 0.1)


def test_pauses_double_up_to_the_longest_and_then_end() -> None:
    times = [next_attempt(POLICY, made, FAILED, NOW, 0.9999999) for made in range(1, 7)]
    assert [round(at - NOW, 3) for at in times[:5]] == [2, 4, 8, 16, 32]
    assert times[5] is None
    patient = WebhookPolicy((), 100, 2.0, 60.0, 5.0, allow_private=False)
    assert round(next_attempt(patient, 99, FAILED, NOW, 0.9999999) - NOW, 3) == 60


def test_chance_spreads_a_pause_over_its_upper_half() -> None:
    assert next_attempt(POLICY, 2, FAILED, NOW, 0.0) - NOW == 2
    assert next_attempt(POLICY, 2, FAILED, NOW, 0.5) - NOW == 3


@given(
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.floats(0, 1e12),
    st.floats(0.001, 1e6),
    st.floats(0.001, 1e6),
)
def test_a_pause_is_never_longer_than_the_longest(
    made: int, chance: float, asked: float | None, backoff: float, longest: float
) -> None:
    policy = WebhookPolicy((), 10_001, backoff, longest, 5.0, allow_private=False)
    due = next_attempt(policy, made, Delivery("failed", 503, "", 0.1, asked), 0.0, chance)
    assert due is not None
    assert math.isfinite(due)
    assert 0 < due <= longest


@pytest.mark.parametrize("outcome", ["delivered", "gone"])
def test_what_is_delivered_or_unwanted_is_not_sent_again(outcome: str) -> None:
    assert next_attempt(POLICY, 1, Delivery(outcome, 200, None, 0.1), NOW, 0.5) is None


def test_what_the_rules_refused_is_tried_again_for_names_and_rules_change() -> None:
    assert next_attempt(POLICY, 1, Delivery("refused", None, "no", 0.1), NOW, 0.5) is not None


def test_retry_after_counts_where_it_is_longer_and_is_bounded() -> None:
    def due(asked: float) -> float:
        at = next_attempt(POLICY, 1, Delivery("failed", 429, "", 0.1, asked), NOW, 0.0)
        assert at is not None
        return at - NOW

    assert due(0) == 1
    assert due(30) == 30
    assert due(1e9) == 60


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success(status: int) -> None:
    assert judge(status, None, NOW) == Delivery("delivered", status, None)


def test_gone() -> None:
    assert judge(410, "5", NOW).outcome == "gone"
    assert judge(410, "5", NOW).retry_after is None


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 408, 409, 418, 429, 500, 502, 503, 504, 599])
def test_everything_else_is_tried_again(status: int) -> None:
    verdict = judge(status, "7", NOW)
    assert verdict.outcome == "failed"
    assert str(status) in (verdict.error or "")
    assert verdict.retry_after == (7.0 if status in {429, 503} else None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 5000, None),
        ("١٢", None),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 99999999 22:14:20 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert read_retry_after(value, NOW) == seconds


@given(st.text(max_size=80))
def test_any_retry_after_is_survived(value: str) -> None:
    seconds = read_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


def test_the_log_counts_on_and_is_bounded() -> None:
    log: tuple[Attempt, ...] = ()
    for number in range(LOG_ATTEMPTS + 5):
        log = logged(log, FAILED, NOW + number)
    assert len(log) == LOG_ATTEMPTS
    assert [entry.attempt for entry in log] == list(range(6, LOG_ATTEMPTS + 6))
    assert log[-1] == Attempt(LOG_ATTEMPTS + 5, NOW + LOG_ATTEMPTS + 4, 500, "the receiver answered 500", 0.1)
