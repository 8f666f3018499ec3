"""How sure the classifier may be: a probability learned from texts that it had not seen, by cross-validation.

Three signs are weighed: the classifier's own odds, how like the text is to the nearest example of the chosen expert,
and how like to the nearest example that no expert should get. With few examples the weights stay near usual ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoker.routing.softmax import fit_logistic

Floats = NDArray[np.float32]

PRIOR = np.array([0.0, 0.9, 3.7, -1.6], np.float32)
"""Weights of: the constant, the log-odds, the likeness to the expert, the likeness to what is out of scope."""
STRENGTH = np.array([4.0, 40.0, 8.0, 8.0], np.float32)
MOST_ODDS = 8.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of one text.

    Attributes:
        chance: 0..1, the classifier's probability of the expert it prefers, with "out of scope" among the choices.
        like_expert: -1..1, cosine to the nearest example of that expert.
        like_none: -1..1, cosine to the nearest example that is out of scope; 0 without such.
    """

    chance: float
    like_expert: float
    like_none: float

    @property
    def row(self) -> list[float]:
        """As a row of the regression."""
        kept = min(max(self.chance, 1e-6), 1 - 1e-6)
        odds = float(np.log(kept / (1 - kept)))
        return [1.0, min(max(odds, -MOST_ODDS), MOST_ODDS), self.like_expert, self.like_none]


class Confidence:
    """The trained weights.

    Args:
        signs: of texts that were left out of training.
        right: whether the preferred expert was right, and the text in scope; as many as `signs`.
        weights: how much each of them counts.
    """

    def __init__(self, signs: Sequence[Signs], right: Sequence[bool], weights: Sequence[float]) -> None:
        self._weights = PRIOR
        if signs:
            rows = np.array([sign.row for sign in signs], np.float32)
            targets, counting = np.array(right, np.float32), np.array(weights, np.float32)
            self._weights = fit_logistic(rows, targets, counting, PRIOR, STRENGTH)

    def __call__(self, signs: Signs) -> float:
        """The probability, 0..1, that the preferred expert is right and the text in scope."""
        return float(1 / (1 + np.exp(-np.clip(np.dot(signs.row, self._weights), -30, 30))))
