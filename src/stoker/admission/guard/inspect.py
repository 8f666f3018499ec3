"""Judges one text: how much it looks like an attack, by which rules, and of which class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import yaml

from stoker.admission.guard.analysis import Analysis, analyse
from stoker.admission.guard.classifier import Classifier
from stoker.admission.guard.rules import Rule, rules_from
from stoker.admission.guard.words import Words

LEARNED: Final = "learned pattern"
"""The class of a text in which the classifier alone sees an attack."""
ENCODED: Final = "encoded instruction"
"""The class of a text whose attack was found in what it decodes to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a text.

    Attributes:
        score: how much it looks like an attack, 0..1; the shipped threshold is 0.5.
        rules: ids of the rules that hit, those that weigh most first.
        category: the class of the strongest rule, "learned pattern" where none hit, "" where nothing speaks for one.
        classifier: what the classifier alone says, 0..1.
    """

    score: float
    rules: tuple[str, ...]
    category: str
    classifier: float


class Guard:
    """Rules and classifier together. Keeps no state between texts; threads may share one."""

    def __init__(self, words: Words, rules: tuple[Rule, ...], classifier: Classifier) -> None:
        self._words = words
        self._rules = rules
        self._classifier = classifier

    @classmethod
    def load(cls) -> Guard:
        """The guard that ships with the package. Later calls give the same one."""
        return _shipped()

    def inspect(self, text: str) -> Verdict:
        """Judges a text. Time grows linearly with its length, whatever it holds; an empty text scores near 0."""
        found = list(analyse(text, self._words, self._rules))
        classifier = max(self._classifier.score(piece) for piece in found)
        hits = {rule.id: (rule, inside) for piece in found for rule, inside in piece.hits}
        ordered = sorted(hits.values(), key=lambda hit: (-hit[0].score, hit[0].id))
        return Verdict(
            score=combined(classifier, found),
            rules=tuple(rule.id for rule, _ in ordered),
            category=_category(ordered, classifier),
            classifier=classifier,
        )


def combined(classifier: float, found: list[Analysis]) -> float:
    """The score of a text: the classifier's, or that of a rule that suffices alone. Both are 0..1."""
    return max([classifier, *(rule.score for piece in found for rule, _ in piece.hits if rule.sufficient)])


def _category(ordered: list[tuple[Rule, bool]], classifier: float) -> str:
    if ordered:
        return ENCODED if all(inside for _, inside in ordered) else ordered[0][0].category
    return LEARNED if classifier >= 0.5 else ""  # noqa: PLR2004  # where the classifier's scale says attack


def knowledge() -> tuple[Words, tuple[Rule, ...]]:
    """Words and rules as they ship."""
    words = Words(_yaml("words.yaml"))
    return words, rules_from(_yaml("rules.yaml"), words.names)


def rules_by_id() -> dict[str, Rule]:
    """The rules as they ship, by their ids."""
    return {rule.id: rule for rule in knowledge()[1]}


@cache
def _shipped() -> Guard:
    words, rules = knowledge()
    with resources.files(__package__).joinpath("weights.npz").open("rb") as file, np.load(file) as data:
        classifier = Classifier.unpack({name: data[name] for name in data.files})
    return Guard(words, rules, classifier)


def _yaml(name: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
