"""Cuts text into the pieces that `vectors` knows: words, or parts of rarer words, of English and Russian.

The cut of a word is the most probable one under a unigram language model (Kudo 2018, "Subword Regularization"),
found by dynamic programming. Words repeat, so their cuts are remembered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

READ_CHARACTERS = 2_000
"""Only the beginning of a text is read: what somebody wants stands there, and the time stays bounded."""
WORD_START = "▁"
LONGEST_WORD = 40
REMEMBERED_WORDS = 20_000
SHORT_NUMBER = 3

_TOKENS = re.compile(r"[a-z]+|[а-я]+|\d+|[?!]")  # noqa: RUF001
_ACCENTED = re.compile("[\u00c0-\u024f]")


def normalised(text: str) -> str:
    """The text's beginning in the one form that everything here compares: NFKC, case-folded, spaces single, no `ё`."""
    folded = unicodedata.normalize("NFKC", text[:READ_CHARACTERS]).casefold().replace("ё", "е")  # noqa: RUF001
    return " ".join(_ACCENTED.sub(lambda match: unicodedata.normalize("NFD", match[0])[0], folded).split())


class Pieces:
    """A vocabulary of pieces and the cut of a text into their numbers.

    Args:
        scores: log-probability of each piece; a piece that begins a word begins with `WORD_START`. The order of the
            mapping numbers the pieces. Four more numbers follow: short number, long number, `?`, `!`.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._entries = {piece: (number, score) for number, (piece, score) in enumerate(scores.items())}
        self._longest = max(map(len, self._entries), default=1)
        count = len(self._entries)
        self._marks = {"?": count + 2, "!": count + 3}
        self._numbers = (count, count + 1)
        self._cut = lru_cache(REMEMBERED_WORDS)(self._cut_word)

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self._entries) + 4

    def cut(self, text: str) -> list[int]:
        """The numbers of the pieces of a normalised text; what the vocabulary has no letters for is left out."""
        return [piece for word in _TOKENS.findall(text) for piece in self._cut(word[:LONGEST_WORD])]

    def _cut_word(self, word: str) -> tuple[int, ...]:
        if word in self._marks:
            return (self._marks[word],)
        if word.isdigit():
            return (self._numbers[len(word) >= SHORT_NUMBER],)
        marked = WORD_START + word
        whole = self._entries.get(marked)
        return (whole[0],) if whole else self._best_path(marked)

    def _best_path(self, word: str) -> tuple[int, ...]:
        """Viterbi: the best score of each prefix, and the piece that ends it."""
        best: list[tuple[float, int, int] | None] = [(0.0, 0, -1)] + [None] * len(word)
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - self._longest), end):
                before, entry = best[start], self._entries.get(word[start:end])
                if before is None or entry is None:
                    continue
                score, reached = before[0] + entry[1], best[end]
                if reached is None or score > reached[0]:
                    best[end] = (score, start, entry[0])
        pieces: list[int] = []
        end = len(word)
        while end > 0:
            step = best[end]
            if step is None:
                return ()
            pieces.append(step[2])
            end = step[1]
        return tuple(reversed(pieces))
