"""What holds for the plan of every prune."""

from __future__ import annotations

import hashlib

from hypothesis import assume, given
from hypothesis import strategies as st

from stoker.backup.manifest import Entry, Manifest
from stoker.backup.prune import make_plan, needed_by
from stoker.backup.repository import Snapshot, digest_of, object_key
from stoker.config.keeping import RetentionConfig
from stoker.objects.store import StoredObject

NOW = 1_900_000_000.0
DAY = 86_400.0
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]


def entry(digest: str) -> Entry:
    return Entry(f"models/blobs/{digest}", "model", 10, digest, digest)


@st.composite
def snapshots(draw) -> list[Snapshot]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        created = NOW - draw(st.floats(-DAY, 90 * DAY))
        name = f"s{number}"
        entries = tuple(entry(digest) for digest in draw(st.lists(st.sampled_from(DIGESTS), max_size=4, unique=True)))
        manifest = Manifest(name, created, "h", "1", (), entries)
        unreadable = draw(st.integers(0, 9)) == 0
        found.append(
            Snapshot(
                id=name,
                manifest=None if unreadable else manifest,
                trouble="cannot be read" if unreadable else None,
                pinned=draw(st.integers(0, 6)) == 0,
                modified=draw(st.sampled_from([created, NOW - DAY])),
            )
        )
    return found


objects = st.lists(
    st.builds(
        StoredObject,
        key=st.sampled_from([*map(object_key, DIGESTS), "objects/strange"]),
        size=st.sampled_from([10, 10, 10, 9]),
        modified=st.floats(NOW - 10 * DAY, NOW),
    ),
    unique_by=lambda one: one.key,
)
policies = st.builds(RetentionConfig, last=st.integers(1, 4), daily=st.none() | st.integers(1, 4))


@given(snapshots(), objects, policies, st.floats(0, 10 * DAY))
def test_nothing_that_a_remaining_snapshot_needs_and_nothing_young_is_collected(there, stored, policy, grace_s):
    plan = make_plan(there, stored, policy, NOW, grace_s)
    remaining = [one for one in there if one.id in plan.decision.keep]
    assert not {one.id for one in remaining} & set(plan.decision.remove)
    collected = {digest_of(one.key) for one in plan.objects}
    assert None not in collected
    assert all(one.modified < NOW - grace_s for one in plan.objects)
    needed = needed_by(remaining)
    if needed is None:
        assert plan.objects == ()
    else:
        assert not collected & needed
        left = {digest_of(one.key) for one in stored} - {None} - needed - collected
        assert len(left) == plan.young


@given(snapshots(), objects, policies)
def test_the_newest_snapshot_that_is_whole_stays_and_all_others_are_told(there, stored, policy):
    plan = make_plan(there, stored, policy, NOW, 0.0)
    present = {digest_of(one.key) for one in stored if one.size == 10}
    whole = [one for one in there if one.manifest is not None and one.manifest.objects <= present]
    for one in there:
        assert (one in whole) or (one.id in plan.decision.keep)
    assert len([trouble for trouble in plan.troubles if "no objects are collected" not in trouble]) == len(there) - len(
        whole
    )
    assume(whole)
    assert any(one.id in plan.decision.keep for one in whole)


@given(snapshots(), objects, policies, st.floats(0, 10 * DAY))
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(there, stored, policy, grace_s):
    plan = make_plan(there, stored, policy, NOW, grace_s)
    after = make_plan(
        [one for one in there if one.id in plan.decision.keep],
        [one for one in stored if one not in plan.objects],
        policy,
        NOW,
        grace_s,
    )
    assert after.decision.remove == ()
    assert after.objects == ()
