"""Which snapshots stay: each rule by example, with its reasons."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from stoker.backup.retention import Dated, EmptyPolicy, decide
from stoker.config.keeping import RetentionConfig
from stoker.errors import OperatorError

NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)


def ago(id_: str, *, days: float = 0, hours: float = 0, **others) -> Dated:
    return Dated(id_, (NOW - timedelta(days=days, hours=hours)).timestamp(), **others)


def at(moment: str, **others) -> Dated:
    return Dated(moment, datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp(), **others)


def decided(snapshots, **policy):
    return decide(snapshots, RetentionConfig(**policy), NOW.timestamp())


def kept(snapshots, **policy) -> set[str]:
    return set(decided(snapshots, **policy).keep)


def test_last_keeps_the_newest_and_says_which_places_they_took():
    decision = decided([ago("b", days=2), ago("a", days=1), ago("c", days=3), ago("d", days=4)], last=2)
    assert decision.keep == {"a": ("newest good one", "last 1 of 2"), "b": ("last 2 of 2",)}
    assert decision.remove == ("c", "d")


@pytest.mark.parametrize(
    ("rule", "dates", "expected"),
    [
        (
            "hourly",
            ["2026-03-18T11:59", "2026-03-18T11:00", "2026-03-18T10:59", "2026-03-18T07:30"],
            {"2026-03-18T11:59": "2026-03-18 11h", "2026-03-18T10:59": "2026-03-18 10h"},
        ),
        (
            "daily",
            ["2026-03-18T00:00", "2026-03-17T23:59", "2026-03-17T01:00", "2026-03-11T01:00"],
            {"2026-03-18T00:00": "2026-03-18", "2026-03-17T23:59": "2026-03-17"},
        ),
        (
            "weekly",  # the year's first ISO week begins in the old year
            ["2026-01-04T23:59", "2025-12-29T00:00", "2025-12-28T23:59", "2025-12-21T00:00"],
            {"2026-01-04T23:59": "2026-W01", "2025-12-28T23:59": "2025-W52"},
        ),
        (
            "monthly",
            ["2026-03-01T00:00", "2026-02-28T23:59", "2026-02-01T00:00", "2025-02-20T00:00"],
            {"2026-03-01T00:00": "2026-03", "2026-02-28T23:59": "2026-02"},
        ),
    ],
)
def test_each_period_keeps_its_newest(rule, dates, expected):
    decision = decided([at(date) for date in dates], **{rule: 2})
    assert {id_: why[-1] for id_, why in decision.keep.items()} == {
        id_: f"{rule} {period}" for id_, period in expected.items()
    }


def test_periods_without_a_snapshot_use_up_no_place():
    snapshots = [ago("now"), ago("spring", days=300), ago("long ago", days=3000), ago("first", days=4000)]
    assert kept(snapshots, daily=3) == {"now", "spring", "long ago"}


def test_rules_stand_for_themselves_and_add_up():
    decision = decided([ago("a"), ago("b", hours=1), ago("c", days=1), ago("d", days=40)], last=2, daily=2, monthly=2)
    assert decision.keep["a"] == (
        "newest good one",
        "last 1 of 2",
        "daily 2026-03-18",
        "monthly 2026-03",
    )
    assert decision.keep["b"] == ("last 2 of 2",)
    assert set(decision.keep) == {"a", "b", "c", "d"}


def test_pins_tags_and_locks_keep():
    snapshots = [
        ago("new"),
        ago("pin", days=9, pinned=True),
        ago("tag", days=9, tags=("x", "release")),
        ago("other tag", days=9, tags=("x",)),
        ago("lock", days=9, locked_until=NOW.timestamp() + 60),
        ago("lock over", days=9, locked_until=NOW.timestamp()),
        ago("for ever", days=9, locked_until=math.inf),
    ]
    decision = decided(snapshots, last=1, tags=("release",))
    assert decision.keep == {
        "new": ("newest good one", "last 1 of 1"),
        "pin": ("pinned",),
        "tag": ("tag release",),
        "lock": ("locked until 2026-03-18 12:01 UTC",),
        "for ever": ("locked for ever",),
    }
    assert set(decision.remove) == {"other tag", "lock over"}


def test_a_bad_one_stays_and_uses_up_no_place():
    snapshots = [ago("bad", good=False), ago("a", days=1), ago("bad too", days=2, good=False), ago("b", days=3)]
    decision = decided(snapshots, last=1)
    assert set(decision.keep) == {"bad", "a", "bad too"}
    assert decision.keep["bad"] == ("cannot be restored as it is: mend it, or remove it by hand",)
    assert decision.remove == ("b",)


def test_the_newest_good_one_stays_whatever_the_policy_says():
    decision = decided([ago("bad", good=False), ago("good", days=500), ago("old", days=501)], tags=("none has it",))
    assert decision.keep["good"] == ("newest good one",)
    assert decision.remove == ("old",)


def test_one_dated_in_the_future_costs_nobody_a_place():
    snapshots = [ago("future", days=-4000), ago("a"), ago("b", days=1), ago("c", days=2)]
    decision = decided(snapshots, last=2)
    assert decision.keep["future"] == ("dated in the future",)
    assert set(decision.keep) == {"future", "a", "b"}


def test_a_clock_set_back_removes_nothing():
    snapshots = [ago("a", days=-1), ago("b", days=-2), ago("c", days=-3)]
    assert decided(snapshots, last=1).remove == ()


@pytest.mark.parametrize("created", [math.nan, math.inf, 1e30, -math.inf, -1e30, 0.0, -1.0, 2.0**70])
def test_impossible_dates_are_survived(created):
    snapshots = [ago("a"), ago("b", days=1), Dated("odd", created)]
    decision = decided(snapshots, last=2, hourly=2, daily=2, weekly=1, monthly=1)
    assert {"a", "b"} <= set(decision.keep)
    assert ("odd" in decision.keep) == (not created <= NOW.timestamp())


def test_equal_dates_are_told_apart_by_their_ids():
    assert kept([ago("a"), ago("b"), ago("c")], last=1) == {"c"}


def test_nothing_there_is_nothing_to_do():
    assert decided([], last=1).keep == {}


def test_a_policy_without_a_rule_is_refused():
    with pytest.raises(EmptyPolicy, match="--keep-last") as refused:
        decide([ago("a")], RetentionConfig(), NOW.timestamp())
    assert isinstance(refused.value, OperatorError)
    assert refused.value.exit_code == 2
