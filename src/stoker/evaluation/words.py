"""Whether words occur in an answer: as whole words, without regard to case, width, spaces and kinds of quotes."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

_SAME: Final = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-"})
# Han, kana, Hangul, Thai, Lao, Myanmar, Khmer: written without spaces between words, or with endings grown to them.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)


def folded(text: str) -> str:
    """A text as it is compared: one space for any white space, one form for each letter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SAME).split())


def occurs(phrase: str, text: str) -> bool:
    """Whether a phrase occurs in a text that is `folded` already.

    Its ends must be ends of words: `4` is not in `14`, `3.14` or `4,000`, and `ice` not in `nice`. An end that is no
    letter, digit or underscore, or of a script without spaces between words, may stand anywhere: `c++`, `-5`, `東京`.
    """
    return _pattern(folded(phrase)).search(text) is not None


@lru_cache(maxsize=4096)
def _pattern(phrase: str) -> re.Pattern[str]:
    if not phrase:
        return re.compile("(?!)")  # nothing to find is not found
    before = after = ""
    if _bounded(phrase[0]):
        before = r"(?<!\w)(?<!\d[.,])" if phrase[0].isdigit() else r"(?<!\w)"
    if _bounded(phrase[-1]):
        after = r"(?!\w)(?![.,]\d)" if phrase[-1].isdigit() else r"(?!\w)"
    return re.compile(before + re.escape(phrase) + after)


def _bounded(end: str) -> bool:
    return (end.isalnum() or end == "_") and _UNSPACED.match(end) is None
