"""Finds values that are given to the names of secrets: `password=...`, `"api_key": "..."`, `token: ...`.

`secret` and `token` are ordinary words too, and code gives secrets types and takes them from calls: such values stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

SURE_LENGTH: Final = 20
"""Characters from which a word is taken for a secret where words are spoken of too."""
SHORTEST: Final = 6
NO_SECRETS: Final = frozenset(
    {"str", "bytes", "string", "secretstr", "optional", "any", "none", "null", "true", "false", "required"}
)

# The first letter as a class: `re` looks for one fast, which takes a fifth of the time.
_NAME: Final = re.compile(
    r"""
    [pPsStTkKпП] (?i:(?<=p)(?: assw(?:or)?d | assphrase | asswort | wd ) | (?<=п)ароль
      | (?<=s)(?P<secret>ecret) | (?<=t)(?P<token>oken) | (?<=k)(?P<key>ey(?:[_-]?id)?) )
    \\*+["'`]?[ \t]{0,8}(?P<sign>=>|:=|[=:])(?P<space>[ \t]{0,8})
    """,
    re.VERBOSE,
)
_QUOTED: Final = re.compile(
    r"""(?P<open>\\{1,8}+["'`]) (?P<escaped>(?:(?!\\["'`])[^\n])++)
      | " (?P<double>(?:[^"\\\n]|\\.)++) | ' (?P<single>(?:[^'\\\n]|\\.)++) | ` (?P<back>(?:[^`\\\n]|\\.)++)""",
    re.VERBOSE,
)
_BARE: Final = re.compile(r"""[^\s"'`&<>]++""")
_DONE: Final = "[secret"  # what is left, after its end was stripped, of one that stands there already
_PEEK: Final = 256
"""Characters of a value that are looked at to judge it."""
_CODE: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:[.(\[].*)?", re.DOTALL)
_SURE_BEFORE: Final = {
    "secret": re.compile(r"(?:client|app)[_-]?\Z", re.IGNORECASE),
    "token": re.compile(r"(?:access|auth|refresh|bearer|session|api|id)[_-]?\Z", re.IGNORECASE),
    "key": re.compile(r"(?:api|access|secret|private)[_-]?\Z", re.IGNORECASE),
}
_KEY_BEFORE: Final = re.compile(r"(?:api|access|secret|private) \Z", re.IGNORECASE)
_LONGEST_BEFORE: Final = 8


def assigned_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each value, without its quotes, from left to right."""
    at = 0
    while (name := _NAME.search(text, at)) is not None:
        at = name.end()
        sure = _is_sure(name)
        if sure is None:
            continue
        quoted = _QUOTED.match(text, at, at + _PEEK)
        start, end = _in_quotes(quoted, sure=sure) if quoted else _without_quotes(name, at, sure=sure)
        if end > start:
            whole = (quoted.re if quoted else _BARE).match(text, at) if end == at + _PEEK else None
            yield start, whole.end() if whole else end
            at = whole.end() if whole else end


def _is_sure(name: re.Match[str]) -> bool | None:
    """Whether what the name has is a secret for sure; None: it is no name of a secret, such as `key` alone."""
    kind = name.lastgroup if name.lastgroup in _SURE_BEFORE else next((k for k in _SURE_BEFORE if name[k]), None)
    if kind is None:
        return True
    before = name.string[max(name.start() - _LONGEST_BEFORE, 0) : name.start()]
    if _SURE_BEFORE[kind].search(before):
        return True
    return False if kind != "key" or _KEY_BEFORE.search(before) else None


def _in_quotes(quoted: re.Match[str], *, sure: bool) -> tuple[int, int]:
    kind = next(kind for kind in ("escaped", "double", "single", "back") if quoted[kind])
    value = quoted[kind]
    keep = not sure and (len(value) < SHORTEST or " " in value)
    return (0, 0) if keep else quoted.span(kind)


def _without_quotes(name: re.Match[str], at: int, *, sure: bool) -> tuple[int, int]:
    found = _BARE.match(name.string, at, at + _PEEK)
    if found is None:
        return 0, 0
    value = found[0].rstrip("),;.]}\\")
    keep = value in {"", _DONE} or _is_code(name, found[0]) or (not sure and _is_word(name, value))
    return (0, 0) if keep else (at, at + len(value))


def _is_code(name: re.Match[str], value: str) -> bool:
    """Whether it is a type or a constant, or the call or attribute that a program takes a secret from."""
    code = _CODE.fullmatch(value.rstrip("),;]}"))
    if not name["space"] or code is None:
        return False
    taken = name["sign"] in {"=", ":="} and code.end("name") < len(code[0]) and not has_digit(value)
    return taken or code["name"].lower() in NO_SECRETS


def _is_word(name: re.Match[str], value: str) -> bool:
    """Whether it may be an ordinary word."""
    return len(value) < SHORTEST or (bool(name["space"]) and not has_digit(value))


def has_digit(text: str) -> bool:
    """Whether there is a digit in it, as in nearly every secret and in few words."""
    return any(map(str.isdigit, text))
