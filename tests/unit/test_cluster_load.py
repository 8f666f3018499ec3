"""The load of the cluster's tests: an answer that is not whole must never pass for one."""

from __future__ import annotations

import json

import pytest
from tests.cluster_load import Broken, check_plain, check_stream


def event(text: str = "", end: str | None = None, **more: object) -> str:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": end}]
    return "data: " + json.dumps({"id": "a", "system_fingerprint": "fp_1", "choices": choices, **more}) + "\n\n"


COUNT = event(choices=[], usage={"completion_tokens": 3})
WHOLE = [event("one "), event("two "), event("three", "length"), COUNT, "data: [DONE]\n\n"]


def test_a_whole_stream_passes() -> None:
    assert check_stream("".join(WHOLE), 3) == "fp_1"


@pytest.mark.parametrize("cut", range(len("".join(WHOLE))))
def test_no_beginning_of_a_stream_passes(cut: int) -> None:
    with pytest.raises((Broken, ValueError, KeyError)):
        check_stream("".join(WHOLE)[:cut], 3)


@pytest.mark.parametrize(
    "events",
    [
        [*WHOLE[:3], WHOLE[4]],  # no count
        [*WHOLE[:2], *WHOLE[3:]],  # no end
        [event("one", "stop"), *WHOLE[3:]],
        [*WHOLE[:1], 'data: {"error": {"message": "engine died"}}\n\n', WHOLE[4]],
        [*WHOLE[:1], event("two", id="b"), *WHOLE[2:]],
        [event("", "length"), *WHOLE[3:]],
    ],
)
def test_a_stream_with_a_fault_in_it_does_not_pass(events: list[str]) -> None:
    with pytest.raises(Broken):
        check_stream("".join(events), 3)


def test_fewer_tokens_than_asked_for_do_not_pass() -> None:
    with pytest.raises(Broken, match="3 of 4 tokens"):
        check_stream("".join(WHOLE), 4)


def test_an_answer_in_one_piece() -> None:
    choice = {"finish_reason": "length", "message": {"content": "one two"}}
    body = {"choices": [choice], "usage": {"completion_tokens": 2}, "system_fingerprint": "fp_1"}
    assert check_plain(json.dumps(body), 2) == "fp_1"
    with pytest.raises(Broken):
        check_plain(json.dumps({**body, "usage": {"completion_tokens": 1}}), 2)
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|Expecting"):
        check_plain(json.dumps(body)[:-5], 2)
