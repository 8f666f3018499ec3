"""What the classifier sees of a text: numbered features with values, for the whole text and for each of its sentences.

One injected sentence in a long e-mail drowns in the features of the whole, so every sentence is also judged alone. Both
are bags of the same features: character n-grams, words and their sequences, meanings (`words.yaml`) and how they stand
together, and rules that hit. Features are hashed into one table (Weinberger et al., "Feature hashing
for large scale multitask learning", 2009); all hashing is done on whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stoker.admission.guard.words import FREE, Codes, Hits, Ints, Longs, Scanned, stretches

BITS: Final = 18
SIZE: Final = 1 << BITS
"""Entries of the table of weights."""

Floats = NDArray[np.float32]

_SENTENCE_MIN: Final = 16  # characters; shorter ones join the next
_SENTENCE_MAX: Final = 400
_NEAR: Final = 48  # characters between meanings that count as following each other
_KINDS: Final = np.zeros(1 << 16, dtype=np.uint8)
_KINDS[[ord(character) for character in ".!?"]] = 1
_KINDS[[0x3002, 0xFF01, 0xFF1F, ord("|")]] = 2  # the first three are Chinese and Japanese full stops
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)

CHARACTERS, WORDS, MEANINGS, PAIRS, CHAINS, RULES = range(6)
"""Families of features; each is brought to a comparable weight whatever the text's length."""
SCALE: Final = (1.0, 1.0, 1.0, 1.2, 1.2, 0.7)
DAMPING: Final = (8.0, 4.0, 40.0, 40.0, 20.0, 1.0)
"""A family of n features weighs `scale * n / sqrt(n + damping)`, each of them alike."""


@dataclass(frozen=True, slots=True)
class Bag:
    """Features of one or several texts: the table entry, the value, and the text (row) it belongs to."""

    index: Ints
    value: Floats
    row: Ints
    rows: int


def sentences(points: Codes, breaks: Ints, borders: Ints) -> Ints:
    """The number of the sentence that each character is in.

    Args:
        points: the text's characters.
        breaks: positions where a line begins.
        borders: positions where a sentence must begin, however short the one before is.
    """
    size = len(points)
    kind = _KINDS[np.minimum(points, np.uint32(0xFFFF))]
    end = kind == 2  # noqa: PLR2004  # ends a sentence wherever it stands
    end[:-1] |= (kind[:-1] == 1) & (points[1:] == 32)  # noqa: PLR2004  # does before a space
    bounds = {*(np.flatnonzero(end) + 1).tolist(), *breaks.tolist()}
    forced = set(borders.tolist())
    starts, last = [], 0
    for bound in sorted(bounds | forced | set(range(0, size, _SENTENCE_MAX))):
        if last < bound < size and (bound - last >= _SENTENCE_MIN or bound in forced):
            starts.append(bound)
            last = bound
    marks = np.zeros(size, dtype=np.int64)
    marks[np.array(starts, dtype=np.int64)] = 1
    return np.cumsum(marks)


def bags(text: Scanned, sentence: Ints, hits: Hits, rules: Sequence[tuple[int, int]]) -> tuple[Bag, Bag]:
    """Features of the text as a whole, and of each sentence; the latter is empty where there is but one.

    Args:
        text: the text's characters.
        sentence: the sentence of each character.
        hits: the meanings in the text.
        rules: number of each rule that hit, and the position where.
    """
    families = [*_characters(text.points), *_words(text), *_meanings(hits, sentence)]
    if rules:
        array = np.array(rules, dtype=np.int64)
        families.append((RULES, _spread(array[:, 0].astype(np.uint64), RULES), array[:, 1]))
    whole: list[tuple[Ints, Floats, Ints]] = []
    parts: list[tuple[Ints, Floats, Ints]] = []
    count = int(sentence[-1]) + 1
    for family in range(len(SCALE)):
        own = [(index, position) for kind, index, position in families if kind == family]
        if not own:
            continue
        index = np.concatenate([entry[0] for entry in own])
        position = np.concatenate([entry[1] for entry in own])
        unique = _unique(index)
        whole.append(_valued(unique, np.zeros(len(unique), np.int64), 1, family))
        if count > 1:
            parts.append(_valued(index, sentence[position], count, family))
    return _bag(whole, 1), _bag(parts, count if count > 1 else 0)


