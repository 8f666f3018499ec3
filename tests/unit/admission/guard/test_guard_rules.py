"""The files that ship: words and rules are well formed, and what they say is what is found."""

from __future__ import annotations

import pytest

from stoker.admission.guard.inspect import knowledge, rules_by_id
from stoker.admission.guard.rules import places_of, rules_from
from stoker.admission.guard.words import FREE, Words, scan

CLASSES = {
    "instruction override",
    "system prompt extraction",
    "jailbreak persona",
    "indirect instruction",
    "secret extraction",
    "encoded instruction",
}


def meanings(words: Words, text: str) -> list[tuple[str, int]]:
    hits = words.find(scan(text))
    return [(words.names[number], start) for number, start in zip(hits.meaning, hits.start, strict=True)]


@pytest.fixture
def words() -> Words:
    return Words({"ignore": {"en": ["ignor*", "no"], "zh": ["忽略"]}, "mode": {"en": ["god mode", "ignorance"]}})


def test_words_are_found_from_their_beginning(words):
    assert meanings(words, "please ignoring it") == [("ignore", 7)]
    assert meanings(words, "xignore") == []


def test_a_whole_word_must_end(words):
    assert meanings(words, "no, no\nnow not no") == [("ignore", 0), ("ignore", 4), ("ignore", 15)]


def test_a_word_can_mean_several_things_and_hold_spaces(words):
    assert meanings(words, "ignorance in god mode") == [("ignore", 0), ("mode", 0), ("mode", 13)]


def test_words_of_unparted_scripts_are_found_anywhere(words):
    assert ord("忽") >= FREE
    assert meanings(words, "请忽略它") == [("ignore", 1)]


@pytest.mark.parametrize("text", ["", "n", "no", "忽"])
def test_short_texts(words, text):
    assert len(meanings(words, text)) == (text == "no")


def test_the_shipped_rules_are_whole():
    rules = rules_by_id()
    assert len(rules) == len(knowledge()[1])
    for rule in rules.values():
        assert rule.category in CLASSES
        assert 0 < rule.score <= 1
        assert bool(rule.words) != bool(rule.pattern)
        assert rule.within > 0 or rule.pattern


def test_a_rule_needs_its_words_close_together(words):
    (rule,) = rules_from(
        [{"id": "r", "class": "c", "score": 0.5, "words": ["ignore", "mode"], "within": 12}], words.names
    )
    near, far = "god mode, ignore", "ignore " + "x" * 20 + " god mode"
    assert rule.where(near, places_of(words.find(scan(near)))) == 0
    assert rule.where(far, places_of(words.find(scan(far)))) == -1
    assert rule.where("ignore", places_of(words.find(scan("ignore")))) == -1


@pytest.mark.parametrize("broken", [{}, {"words": ["ignore"], "pattern": "x"}, {"pattern": "x"}, {"words": ["gone"]}])
def test_broken_rules_are_refused(words, broken):
    with pytest.raises(ValueError):
        rules_from([{"id": "r", "class": "c", "score": 0.5, **broken}], words.names)
