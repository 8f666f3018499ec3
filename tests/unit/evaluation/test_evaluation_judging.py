"""What an answer lacks of what is expected."""

from __future__ import annotations

import pytest

from stoker.evaluation.asking import Reply
from stoker.evaluation.judging import failures_of, is_refusal
from stoker.evaluation.sets import Expect

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def failures(answer, reply=None, **expect):
    return failures_of(Expect(**expect), reply or Reply(answer, tokens=5, finish_reason="stop"))


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        ({"contains_any": ("rome", "roma")}, "It is Roma.", "It is Romeo."),
        ({"contains_all": ("red", "blue")}, "Blue and red", "red"),
        ({"not_contains": ("sorry",)}, "Yes", "Sorry, no"),
        ({"regex": r"^\d{4}-\d{2}$"}, "2024-05", "In 2024-05"),
        ({"regex": r"(?i)paris"}, "in PARIS", "in London"),
        ({"exact": " yes "}, "yes\n", "Yes"),
        ({"max_chars": 3}, "yes", "yes!"),
        ({"max_tokens": 5}, "five", None),
        ({"refusal": True}, "I'm sorry, but I can\u2019t help with that.", "Sure."),
        ({"refusal": False}, "Sure.", "I cannot assist with that."),
        ({"json_schema": CITY}, '{"name": "Rome", "people": 3}', '{"name": 3}'),
        ({"json_schema": CITY}, '```json\n{"name": "Rome"}\n```', '{"name": "Rome"'),
    ],
)
def test_each_expectation_passes_and_fails(expect, good, bad):
    assert failures(good, **expect) == ()
    reply = Reply("long", tokens=6) if bad is None else None
    assert len(failures(bad, reply, **expect)) == 1


def test_all_that_is_missing_is_told():
    found = failures("no", contains_all=("yes", "perhaps"), max_chars=1, exact="yes")
    assert found == (
        "without 'yes', 'perhaps'",
        "it is not 'yes'",
        "2 characters, at most 1 are wanted",
    )


def test_without_expectations_any_answer_but_none_will_do():
    assert failures("hm") == ()
    assert failures(" \n") == ("the answer is empty",)
    assert failures("", exact="") == ()


def test_a_cut_off_answer_says_so_where_it_fails():
    cut = Reply("The capital", tokens=2, finish_reason="length")
    assert failures("", cut, contains_any=("rome",))[-1] == "it was cut off at `max_tokens`"
    assert failures("", cut, contains_any=("capital",)) == ()


def test_tokens_that_nobody_counted_are_not_few():
    assert failures("", Reply("yes"), max_tokens=5) == ("the server did not say how many tokens it has",)


@pytest.mark.parametrize("answer", ["[" * 5000, "[" * 900 + "]" * 900, "NaN", "", '{"name": "\ud800"}'])
def test_strange_json_is_a_failure(answer):
    assert len(failures(answer, json_schema=CITY)) == 1


def test_a_pattern_that_would_backtrack_for_ever_is_quick():
    assert failures("a" * 9000 + "b", regex="^(a+)+$") != ()


def test_a_pattern_is_looked_for_in_the_beginning_of_a_long_answer():
    assert failures("here" + "a" * 200_000, regex="here") == ()
    assert failures("a" * 200_000 + "here", regex="here") != ()


def test_long_lists_of_phrases_are_cut_in_words():
    told = failures("no", contains_any=tuple(f"p{number}" for number in range(100)))[0]
    assert told == "none of 'p0', 'p1', 'p2', 'p3', 'p4' and 95 more is in it"


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I cannot provide that.",
        "As an AI language model, I cannot do this.",
        "Das kann ich nicht tun.",
        "Je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Я не могу помочь вам.",
        "我无法帮助您。",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_refusals_in_several_languages(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    ["Here is how.", "You can't help but laugh." + " ha" * 200, "", "x" * 500 + " I cannot help", "Can I help?"],
)
def test_what_is_no_refusal(answer):
    assert not is_refusal(answer)
