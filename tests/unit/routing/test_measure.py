"""The figures of `stoker route eval`."""

import itertools

import pytest

from stoker.routing.classifier import Ranking
from stoker.routing.examples import Row
from stoker.routing.measure import Judged, auroc, confusion, figures, judge


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    inside, outside = [0.9, 0.4, 0.5], [0.5, 0.1]
    pairs = [1 if high > low else 0.5 if high == low else 0 for high, low in itertools.product(inside, outside)]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_needs_both_kinds():
    assert auroc([], [0.1]) is None
    assert auroc([0.1], []) is None


ROWS = [
    Judged("food", "en", "food", 0.9),
    Judged("food", "en", "travel", 0.6),
    Judged("travel", "ru", "travel", 0.2),
    Judged("oos", "ru", "food", 0.1),
]


def test_accuracy_counts_rows_in_scope_whatever_their_confidence():
    whole = figures(ROWS)
    assert (whole.rows, whole.accuracy, whole.auroc) == (4, pytest.approx(2 / 3), pytest.approx(1))


def test_figures_that_cannot_be_given_are_none():
    assert figures(ROWS[3:]).accuracy is None
    assert figures(ROWS[:2]).auroc is None


def test_confusion_gives_out_of_scope_below_the_threshold():
    assert confusion(ROWS, 0.5) == {
        ("food", "food"): 1,
        ("food", "travel"): 1,
        ("travel", "oos"): 1,
        ("oos", "oos"): 1,
    }


def test_rows_without_a_domain_are_not_judged():
    class Fixed:
        def rank(self, text):
            return Ranking((("food", 1.0),), len(text) / 10)

    judged = judge(Fixed(), [Row("abc", "food", None), Row("x", None, "en")])
    assert judged == [Judged("food", "-", "food", 0.3)]
