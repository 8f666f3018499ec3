"""Whether words occur in an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.evaluation.words import folded, occurs


@pytest.mark.parametrize(
    ("phrase", "answer"),
    [
        ("london", "The capital is London."),
        ("LONDON", "london"),
        ("h2o", "It is H₂O."),
        ("h₂o", "It is H2O."),
        ("4", "4"),
        ("4", "The answer is 4."),
        ("4", "2+2=4, as you know"),
        ("4", "**4**"),
        ("twenty four", "twenty\n  four"),
        ("c++", "Use C++!"),
        ("c++", "Use C++20"),  # an end that is no letter bounds nothing
        ("-5", "x=-5"),
        ("don't know", "I don\u2019t know"),
        ("東京", "日本の首都は東京です。"),
        ("北京", "首都是北京市"),
        ("서울", "수도는 서울입니다"),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพมหานคร"),
        ("café", "CAFE\u0301 au lait"),
        ("straße", "STRASSE"),
        (".", "End."),
    ],
)
def test_it_occurs(phrase, answer):
    assert occurs(phrase, folded(answer))


@pytest.mark.parametrize(
    ("phrase", "answer"),
    [
        ("4", "14"),
        ("4", "41"),
        ("4", "3.4"),
        ("4", "4.5 of them"),
        ("60", "60,000 minutes"),
        ("000", "60,000 minutes"),
        ("ice", "It is nice."),
        ("ice", "icecream"),
        ("ice", "ice_cream"),
        ("rome", "romeo"),
        ("two words", "two other words"),
        ("london", ""),
        ("über", "überall"),
    ],
)
def test_it_does_not(phrase, answer):
    assert not occurs(phrase, folded(answer))


WORD = st.text("abcxyz", min_size=1, max_size=6)


@given(st.lists(WORD, min_size=1, max_size=12), WORD)
def test_a_word_occurs_when_it_is_one_of_the_words(words, word):
    for separator in (" ", ", ", "\n", ". ", "-", " (", "\t\t"):
        assert occurs(word, folded(separator.join(words))) == (word in words)


@given(st.text(max_size=60), st.text(min_size=1, max_size=10), st.text(max_size=60))
def test_what_stands_between_spaces_occurs(before, phrase, after):
    if folded(phrase):
        assert occurs(phrase, folded(f"{before} {phrase} {after}")) or _grown_together(before, phrase, after)


def _grown_together(before: str, phrase: str, after: str) -> bool:
    """A combining mark at an edge belongs to its neighbour, so that the phrase is not there any more."""
    return folded(phrase) not in folded(f"{before} {phrase} {after}")


@given(st.text("ab1.,- é東", max_size=40), st.text("ab1.,- é東", min_size=1, max_size=5))
def test_what_occurs_is_in_the_text(answer, phrase):
    if occurs(phrase, folded(answer)):
        assert folded(phrase) in folded(answer)


@given(st.text())
def test_folding_twice_changes_nothing_for_matching(text):
    once = folded(text)
    assert " ".join(once.split()) == once
