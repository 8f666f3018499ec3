"""Hashed n-grams and their weights."""

import numpy as np
import pytest

from stoker.routing.ngrams import BUCKETS, Sparse, Weighting, counted, products


def dense(vector: Sparse) -> np.ndarray:
    full = np.zeros(2 * BUCKETS)
    full[vector.indexes] = vector.values
    return full


def test_indexes_ascend_without_repeats():
    found = counted("block my card block my card").indexes
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("text", ["", " ", "a", "?", "я", "\ud800", "一二三", "a" * 2000])
def test_any_text_has_n_grams_without_an_error(text):
    assert np.isfinite(counted(text).values).all()


def test_a_repeated_word_counts_by_its_logarithm():
    twice, once = counted("xyz xyz"), counted("xyz")
    word = once.indexes[once.indexes >= BUCKETS][0]
    assert once.values[once.indexes == word] == pytest.approx(1)
    assert twice.values[twice.indexes == word] == pytest.approx(1 + np.log(2))


def test_letters_do_not_run_over_the_end_of_a_word():
    joined = {int(index) for index in counted("ab").indexes} | {int(index) for index in counted("cd").indexes}
    letters = {int(index) for index in counted("ab cd").indexes if index < BUCKETS}
    assert letters <= joined


def test_both_halves_of_a_weighted_vector_have_the_same_length():
    texts = [counted("pay the bill"), counted("play a song")]
    weighted = Weighting(texts).apply(texts[0])
    letters = weighted.values[weighted.indexes < BUCKETS]
    words = weighted.values[weighted.indexes >= BUCKETS]
    assert letters @ letters == pytest.approx(0.5)
    assert words @ words == pytest.approx(0.5)


def test_a_text_with_unknown_words_has_less_in_common():
    texts = [counted("pay the bill"), counted("play a song")]
    weighting = Weighting(texts)
    bill = dense(weighting.apply(texts[0]))
    alone, among = (dense(weighting.apply(counted(text))) for text in ("pay the bill", "pay the bill qwxz vbnm jklh"))
    assert alone @ bill == pytest.approx(1)
    assert among @ bill < 0.7


def test_products_are_the_inner_products():
    texts = [counted(text) for text in ("pay the bill", "pay a song", "", "play a song")]
    vectors = [Weighting(texts).apply(text) for text in texts]
    full = np.stack([dense(vector) for vector in vectors])
    assert products(vectors) == pytest.approx(full @ full.T, abs=1e-6)
