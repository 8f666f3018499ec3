"""The rules that come before the classifier: a request header, and words or phrases in the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from stoker.config import ExpertConfig
from stoker.routing.pieces import READ_CHARACTERS


class Rules:
    """The experts' headers and keywords, compiled once. Of several that match, the expert configured first wins."""

    def __init__(self, experts: Sequence[ExpertConfig]) -> None:
        self._headers: list[tuple[str, str, ExpertConfig]] = []
        self._keywords: list[tuple[re.Pattern[str], Mapping[str, str], ExpertConfig]] = []
        for expert in experts:
            if expert.header is not None:
                name, _, value = expert.header.partition(":")
                self._headers.append((name.strip().lower(), value.strip(), expert))
            written = {folded: keyword for keyword in expert.keywords if (folded := _folded(keyword))}
            if written:
                self._keywords.append((_pattern(tuple(written)), written, expert))

    def by_header(self, headers: Mapping[str, str]) -> ExpertConfig | None:
        """The expert whose header the request carries; names compare without regard to case, values exactly."""
        if not self._headers:
            return None
        given = {name.lower(): value.strip() for name, value in headers.items()}
        return next((expert for name, value, expert in self._headers if given.get(name) == value), None)

    def by_keyword(self, text: str) -> tuple[ExpertConfig, str] | None:
        """The expert one of whose keywords stands in the text as a whole word or phrase, and that keyword.

        Case, width and the kind of space do not count; the first 2,000 characters are read.
        """
        if not self._keywords:
            return None
        folded = _folded(text[:READ_CHARACTERS])
        for pattern, written, expert in self._keywords:
            found = pattern.search(folded)
            if found is not None:
                return expert, written[found[0]]
        return None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """Any of the keywords as a whole word, the longer ones first."""
    longest = "|".join(re.escape(keyword) for keyword in sorted(keywords, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{longest})(?!\w)")
