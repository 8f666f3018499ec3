"""How good a classifier is on labelled texts: accuracy in scope, AUROC of out-of-scope, and who is taken for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoker.routing.classifier import Classifier
from stoker.routing.examples import OUT_OF_SCOPE, Row


@dataclass(frozen=True, slots=True)
class Judged:
    """One row, and what the classifier said of it."""

    wanted: str
    language: str
    best: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one set of rows.

    Attributes:
        rows: how many there are.
        accuracy: share 0..1 of the rows in scope whose best expert is the right one; None without such rows.
        auroc: area under the ROC curve 0..1 of the confidence, in scope against out of scope: the probability that a
            text in scope gets the higher one (ties count half; Mann and Whitney 1947). None unless both occur.
    """

    rows: int
    accuracy: float | None
    auroc: float | None


def judge(classifier: Classifier, rows: Sequence[Row]) -> list[Judged]:
    """Let the classifier rank each labelled row; rows without a domain are left out."""
    judged = []
    for row in rows:
        if row.domain is not None:
            ranking = classifier.rank(row.text)
            best = ranking.scores[0][0] if ranking.scores else OUT_OF_SCOPE
            judged.append(Judged(row.domain, row.language or "-", best, ranking.confidence))
    return judged


def figures(judged: Sequence[Judged]) -> Figures:
    """The figures of these rows."""
    inside = [row for row in judged if row.wanted != OUT_OF_SCOPE]
    outside = [row.confidence for row in judged if row.wanted == OUT_OF_SCOPE]
    accuracy = sum(row.best == row.wanted for row in inside) / len(inside) if inside else None
    return Figures(len(judged), accuracy, auroc([row.confidence for row in inside], outside))


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float | None:
    """The probability that one of `inside` is higher than one of `outside`; None where one of them is empty."""
    if not inside or not outside:
        return None
    ranked = np.sort(np.array(outside))
    below = np.searchsorted(ranked, inside, "left") + np.searchsorted(ranked, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))


def confusion(judged: Sequence[Judged], threshold: float) -> Counter[tuple[str, str]]:
    """How often each (wanted, given) occurs, where below the threshold `oos` is given."""
    return Counter((row.wanted, row.best if row.confidence >= threshold else OUT_OF_SCOPE) for row in judged)
