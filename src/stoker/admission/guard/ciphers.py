"""Finds lines written in a Caesar cipher or Atbash, by how often each letter comes."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

LINES = 40
"""Lines or sentences of a text that are tried."""
_LETTERS = 18  # fewer letters say nothing about their language
_GAIN = 0.5  # nats a letter by which the shifted line must be likelier English than the line itself
_LINE = re.compile(r"[^.!?\n:'\"]{20,2000}")
# Letters of English prose in percent, a to z (Lewand, "Cryptological Mathematics", 2000, p. 36).
_ENGLISH = (
    8.2, 1.5, 2.8, 4.3, 12.7, 2.2, 2.0, 6.1, 7.0, 0.15, 0.77, 4.0, 2.4, 6.7, 7.5, 1.9, 0.095, 6.0, 6.3, 9.1, 2.8, 0.98,
    2.4, 0.15, 2.0, 0.074,
)  # fmt: skip


def _keys() -> NDArray[np.int64]:
    """Row k says which plain letter each cipher letter stands for: 26 shifts, the first of them none, and Atbash."""
    shifts = (np.arange(26)[None, :] - np.arange(26)[:, None]) % 26
    return np.vstack([shifts, 25 - np.arange(26)])


_KEYS: Final = _keys()
_LIKELIHOOD: Final = np.log(np.array(_ENGLISH) / 100)[_KEYS].T


def shifted(text: str) -> list[str]:
    """The plain text of those lines that a shift of the alphabet makes clearly likelier English."""
    lines = [match.group() for _, match in zip(range(LINES), _LINE.finditer(text), strict=False)]
    if not lines:
        return []
    counts = np.zeros((len(lines), 26))
    for row, line in enumerate(lines):
        codes = np.frombuffer(line.lower().encode("ascii", "ignore"), dtype=np.uint8)
        counts[row] = np.bincount(codes, minlength=128)[97:123]
    scores = counts @ _LIKELIHOOD
    best = scores.argmax(axis=1)
    totals = counts.sum(axis=1)
    gains = scores.max(axis=1) - scores[:, 0]
    return [
        _apply(lines[row], int(best[row]))
        for row in range(len(lines))
        if best[row]
        and totals[row] >= _LETTERS
        and gains[row] > _GAIN * totals[row]
        and totals[row] > len(lines[row]) / 2
    ]


def _apply(line: str, key: int) -> str:
    plain = "".join(chr(97 + letter) for letter in _KEYS[key])
    return line.translate(str.maketrans("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", plain + plain.upper()))
