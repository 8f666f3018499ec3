"""Finds payment cards in texts: 13 to 19 digits, alone or in groups, with the right check digit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

DIGITS: Final = range(13, 20)

# The digit stands first, what must not stand before it second: `re` looks for a first character fast. Not before it:
# letters and digits, a decimal point, and the plus of a telephone number. The networks' numbers begin with 2 to 6.
_WRITTEN: Final = re.compile(
    r"[2-6](?<![^\W_].)(?<![0-9][.,].)(?<!\+.)[0-9]{2,18}+(?:[ -][0-9]{3,16}+){0,4}(?:[ -][0-9]{1,2}(?![0-9]))?"
)
_GAP: Final = re.compile("[ -]")
_LONGER: Final = re.compile(r"-?[^\W_]|[.,][0-9]")  # behind a card: it was a part of a UUID, a name or a fraction
_DOUBLED: Final = str.maketrans("0123456789", "0246813579")


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each, from left to right."""
    at = 0
    while (found := _WRITTEN.search(text, at)) is not None:
        start, written = found.start(), found[0]
        length = _length(written, text, start) if len(written) >= DIGITS.start else 0
        if length:
            yield start, start + length
        at = start + (length or 1)


def _length(written: str, text: str, start: int) -> int:
    """Characters of the longest card at the beginning of what is written; 0: there is none."""
    gaps = [gap.start() for gap in _GAP.finditer(written)]
    for number, length in reversed(list(enumerate([*gaps, len(written)]))):
        if length - number not in DIGITS or _LONGER.match(text, start + length):
            continue
        if passes_luhn(written[:length].replace(" ", "").replace("-", "")):
            return length
    return 0


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others: ISO/IEC 7812-1."""
    summed = digits[-1::-2] + digits[-2::-2].translate(_DOUBLED)
    return sum(summed.encode()) % 10 == len(summed) * ord("0") % 10
