"""Looks into encodings in which instructions hide: what they decode to is inspected like any other text.

Each decoder costs one quick search where its encoding is absent, decodes a bounded number of pieces where it is
present, and gives only what reads as text. Nothing decoded is an attack by itself; base64 of a sales report is a
sales report.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from stoker.admission.guard.ciphers import shifted

PIECES = 12
"""Pieces of each encoding that are looked into."""
DEPTH = 2
"""Encodings within encodings."""

_LONG = 16
_FEW = 4
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_BASE32 = re.compile(r"\b[A-Z2-7]{24,}={0,6}")
_HEX = re.compile(r"(?:(?:\\x|0x)?[0-9a-fA-F]{2}[ :,]?){8,}")
_BINARY = re.compile(r"(?:[01]{8}[ ,]?){5,}")
_DECIMAL = re.compile(r"(?:\d{2,3}[ ,]{1,2}){8,}\d{2,3}")
_MORSE = re.compile(r"(?:[.-]{1,6}(?: ?/ ?| ){1}){5,}[.-]{1,6}")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENTITY = re.compile(r"&#x?[0-9A-Fa-f]{2,6};")
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})")
_SPACED = re.compile(r"(?<!\w)(?:\w[ ._*|-]){4,}\w(?!\w)")
_SEPARATORS = re.compile(r"[ ._*|-]")
_LEET_WORD = re.compile(r"(?=[a-z]*[0-9@$])(?=[0-9@$]{0,3}[a-z])[a-z0-9@$]{2,20}[.,;:!?]?$", re.IGNORECASE)
_LEET = str.maketrans("0134578@$", "oieastbas")
_PIG = re.compile(
    r"\b([a-z']+?)(way|yay|(?:th|sh|ch|wh|qu|st|str|sp|pr|pl|tr|br|bl|cr|cl|dr|fr|fl|gr|gl|sl|[bcdfghjklmnpqrstvwxyz])ay)\b",
    re.IGNORECASE,
)
_BACKWARDS = [
    "erongi",
    "drageris",
    "suoiverp",
    "snoitcurtsni",
    "tpmorp",
    "drowssap",
    "laever",
    "terces",
    "уйуриронги",
    "еищудыдерп",
    "иицкуртсни",
    "ьлорап",
]
_MORSE_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. ..--.. .-.-.- --..--"
)
_MORSE_LATIN = dict(zip(_MORSE_CODES.split(), "abcdefghijklmnopqrstuvwxyz0123456789?.,", strict=True))
_CYRILLIC_CODES = (
    ".- -... .-- --. -.. . ...- --.. .. .--- -.- .-.. -- -. --- .--. .-. ... - ..- ..-. .... -.-. ---. ---- --.- -.-- "
    "-..- ..-.. ..-- .-.-"
)
_MORSE_CYRILLIC = dict(zip(_CYRILLIC_CODES.split(), "абвгдежзийклмнопрстуфхцчшщыьэюя", strict=True))


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that was found inside another, and the encoding it was found in."""

    encoding: str
    text: str


def pieces(text: str, depth: int = DEPTH) -> tuple[Piece, ...]:
    """What the text holds in encodings, those within encodings too; together no longer than twice the text."""
    found: list[Piece] = []
    left = 2 * len(text)
    for piece in _decoders(text):
        if len(piece.text) > left:
            continue
        left -= len(piece.text)
        found.append(piece)
        if depth > 1 and piece.encoding in {"base64", "base32", "hex", "percent"}:
            found += [Piece(piece.encoding, inner.text) for inner in pieces(piece.text, depth - 1)]
    return tuple(found)


def _decoders(text: str) -> Iterator[Piece]:
    tokens = text.split()
    long = any(len(token) >= _LONG for token in tokens)
    if long:
        yield from _base64(text)
    if long or sum(token[0].isdigit() for token in tokens) >= _FEW:
        yield from _octets(text)
    if sum(token[0] in ".-" for token in tokens) >= _FEW:
        yield from _morse(text)
    if long or sum(len(token) == 1 for token in tokens) >= _FEW:
        yield from _spaced(text)
    yield from _escapes(text)
    yield from _disguised(text, tokens)
    yield from (Piece("cipher", plain) for plain in shifted(text))