def _unique(index: Ints) -> Ints:
    """The different ones, ascending; twice as quick as numpy's for being 32 bits wide."""
    ordered = np.sort(index.astype(np.uint32))
    new = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new].astype(np.int64)


def _valued(index: Ints, row: Ints, rows: int, family: int) -> tuple[Ints, Floats, Ints]:
    counts = np.bincount(row, minlength=rows)
    value = (SCALE[family] / np.sqrt(counts + DAMPING[family])).astype(np.float32)
    return index, value[row], row


def _bag(parts: list[tuple[Ints, Floats, Ints]], rows: int) -> Bag:
    if not parts:
        return Bag(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), rows)
    index, value, row = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Bag(index, value, row, rows)


def _spread(keys: Longs, salt: int) -> Ints:
    """Table entries for keys of a family."""
    mixed = (keys + np.uint64((salt * 0x632BE59BD9B4E019 + 1) % (1 << 64))) * _MIX
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return (mixed >> np.uint64(64 - BITS)).astype(np.int64)


def _characters(points: Codes) -> list[tuple[int, Ints, Ints]]:
    """N-grams of 2 to 5 characters, digits being alike."""
    alike = np.where(points - 48 < 10, np.uint32(48), points)  # noqa: PLR2004  # ASCII digits
    grams = alike.astype(np.uint64)
    found = []
    for size in range(2, 6):
        if len(points) < size:
            break
        grams = grams[:-1] * np.uint64(0x100000001B3) + alike[size - 1 :]
        place = np.arange(len(grams))
        if size == 2:  # noqa: PLR2004  # two letters say something only where one is a syllable or a word
            place = np.flatnonzero(points[: len(grams)] >= FREE)
        found.append((CHARACTERS, _spread(grams[place], 16 + size), place))
    return found


def _words(text: Scanned) -> list[tuple[int, Ints, Ints]]:
    """Words and sequences of two and three."""
    padded = np.zeros(len(text.points) + 2, dtype=np.int8)
    padded[1:-1] = text.letter
    edges = np.diff(padded)
    start = np.flatnonzero(edges == 1)
    if not len(start):
        return []
    hashes = stretches(text.sums, start, np.flatnonzero(edges == -1))
    found = [(WORDS, _spread(hashes, 32), start)]
    run = hashes
    for size in range(2, 4):
        if len(start) < size:
            break
        run = run[:-1] * np.uint64(0x100000001B3) + hashes[size - 1 :]
        found.append((WORDS, _spread(run, 32 + size), start[: len(run)]))
    return found


def _meanings(hits: Hits, sentence: Ints) -> list[tuple[int, Ints, Ints]]:
    """Meanings, pairs of them in a sentence, and chains of those that follow closely."""
    if not len(hits.meaning):
        return []
    meaning, start = hits.meaning.astype(np.uint64), hits.start
    found = [(MEANINGS, _spread(meaning, 48), start)]
    one, two, three = np.uint64(1), np.uint64(64), np.uint64(4096)
    for gap in (1, 2):
        near = start[gap:] - start[:-gap] < _NEAR * gap
        chain = meaning[:-gap] * two + meaning[gap:] + one
        found.append((CHAINS, _spread(chain[near], 50), start[:-gap][near]))
    near = start[2:] - start[:-2] < 2 * _NEAR
    triple = meaning[:-2] * three + meaning[1:-1] * two + meaning[2:]
    found.append((CHAINS, _spread(triple[near], 52), start[:-2][near]))
    where = sentence[start]
    keys = np.unique(where * 64 + hits.meaning)
    place, kind = keys // 64, keys % 64
    if len(keys) <= 600:  # noqa: PLR2004  # pairs grow with the square
        left, right = np.nonzero((place[:, None] == place[None, :]) & (kind[:, None] < kind[None, :]))
        firsts = np.searchsorted(sentence, place[left])
        found.append((PAIRS, _spread((kind[left] * 64 + kind[right]).astype(np.uint64), 54), firsts))
    return found
