"""What holds for every policy and every set of snapshots."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from stoker.backup.retention import Dated, Decision, decide
from stoker.config.keeping import RetentionConfig

NOW = 1_900_000_000.0
DAY = 86_400.0
COUNTS = ("last", "hourly", "daily", "weekly", "monthly")

ages = st.one_of(
    st.floats(0, 3 * DAY),
    st.floats(0, 800 * DAY),
    st.sampled_from([0.0, 3600.0, DAY, 7 * DAY]),
    st.floats(-400 * DAY, 0),
)
tags = st.lists(st.sampled_from(["release", "x", "y"]), max_size=2, unique=True).map(tuple)


@st.composite
def snapshots(draw) -> list[Dated]:
    count = draw(st.integers(0, 25))
    return [
        Dated(
            id=f"s{number:02}",
            created=NOW - draw(ages),
            tags=draw(tags),
            pinned=draw(st.integers(0, 9)) == 0,
            good=draw(st.integers(0, 4)) != 0,
            locked_until=draw(st.none() | st.floats(NOW - DAY, NOW + DAY)),
        )
        for number in range(count)
    ]


@st.composite
def policies(draw) -> RetentionConfig:
    rules = {name: draw(st.none() | st.integers(1, 8)) for name in COUNTS}
    policy = RetentionConfig(**rules, tags=draw(tags))
    assume(policy.tags or any(rules.values()))
    return policy


def settled(there: list[Dated], policy: RetentionConfig) -> Decision:
    return decide(there, policy, NOW)


@given(snapshots(), policies())
def test_each_snapshot_stays_with_reasons_or_goes(there, policy):
    decision = settled(there, policy)
    assert set(decision.keep) | set(decision.remove) == {one.id for one in there}
    assert not set(decision.keep) & set(decision.remove)
    assert len(decision.remove) == len(set(decision.remove))
    assert all(reasons and all(reasons) for reasons in decision.keep.values())


@given(snapshots(), policies())
def test_the_newest_good_one_never_goes(there, policy):
    good = [one for one in there if one.good]
    assume(good)
    assert max(good, key=lambda one: (one.created, one.id)).id in settled(there, policy).keep
    past = [one for one in good if one.created <= NOW]
    if past:
        assert max(past, key=lambda one: (one.created, one.id)).id in settled(there, policy).keep


@given(snapshots(), policies())
def test_bad_pinned_locked_and_tagged_ones_never_go(there, policy):
    removed = {one.id: one for one in there if one.id in settled(there, policy).remove}
    for one in removed.values():
        assert one.good
        assert not one.pinned
        assert one.locked_until is None or one.locked_until <= NOW
        assert not set(one.tags) & set(policy.tags)


@given(snapshots(), policies(), st.sampled_from(COUNTS), st.integers(1, 8))
def test_a_larger_number_never_keeps_less(there, policy, name, more):
    larger = RetentionConfig(**{**policy.model_dump(), name: (getattr(policy, name) or 0) + more})
    assert set(settled(there, policy).keep) <= set(settled(there, larger).keep)


@given(snapshots(), policies())
def test_what_is_kept_is_kept_again(there, policy):
    keep = settled(there, policy).keep
    assert settled([one for one in there if one.id in keep], policy).remove == ()


@given(snapshots(), policies(), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(there, policy, random):
    shuffled = list(there)
    random.shuffle(shuffled)
    assert settled(shuffled, policy) == settled(there, policy)


@given(snapshots(), policies(), ages)
def test_bad_and_future_ones_change_nothing_for_the_others(there, policy, age):
    bad = Dated("bad", NOW - age, good=False)
    future = Dated("future", NOW + abs(age) + 1)
    before, after = settled(there, policy), settled([*there, bad, future], policy)
    assert after.remove == before.remove
    assert {id_: why for id_, why in after.keep.items() if id_ not in {"bad", "future"}} == before.keep
    assert {"bad", "future"} <= set(after.keep)


@given(snapshots(), policies(), st.floats(-4000 * DAY, 4000 * DAY))
def test_whatever_the_clock_says_a_newer_good_one_stays_for_each_that_goes(there, policy, wrong):
    decision = decide(there, policy, NOW + wrong)
    stays = [one for one in there if one.good and one.id in decision.keep]
    for removed in (one for one in there if one.id in decision.remove):
        assert any(one.created >= removed.created for one in stays)


@given(snapshots(), policies())
def test_marks_are_reasons_to_stay(there, policy):
    marked = [replace(one, pinned=True) for one in there]
    assert settled(marked, policy).remove == ()
