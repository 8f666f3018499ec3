"""A logistic regression over hashed features, trained by `training/guard.py` and shipped as `weights.npz`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stoker.admission.guard.analysis import Analysis
from stoker.admission.guard.features import Bag, Floats


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights of the features, and how a sum of them becomes a score.

    Attributes:
        weights: one for each entry of the features' table.
        whole, part: constants added for a whole text, and for a sentence judged alone.
        zero, slope: a sum of `zero` scores 0.5, and `slope` says how fast scores move away from there.
    """

    weights: Floats
    whole: float
    part: float
    zero: float
    slope: float

    def logit(self, piece: Analysis) -> float:
        """The stronger of two sums: the whole text's, or its worst sentence's."""
        best = self.whole + float(self._sums(piece.whole)[0])
        if piece.parts.rows:
            best = max(best, self.part + float(self._sums(piece.parts).max()))
        return best

    def score(self, piece: Analysis) -> float:
        """How much it looks like an attack, 0..1."""
        return self.squash(self.logit(piece))

    def squash(self, logit: float) -> float:
        """The score of a sum."""
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, self.slope * (logit - self.zero)))))

    def _sums(self, bag: Bag) -> Any:
        return np.bincount(bag.row, weights=self.weights[bag.index] * bag.value, minlength=bag.rows)

    def pack(self) -> dict[str, Any]:
        """Arrays to write to a file: weights in half precision, constants in double."""
        constants = np.array([self.whole, self.part, self.zero, self.slope])
        return {"weights": self.weights.astype(np.float16), "constants": constants}

    @classmethod
    def unpack(cls, arrays: Mapping[str, Any]) -> Classifier:
        """The classifier from such arrays."""
        return cls(arrays["weights"].astype(np.float32), *(float(number) for number in arrays["constants"]))
