"""Which expert a text is for, and how sure that is: a classifier trained at start from the configuration's examples.

A softmax regression compares the text with the examples in two ways: by meaning (`vectors`), which carries over to
other words and from English to Russian, and by n-grams (`ngrams`), which hold the examples' own words. Texts that are
nobody's business are one more class: the configured `out_of_scope` examples, and everyday requests that come with the
package, less those that resemble an expert's examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoker.routing.background import background
from stoker.routing.confidence import Confidence, Signs
from stoker.routing.linear import product
from stoker.routing.ngrams import BUCKETS, Sparse, Weighting, counted, products
from stoker.routing.pieces import normalised
from stoker.routing.softmax import fit, probabilities
from stoker.routing.vectors import Encoder, shipped

Floats = NDArray[np.float32]
Indexes = NDArray[np.int64]

MOST_EXAMPLES = 2_000
"""More examples than this are thinned evenly, so that training stays within seconds."""
FOLDS = 5
PENALTY = 1 / 15
MEANING, SHARPNESS = 4.0, 3.0
"""The kernel of meaning is MEANING * exp(SHARPNESS * (cosine - 1)), so that near examples count most."""
LOOKS = 1.0
"""Weight of the n-grams' inner product in the kernel."""
BACKGROUND_WEIGHT, BACKGROUND_SHARE = 0.3, 0.5
"""Weight of one of the package's own requests beside an example's 1; all together at most this share of theirs."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The experts for one text.

    Attributes:
        scores: name and probability 0..1 of each expert, best first; they add up to 1. Empty without experts.
        confidence: 0..1, the calibrated probability that the best one is right and the text in scope.
    """

    scores: tuple[tuple[str, float], ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An example that a text resembles: whose it is (None: out of scope), its words, and the cosine, -1..1."""

    expert: str | None
    text: str
    likeness: float


@dataclass(frozen=True, slots=True)
class _Examples:
    """What is learned from: one entry an example. `labels` number the experts; their count stands for out of scope."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Indexes
    weights: Floats
    checked: NDArray[np.bool_]
    vectors: Floats

    @property
    def classes(self) -> int:
        return len(self.names) + bool((self.labels == len(self.names)).any())


class Classifier:
    """Ranks experts. Made by `train`; immutable and thread-safe after that."""

    def __init__(self, encoder: Encoder, examples: _Examples) -> None:
        self._encoder = encoder
        self._examples = examples
        grams = [counted(normalised(text)) for text in examples.texts]
        self._weighting = Weighting(grams)
        looks = [self._weighting.apply(text) for text in grams]
        self._confidence = Confidence((), (), ())
        self._coefficients, self._looks = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        if examples.texts:
            self._learn(looks)

    @classmethod
    def train(
        cls,
        examples: Mapping[str, Sequence[str]],
        descriptions: Mapping[str, str] | None = None,
        out_of_scope: Sequence[str] = (),
    ) -> Classifier:
        """Train from texts; the same texts give the same classifier.

        Args:
            examples: requests that each expert should get. One without examples needs a description to be ranked.
            descriptions: what an expert is good at; read like one more example.
            out_of_scope: requests that no expert should get.
        """
        encoder = shipped()
        return cls(encoder, _gather(encoder, examples, descriptions or {}, out_of_scope))

    def rank(self, text: str) -> Ranking:
        """The experts for a text, of which about 2,000 characters are read."""
        names = self._examples.names
        if not names:
            return Ranking((), 0.0)
        clean = normalised(text)
        meaning, looks = self._encoder.encode(clean), self._weighting.apply(counted(clean))
        likeness = self._examples.vectors @ meaning
        logits = (_kernel(likeness) + np.float32(1)) @ self._coefficients + looks.values @ self._looks[looks.indexes]
        chances = probabilities(logits)
        inside = chances[: len(names)]
        order = np.argsort(-inside, kind="stable")
        total = float(inside.sum()) or 1.0
        best = int(order[0])
        signs = self._signs(float(inside[best]), best, likeness, self._examples.labels)
        scores = tuple((names[index], float(inside[index]) / total) for index in order)
        return Ranking(scores, self._confidence(signs) if clean else 0.0)

    def nearest(self, text: str, count: int = 3) -> tuple[Neighbour, ...]:
        """The examples that a text resembles most, best first."""
        examples = self._examples
        if not examples.texts:
            return ()
        likeness = examples.vectors @ self._encoder.encode(normalised(text))
        names = (*examples.names, None)
        return tuple(
            Neighbour(names[examples.labels[index]], examples.texts[index], float(likeness[index]))
            for index in np.argsort(-likeness, kind="stable")[:count]
        )

    def _learn(self, looks: Sequence[Sparse]) -> None:
        """Fit the weights on all examples, and the confidence on those that folds left out."""
        examples = self._examples
        # The added 1 is a constant feature: the classes' biases.
        likeness = examples.vectors @ examples.vectors.T
        kernel = _kernel(likeness) + np.float32(LOOKS) * products(looks) + np.float32(1)
        targets = np.eye(examples.classes, dtype=np.float32)[examples.labels]
        self._coefficients = fit(kernel, targets, examples.weights, PENALTY)
        self._looks = np.zeros((2 * BUCKETS, examples.classes), np.float32)
        for look, row in zip(looks, self._coefficients, strict=True):
            self._looks[look.indexes] += np.float32(LOOKS) * look.values[:, None] * row
        self._confidence = Confidence(*self._left_out(kernel, targets))

    def _left_out(self, kernel: Floats, targets: Floats) -> tuple[list[Signs], list[bool], list[float]]:
        """What the classifier says of each example when trained without its fold, and whether that is right."""
        examples = self._examples
        signs: list[Signs] = []
        right: list[bool] = []
        weights: list[float] = []
        folds = _folds(examples)
        experts = len(examples.names)
        for fold in range(FOLDS):
            tested = np.flatnonzero((folds == fold) & examples.checked)
            kept = np.flatnonzero(folds != fold)
            if not len(tested) or not len(kept):
                continue
            trained = fit(kernel[np.ix_(kept, kept)], targets[kept], examples.weights[kept], PENALTY)
            chances = probabilities(product(kernel[np.ix_(tested, kept)], trained))[:, :experts]
            likeness = examples.vectors[tested] @ examples.vectors[kept].T
            for row, index in enumerate(tested):
                best = int(chances[row].argmax())
                signs.append(self._signs(float(chances[row, best]), best, likeness[row], examples.labels[kept]))
                right.append(best == int(examples.labels[index]))
                weights.append(float(examples.weights[index]))
        return signs, right, weights

    def _signs(self, chance: float, best: int, likeness: Floats, labels: Indexes) -> Signs:
        mine, none = likeness[labels == best], likeness[labels == len(self._examples.names)]
        return Signs(chance, float(mine.max(initial=-1)), float(none.max(initial=-1)) if len(none) else 0.0)


def _kernel(likeness: Floats) -> Floats:
    result: Floats = np.float32(MEANING) * np.exp(np.float32(SHARPNESS) * (likeness - np.float32(1)))
    return result


def _gather(
    encoder: Encoder,
    examples: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, str],
    out_of_scope: Sequence[str],
) -> _Examples:
    """All texts that are learned from, thinned where there are too many, with the package's own ones added."""
    names = tuple(name for name in {**examples, **descriptions} if examples.get(name) or descriptions.get(name))
    rows = [(text, names.index(name), True) for name in names for text in dict.fromkeys(examples.get(name, ()))]
    rows += [(text, len(names), True) for text in dict.fromkeys(out_of_scope)]
    rows = [row for row in rows if row[0].strip()]
    if len(rows) > MOST_EXAMPLES:
        rows = [rows[int(index)] for index in np.linspace(0, len(rows) - 1, MOST_EXAMPLES)]
    rows += [(descriptions[name], names.index(name), False) for name in names if descriptions.get(name)]
    vectors = encoder.encode_all([text for text, _, _ in rows])
    labels = np.array([label for _, label, _ in rows], np.int64)
    far = background(encoder, vectors[labels < len(names)]) if names else ((), vectors[:0])
    count = len(far[0])
    weight = min(BACKGROUND_WEIGHT, BACKGROUND_SHARE * len(rows) / max(1, count))
    return _Examples(
        names,
        (*(text for text, _, _ in rows), *far[0]),
        np.concatenate((labels, np.full(count, len(names), np.int64))),
        np.concatenate((np.ones(len(rows), np.float32), np.full(count, weight, np.float32))),
        np.array([*(checked for _, _, checked in rows), *[not out_of_scope] * count], np.bool_),
        np.concatenate((vectors, far[1])),
    )


def _folds(examples: _Examples) -> Indexes:
    """A fold for each example, every class spread evenly; -1, always trained with, for one alone in its class."""
    folds = np.full(len(examples.labels), -1, np.int64)
    for label in range(examples.classes):
        members = np.flatnonzero((examples.labels == label) & examples.checked)
        if len(members) > 1:
            folds[members] = np.arange(len(members)) % FOLDS
    return folds
