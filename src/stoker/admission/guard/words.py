"""Finds words by meaning: which of the meanings in `words.yaml` a text holds, and where.

A search for some three thousand word beginnings must cost tens of microseconds, so it is done on all positions at once.
A polynomial hash of every beginning comes from differences of one running sum (Karp and Rabin, "Efficient
randomized pattern-matching algorithms", 1987): with `sum[i] = c[0] + c[1] P + ... + c[i-1] P^(i-1)` modulo 2^64, the
characters from `i` to `j` hash to `(sum[j] - sum[i]) P^-i`. A beginning whose 64-bit hash is known counts as found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stoker.admission.guard.normalise import normalise

Codes = NDArray[np.uint32]
Longs = NDArray[np.uint64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PIECE: Final = 8192
"""Characters that are looked at in one go; longer texts come in pieces."""
FREE: Final = 0x590
"""Scripts from this code point on add to words or do not part them: there a word is found anywhere."""
_HEAD: Final = 4
_FACTOR: Final = 0x9E3779B97F4A7C15 | 1
_MASK: Final = (1 << 64) - 1


def _powers(base: int) -> Longs:
    values = [1]
    for _ in range(PIECE):
        values.append(values[-1] * base & _MASK)
    return np.array(values, dtype=np.uint64)


_POWERS: Final = _powers(_FACTOR)
_INVERSES: Final = _powers(pow(_FACTOR, -1, 1 << 64))


def _letters() -> Flags:
    """Letters, digits and marks of all scripts, and the underscore, by code point."""
    points = np.arange(1 << 16, dtype=np.uint32)
    plain = ((points | 32) - 97 < 26) | (points - 48 < 10) | (points == 95)  # noqa: PLR2004  # ASCII
    wide = (points >= 0xAA) & ((points < 0x2000) | (points >= 0x2C00)) & ((points < 0x3000) | (points > 0x3020))  # noqa: PLR2004
    return np.asarray(plain | (wide & ((points < 0xFF00) | (points > 0xFF0F))))  # noqa: PLR2004


_LETTERS: Final = _letters()


@dataclass(frozen=True, slots=True)
class Hits:
    """Meanings that were found: their numbers and where they begin, in that order."""

    meaning: Ints
    start: Ints


@dataclass(frozen=True, slots=True)
class Scanned:
    """A text of at most `PIECE` characters, ready for searching.

    `points` are its characters, `letter` says which of them belong to words, and `sums` are running sums from which the
    hash of any stretch follows; they are one longer than the text.
    """

    points: Codes
    letter: Flags
    sums: Longs


def scan(text: str) -> Scanned:
    """Makes a text ready for searching."""
    points = codes(text)
    return Scanned(points, _LETTERS[np.minimum(points, np.uint32(0xFFFF))], running(points))


def codes(text: str) -> Codes:
    """The text's code points; line breaks count as spaces."""
    return np.frombuffer(text.replace("\n", " ").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def running(points: Codes) -> Longs:
    """Running sums of the hash, one longer than the text."""
    sums = np.zeros(len(points) + 1, dtype=np.uint64)
    np.cumsum(points * _POWERS[: len(points)], out=sums[1:])
    return sums


def stretches(sums: Longs, start: Ints, end: Ints) -> Longs:
    """Hash of each stretch of characters from `start` to before `end`."""
    return np.asarray((sums[end] - sums[start]) * _INVERSES[start])


class Words:
    """The searcher made from meanings and their words."""

    def __init__(self, meanings: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        self.names: tuple[str, ...] = tuple(meanings)
        rows: set[tuple[int, int, bool]] = set()
        heads: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())
        for number, languages in enumerate(meanings.values()):
            for written in (word for words in languages.values() for word in words):
                points = codes(normalise(written.removesuffix("*")))
                sums = running(points)
                rows.add((int(sums[-1]), number, written.endswith("*") or int(points[-1]) >= FREE))
                long = len(points) >= _HEAD
                heads[long].add((int(sums[_HEAD if long else 2]) >> 48, len(points)))
        ordered = sorted(rows)
        self._keys: Longs = np.array([row[0] for row in ordered], dtype=np.uint64)
        self._meanings: Ints = np.array([row[1] for row in ordered], dtype=np.int64)
        self._open: Flags = np.array([row[2] for row in ordered], dtype=np.bool_)
        self._short, self._long = _Lengths(heads[0]), _Lengths(heads[1])

    def find(self, text: Scanned) -> Hits:
        """All meanings in a text."""
        start, end = self._candidates(text)
        hashes = stretches(text.sums, start, end)
        first = np.searchsorted(self._keys, hashes)
        hit = np.flatnonzero(self._keys[np.minimum(first, len(self._keys) - 1)] == hashes)
        start, end, first = start[hit], end[hit], first[hit]
        closed = ~np.append(text.letter, np.False_)[end]
        count = np.searchsorted(self._keys, hashes[hit], side="right") - first  # one word can mean several things
        index, within = _repeated(count)
        entry = first[index] + within
        taken = self._open[entry] | closed[index]
        meaning, start, end = self._meanings[entry[taken]], start[index[taken]], end[index[taken]]
        # Of several words for one meaning at one place the longest counts.
        order = np.argsort(((start << 6) + meaning << 13) - end, kind="stable")
        meaning, start = meaning[order], start[order]
        new = np.ones(len(order), dtype=np.bool_)
        new[1:] = (meaning[1:] != meaning[:-1]) | (start[1:] != start[:-1])
        return Hits(meaning[new], start[new])

    def _candidates(self, text: Scanned) -> tuple[Ints, Ints]:
        """Where a known word could begin and end, judged by its first characters."""
        size = len(text.points)
        begins = text.points != 32  # noqa: PLR2004  # a space
        begins[1:] &= ~text.letter[:-1] | (text.points[1:] >= FREE)
        start = np.flatnonzero(begins[: max(size - 1, 0)])
        found = [
            lengths.ends(start, stretches(text.sums, start, np.minimum(start + reach, size)), size)
            for lengths, reach in ((self._short, 2), (self._long, _HEAD))
        ]
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])


class _Lengths:
    """How long the words are that begin in a way, by 16 bits of the beginning's hash."""

    def __init__(self, heads: set[tuple[int, int]]) -> None:
        ordered = sorted(heads)
        self._lengths: Ints = np.array([length for _, length in ordered], dtype=np.int64)
        self._count: Ints = np.bincount([head for head, _ in ordered], minlength=1 << 16)
        self._first: Ints = np.cumsum(self._count) - self._count

    def ends(self, start: Ints, heads: Longs, size: int) -> tuple[Ints, Ints]:
        """Starts and ends, within `size`, of what could be words there."""
        bucket = (heads >> np.uint64(48)).astype(np.int64)
        index, within = _repeated(self._count[bucket])
        begin = start[index]
        end = begin + self._lengths[self._first[bucket[index]] + within]
        inside = end <= size
        return begin[inside], end[inside]


def _repeated(count: Ints) -> tuple[Ints, Ints]:
    """Each index as often as its count says, and beside it 0, 1, ... up to the count."""
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(len(index)) - (np.cumsum(count) - count)[index]
