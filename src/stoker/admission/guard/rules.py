"""The rules of `rules.yaml`: each with an id, a class that a caller may be told, and a score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.admission.guard.words import Hits

SUFFICIENT = 0.8
"""From this score on a rule makes a text an attack without the classifier."""
_PLACES = 32  # places of each meaning that are looked at; bounds the work that a text full of such words makes


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `score` is 0..1; `within` is in characters; exactly one of `words` and `pattern` says what hits, and
    a pattern is tried only where one of `contains` comes.
    """

    id: str
    category: str
    score: float
    words: tuple[int, ...] = ()
    within: int = 0
    pattern: re.Pattern[str] | None = None
    contains: tuple[str, ...] = ()

    @property
    def sufficient(self) -> bool:
        """Whether it says enough by itself; other rules count through the classifier."""
        return self.score >= SUFFICIENT

    def where(self, text: str, places: Mapping[int, Sequence[int]]) -> int:
        """The position where the rule hits, or -1; `places` are where each meaning stands, ascending."""
        if self.pattern is not None:
            if not any(part in text for part in self.contains):  # a search for a plain string costs next to nothing
                return -1
            match = self.pattern.search(text)
            return match.start() if match else -1
        if any(word not in places for word in self.words):
            return -1
        for first in places[self.words[0]]:
            nearest = [min(places[word], key=lambda place: abs(place - first)) for word in self.words[1:]]
            if all(abs(place - first) <= self.within for place in nearest):
                return min(first, *nearest)
        return -1


def rules_from(rows: Sequence[Mapping[str, Any]], meanings: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of a parsed file.

    Raises:
        ValueError: a rule names a meaning that there is not, or says neither or both of `words` and `pattern`, or a
            pattern without `contains`.
    """
    rules = []
    for row in rows:
        words = tuple(meanings.index(word) for word in row.get("words", ()))
        pattern = row.get("pattern")
        if bool(words) == bool(pattern) or bool(pattern) != bool(row.get("contains")):
            raise ValueError(f"rule {row['id']}: either words, or a pattern and contains")
        rules.append(
            Rule(
                id=row["id"],
                category=row["class"],
                score=float(row["score"]),
                words=words,
                within=int(row.get("within", 0)),
                pattern=re.compile(pattern, re.DOTALL) if pattern else None,
                contains=tuple(row.get("contains", ())),
            )
        )
    return tuple(rules)


def places_of(hits: Hits) -> dict[int, list[int]]:
    """Where each meaning stands; of a meaning that comes very often only the first ones."""
    places: dict[int, list[int]] = {}
    for meaning, start in zip(hits.meaning.tolist(), hits.start.tolist(), strict=True):
        several = places.setdefault(meaning, [])
        if len(several) < _PLACES:
            several.append(start)
    return places
