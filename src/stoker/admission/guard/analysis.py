"""Everything that is known of a text before it is judged: decoded pieces, rules that hit, features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from stoker.admission.guard.decode import pieces
from stoker.admission.guard.features import Bag, bags, sentences
from stoker.admission.guard.normalise import fold, visible
from stoker.admission.guard.rules import Rule, places_of
from stoker.admission.guard.words import PIECE, Words, scan

OVERLAP: Final = 512
"""Characters that neighbouring pieces of a long text share, so that nothing is cut in two."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """One piece of a text: features of the whole and of its sentences, and the rules that hit.

    `within` tells for each rule whether it hit in decoded text rather than in the text as it stands.
    """

    whole: Bag
    parts: Bag
    hits: tuple[tuple[Rule, bool], ...]


def analyse(text: str, words: Words, rules: tuple[Rule, ...]) -> Iterator[Analysis]:
    """Takes the text apart. A long text comes in overlapping pieces, so that time grows no faster than length."""
    step = PIECE // 2 - OVERLAP
    last = max(len(text) - OVERLAP, 1)
    for start in range(0, last, step):
        yield _analyse(text[start : start + step + OVERLAP], words, rules)


def _analyse(text: str, words: Words, rules: tuple[Rule, ...]) -> Analysis:
    seen = visible(text)
    found = pieces(seen)
    plain = fold(seen)[: PIECE // 2]
    parts, borders = [plain], []
    size = len(plain)
    for piece in found:
        decoded = fold(visible(piece.text))
        if size + len(decoded) + 1 > PIECE:
            break
        borders.append(size + 1)
        parts.append(decoded)
        size += len(decoded) + 1
    whole = "\n".join(parts)
    scanned = scan(whole or " ")
    hits = words.find(scanned)
    places = places_of(hits)
    struck = [(number, rule, rule.where(whole, places)) for number, rule in enumerate(rules)]
    struck = [entry for entry in struck if entry[2] >= 0]
    lines = np.array([place + 1 for place, character in enumerate(whole) if character == "\n"], dtype=np.int64)
    sentence = sentences(scanned.points, lines, np.array(borders, dtype=np.int64))
    numbered = [(number, place) for number, _, place in struck]
    bag, sentence_bag = bags(scanned, sentence, hits, numbered)
    return Analysis(bag, sentence_bag, tuple((rule, place > len(plain)) for _, rule, place in struck))