def _base64(text: str) -> Iterator[Piece]:
    for match in _some(_BASE64, text):
        token = match.rstrip("=").replace("-", "+").replace("_", "/")
        plain = _readable(_decode64(token[: len(token) - (len(token) % 4 == 1)]))
        if plain:
            yield Piece("base64", plain)
    for match in _some(_BASE32, text):
        token = match.rstrip("=")
        try:
            plain = _readable(base64.b32decode(token + "=" * (-len(token) % 8)))
        except binascii.Error:
            continue
        if plain:
            yield Piece("base32", plain)


def _decode64(token: str) -> bytes:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        return b""


def _octets(text: str) -> Iterator[Piece]:
    for match in _some(_HEX, text):
        digits = re.sub(r"\\x|0x|[ :,]", "", match)
        plain = _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))
        if plain:
            yield Piece("hex", plain)
    for match in _some(_BINARY, text):
        plain = _readable(bytes(int(octet, 2) for octet in re.findall("[01]{8}", match)))
        if plain:
            yield Piece("binary", plain)
    for match in _some(_DECIMAL, text):
        values = [int(number) for number in re.findall(r"\d+", match)]
        plain = _readable(bytes(values)) if max(values) <= 0xFF else ""  # noqa: PLR2004  # an octet
        if plain:
            yield Piece("decimal", plain)


def _morse(text: str) -> Iterator[Piece]:
    for match in _some(_MORSE, text):
        words = [word.split() for word in match.split("/")]
        for table in (_MORSE_LATIN, _MORSE_CYRILLIC):
            yield Piece("morse", " ".join("".join(table.get(code, "") for code in word) for word in words))


def _escapes(text: str) -> Iterator[Piece]:
    several = 4
    if text.count("%") >= several and len(_PERCENT.findall(text)) >= several:
        yield Piece("percent", urllib.parse.unquote_plus(text, errors="ignore"))
    if text.count("&#") >= several and len(_ENTITY.findall(text)) >= several:
        yield Piece("entities", html.unescape(text))
    if text.count("\\u") >= several:
        plain = _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), text)
        yield Piece("escapes", plain.encode("utf-16", "surrogatepass").decode("utf-16", "ignore"))


def _spaced(text: str) -> Iterator[Piece]:
    spaced = [_SEPARATORS.sub("", match) for match in _some(_SPACED, text)]
    if spaced:
        yield Piece("spaced letters", " ".join(spaced) + "\n" + _SPACED.sub(_joined, text))


def _disguised(text: str, tokens: list[str]) -> Iterator[Piece]:
    odd = [token for token in tokens if not token.isalpha() and _LEET_WORD.match(token)]
    if len(odd) > _FEW or (len(odd) > 1 and 3 * len(odd) > len(tokens)):  # fewer are part numbers
        yield Piece("digits as letters", text.translate(_LEET))
    lower = text.lower()
    if any(word in lower for word in _BACKWARDS):
        yield Piece("backwards", text[::-1])
    if 2 * sum(token.rstrip(".,;:!?'\"")[-2:] == "ay" for token in tokens) > len(tokens) > 1:
        yield Piece("pig latin", _PIG.sub(lambda match: _unpig(match.group(1), match.group(2)), text))


def _joined(match: re.Match[str]) -> str:
    return " " + _SEPARATORS.sub("", match.group()) + " "


def _unpig(stem: str, tail: str) -> str:
    return stem if tail in {"way", "yay"} else tail[:-2] + stem


def _some(pattern: re.Pattern[str], text: str) -> list[str]:
    found: list[str] = []
    for match in pattern.finditer(text):
        found.append(match.group())
        if len(found) == PIECES:
            break
    return found


def _readable(octets: bytes) -> str:
    """The octets as text if they are UTF-8 that somebody could read, else nothing."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        return ""
    letters = sum(character.isalpha() or character == " " for character in text)
    return text if len(text) > 5 and text.isprintable() and letters > 0.7 * len(text) else ""  # noqa: PLR2004
