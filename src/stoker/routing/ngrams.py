"""What a text looks like: hashed n-grams of letters and of words, weighted by tf-idf.

They know nothing of meaning, but learn the words of a configuration's examples exactly: product names, abbreviations.
Hashing as in Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"; the weights are those of
Salton and Buckley 1988 with logarithmic counts: (1 + ln count) * (1 + ln((1 + texts) / (1 + texts with it))).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LETTERS = (2, 3, 4, 5)
WORDS = (1, 2, 3)
BITS = 15
BUCKETS = 1 << BITS
"""Buckets of letters; as many again, from this number on, are of words."""

_WORD = re.compile(r"\w+|\?")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hashing
_NEXT = np.uint64(0x100000001B3)  # FNV's prime, to fold the next letter or word in
_SHIFT = np.uint64(64 - BITS)
_SPACE = 32

Floats = NDArray[np.float32]
Indexes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse vector: the numbers of its elements that are not 0, ascending, and their values."""

    indexes: Indexes
    values: Floats


def counted(text: str) -> Sparse:
    """The n-grams of a normalised text by bucket, with 1 + ln of their counts."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _WORD.findall(text)], np.uint64)
    found = [*_letters(codes), *(part + BUCKETS for part in _runs(words, WORDS))]
    indexes, counts = np.unique(np.concatenate(found), return_counts=True)
    return Sparse(indexes, 1 + np.log(counts.astype(np.float32)))


def _runs(codes: NDArray[np.uint64], lengths: Sequence[int]) -> list[Indexes]:
    """The bucket of each run of so many codes, one array a length; a run's hash extends that of the shorter one."""
    found = []
    running = np.zeros(len(codes) + 1, np.uint64)
    for length in range(1, max(lengths) + 1):
        running = running[:-1] * _NEXT + codes[length - 1 :] + np.uint64(length)
        if length in lengths:
            found.append(((running * _MIX) >> _SHIFT).astype(np.int64))
        if len(running) == 0:
            break
    return found


def _letters(codes: NDArray[np.uint64]) -> list[Indexes]:
    """Runs of letters inside one word; a space may only begin or end one."""
    spaces = np.concatenate(([0], np.cumsum(codes == _SPACE)))
    kept = []
    for length, buckets in zip(LETTERS, _runs(codes, LETTERS), strict=False):
        inner = spaces[length - 1 : length - 1 + len(buckets)] - spaces[1 : 1 + len(buckets)]
        kept.append(buckets[inner <= 0])
    return kept


class Weighting:
    """The tf-idf weights that a set of texts gives.

    N-grams that none of them has count as the rarest ones, so that a text with little known in it has a short vector.

    Args:
        texts: the n-grams of each text.
    """

    def __init__(self, texts: Sequence[Sparse]) -> None:
        seen = np.zeros(2 * BUCKETS, np.float32)
        for text in texts:
            seen[text.indexes] += 1
        self._weights = (1 + np.log((1 + len(texts)) / np.maximum(1 + seen, 2))).astype(np.float32)

    def apply(self, text: Sparse) -> Sparse:
        """The weighted n-grams: those of letters, and those of words, each a vector of length sqrt(1/2)."""
        values = text.values * self._weights[text.indexes]
        split = int(np.searchsorted(text.indexes, BUCKETS))
        for part in (values[:split], values[split:]):
            length = float(np.sqrt(part @ part))
            if length > 0:
                part *= np.float32(np.sqrt(0.5) / length)  # noqa: PLW2901 - in place, so that `values` changes
        return Sparse(text.indexes, values)


def products(vectors: Sequence[Sparse]) -> Floats:
    """The matrix of inner products of sparse vectors."""
    count = len(vectors)
    result = np.zeros((count, count), np.float32)
    if not count:
        return result
    indexes = np.concatenate([vector.indexes for vector in vectors])
    values = np.concatenate([vector.values for vector in vectors])
    rows = np.repeat(np.arange(count), [len(vector.indexes) for vector in vectors])
    dense = np.zeros(2 * BUCKETS, np.float32)
    for row, vector in enumerate(vectors):
        dense[vector.indexes] = vector.values
        result[row] = np.bincount(rows, weights=dense[indexes] * values, minlength=count)
        dense[vector.indexes] = 0
    return result
