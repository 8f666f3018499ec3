"""Whose texts are looked at, with which policy, and what follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.admission.guard.inspect import Verdict
from stoker.admission.guard.policy import ResolvedPolicy, judge, resolve, scanned
from stoker.config.access import GuardConfig, GuardPolicy

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "content": "result"},
    {"role": "assistant", "content": "done"},
    {"role": "wizard", "content": "spell"},
]


def policy(**changes) -> ResolvedPolicy:
    values = {"mode": "block", "threshold": 0.5, "roles": ("system", "user", "tool"), "characters": 1000}
    return ResolvedPolicy(**(values | changes))


def verdict(score: float, rule: str = "r") -> Verdict:
    return Verdict(score=score, rules=(rule,), category=f"class of {rule}", classifier=score)


def test_key_comes_before_model_before_base():
    base = GuardConfig(mode="log", threshold=0.5)
    model = GuardPolicy(mode="flag", threshold=0.4)
    key = GuardPolicy(mode="block", roles=("user",))
    assert resolve(base, GuardPolicy(), None) == ResolvedPolicy("log", 0.5, ("system", "user", "tool"), 20_000)
    assert resolve(base, model, None).mode == "flag"
    resolved = resolve(base, model, key)
    assert (resolved.mode, resolved.threshold, resolved.roles) == ("block", 0.4, ("user",))


def test_a_threshold_of_zero_is_a_choice():
    assert resolve(GuardConfig(), GuardPolicy(threshold=0.3), GuardPolicy(threshold=0)).threshold == 0


def test_roles_that_are_scanned():
    assert scanned(TALK, policy(), trusted=False) == ("be kind", "be brief", "hello", "result", "spell")
    assert scanned(TALK, policy(), trusted=True) == ("hello", "result", "spell")
    assert scanned(TALK, policy(roles=("assistant",)), trusted=False) == ("done",)
    assert scanned(TALK, policy(mode="off"), trusted=False) == ()


@given(st.text(min_size=1, max_size=300), st.integers(10, 100))
def test_of_a_long_message_both_ends_are_scanned(text, characters):
    (seen,) = scanned([{"role": "user", "content": text}], policy(characters=characters), trusted=False)
    assert len(seen) <= characters
    if len(text) <= characters:
        assert seen == text
    else:
        assert seen[0] == text[0]
        assert seen[-1] == text[-1]


@pytest.mark.parametrize("mode", ["log", "flag", "block"])
def test_the_worst_text_decides(mode):
    decision = judge([verdict(0.2, "a"), verdict(0.9, "b")], policy(mode=mode))
    assert (decision.action, decision.score, decision.rules, decision.category) == (mode, 0.9, ("b",), "class of b")


def test_the_threshold_itself_counts():
    assert judge([verdict(0.5)], policy()).action == "block"
    allowed = judge([verdict(0.49)], policy())
    assert (allowed.action, allowed.score) == ("allow", 0.49)


def test_nothing_to_judge_is_allowed():
    assert judge([], policy()).action == "allow"
    assert judge([verdict(1.0)], policy(mode="off")).action == "allow"
