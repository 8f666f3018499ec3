# ruff: noqa: RUF001  # look-alike letters are what this is about
"""One plain form for text that was disguised, so that rules and classifier need to know each word only once.

What people read as the same text reaches a server in many spellings: full-width letters, invisible characters between
letters, Cyrillic letters inside Latin words. Everything the guard looks at goes through here first, and so do the words
and patterns of its own files.
"""

from __future__ import annotations

import re
import unicodedata

EXPANSION = 2
"""A normalised text is at most this many times as long as the text (NFKC makes 18 characters of some single ones)."""

_CYRILLIC_AS_LATIN = dict(zip("авеѕіјкмнорстухԁԛԝһьӏ", "abesijkmhopctyxdqwhbl", strict=True))
_GREEK_AS_LATIN = dict(zip("αβεηικνορτυχωγδ", "abenikvoptuxwyd", strict=True))
_LATIN_AS_CYRILLIC = str.maketrans("abcehkmoptxy", "авсенкмортху")
_AS_LATIN = str.maketrans(_CYRILLIC_AS_LATIN | _GREEK_AS_LATIN)
_SMALL_CAPITALS = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True))
_ALIKE = {
    "d": "đ", "D": "Đ", "l": "ł", "L": "Ł", "o": "ø", "O": "Ø", "i": "ı", "ss": "ßẞ", "ae": "æÆ", "oe": "œŒ",
    "е": "ё", "Е": "Ё", "ا": "أإآٱ", "ي": "ىی", "ك": "ک", "'": "’‘ʼ´`", '"': "“”„«»", "-": "‐‑‒–—−", ".": "…",
}  # fmt: skip
_MIXED = re.compile(r"[a-z][\u0370-\u03ff\u0400-\u052f]|[\u0370-\u03ff\u0400-\u052f][a-z]")
_WORD = re.compile(r"[^\W\d_]+")
_SPACES = re.compile(r"[^\S\n]{2,}|[\t\r\f\v\u2028\u2029]")
_INVISIBLE = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x300, 0x36F), (0x61C, 0x61C), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB), (0xE0000, 0xE001F), (0xE007F, 0xE007F), (0xE0100, 0xE01EF),
    (0x640, 0x640), (0x64B, 0x652), (0x670, 0x670),
)  # fmt: skip


def _plain_table() -> dict[int, str | None]:
    """What each character becomes: nothing when it is invisible, the bare letter when it carries marks."""
    table: dict[int, str | None] = {}
    for first, last in ((0xC0, 0x24F), (0x1E00, 0x1EFF)):
        for code in range(first, last + 1):
            base = unicodedata.normalize("NFKD", chr(code))[0]
            if base.isascii() and base.isalpha():
                table[code] = base
    for start in (0x1F130, 0x1F150, 0x1F170, 0x1F1E6):  # letters in boxes, circles and flags
        table |= {start + index: chr(ord("a") + index) for index in range(26)}
    for zero in (0x660, 0x6F0, 0x966, 0x9E6):  # Arabic, Persian, Devanagari and Bengali digits
        table |= {zero + digit: str(digit) for digit in range(10)}
    table |= {0xE0000 + code: chr(code) for code in range(0x20, 0x7F)}  # tag characters: invisible ASCII
    table |= {ord(capital): letter for capital, letter in _SMALL_CAPITALS.items()}
    table |= {ord(letter): plain for plain, letters in _ALIKE.items() for letter in letters}
    for first, last in _INVISIBLE:
        table |= dict.fromkeys(range(first, last + 1))
    return table


_PLAIN = _plain_table()


def visible(text: str) -> str:
    """What a reader sees: NFKC, without invisible characters and accents; letter case and line breaks stay."""
    if text.isascii():
        return text if text.isprintable() else text.translate(_PLAIN)
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)[: EXPANSION * len(text)]


def fold(seen: str) -> str:
    """Lower case, one space for many, and no letters of one script inside words of another; for `visible` text."""
    text = seen.lower()
    if not text.isascii() and _MIXED.search(text):
        text = _WORD.sub(_one_script, text)
    return _SPACES.sub(" ", text)


def normalise(text: str) -> str:
    """The form in which texts are compared. Doing it again changes nothing more."""
    return fold(visible(text))


def _one_script(match: re.Match[str]) -> str:
    word = match.group()
    if word.isascii():
        return word
    latin = sum(letter.isascii() for letter in word)
    if latin == 0:
        return word
    return word.translate(_AS_LATIN if latin * 2 >= len(word) else _LATIN_AS_CYRILLIC)
