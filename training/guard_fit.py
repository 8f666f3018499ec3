# ruff: noqa: INP001  # scripts that stand beside each other, not a package
"""Fits the guard's classifier: a logistic regression with L2 on bags of features, by L-BFGS, with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoker.admission.guard.analysis import Analysis
from stoker.admission.guard.classifier import Classifier
from stoker.admission.guard.features import SIZE, Bag

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

L2 = 0.15
"""Penalty on squared weights, beside the mean loss multiplied by the number of texts."""
PARTS_WEIGHT = 0.3
"""What all sentences of a harmless text weigh together, the text itself weighing 1."""
TINY = 1e-12
ROUNDS = 1
"""How often the worst sentence of each attack is added as an attack of its own."""


@dataclass(frozen=True, slots=True)
class Example:
    """One piece of a text, ready to learn from. `weight` says how much it counts."""

    analysis: Analysis
    attack: bool
    weight: float


@dataclass(slots=True)
class _Rows:
    """Bags put together to one sparse matrix, with what is known of each of its rows."""

    index: Ints
    value: Doubles
    row: Ints
    label: Doubles
    weight: Doubles
    part: NDArray[np.bool_]

    @property
    def count(self) -> int:
        return len(self.label)

    def sums(self, weights: Doubles) -> Doubles:
        return np.bincount(self.row, weights=self.value * weights[self.index], minlength=self.count)

    def back(self, slopes: Doubles, size: int) -> Doubles:
        return np.bincount(self.index, weights=self.value * slopes[self.row], minlength=size)


def fit(examples: Sequence[Example], *, l2: float = L2) -> Classifier:
    """The classifier for these examples; its scale is left at 1 and its zero at 0. Deterministic."""
    classifier = _fit(_rows(examples, {}), l2)
    for _ in range(ROUNDS):
        worst = {number: _worst(classifier, example) for number, example in enumerate(examples) if example.attack}
        classifier = _fit(_rows(examples, {number: part for number, part in worst.items() if part >= 0}), l2)
    return classifier


def _worst(classifier: Classifier, example: Example) -> int:
    """The sentence of an attack that looks most like one, or -1 where it is but one sentence."""
    bag = example.analysis.parts
    if not bag.rows:
        return -1
    sums = np.bincount(bag.row, weights=classifier.weights[bag.index] * bag.value, minlength=bag.rows)
    return int(sums.argmax())


def _rows(examples: Sequence[Example], chosen: dict[int, int]) -> _Rows:
    index, value, row, label, weight, part = [], [], [], [], [], []
    count = 0

    def add(bag: Bag, example: Example, total: float, is_part: bool) -> None:
        nonlocal count
        index.append(bag.index)
        value.append(bag.value.astype(np.float64))
        row.append(bag.row + count)
        label.append(np.full(bag.rows, float(example.attack)))
        weight.append(np.full(bag.rows, total / max(bag.rows, 1)))
        part.append(np.full(bag.rows, is_part))
        count += bag.rows

    for number, example in enumerate(examples):
        add(example.analysis.whole, example, example.weight, is_part=False)
        if not example.attack:
            add(example.analysis.parts, example, PARTS_WEIGHT * example.weight, is_part=True)
        elif number in chosen:
            add(_only(example.analysis.parts, chosen[number]), example, PARTS_WEIGHT * example.weight, is_part=True)
    rows = _Rows(*(np.concatenate(several) for several in (index, value, row, label, weight, part)))
    for side in (0.0, 1.0):  # both classes weigh alike
        rows.weight[rows.label == side] *= 0.5 * count / rows.weight[rows.label == side].sum()
    return rows


def _only(bag: Bag, part: int) -> Bag:
    kept = bag.row == part
    return Bag(bag.index[kept], bag.value[kept], np.zeros(int(kept.sum()), np.int64), 1)


def _fit(rows: _Rows, l2: float) -> Classifier:
    seen = np.bincount(np.unique(rows.row * SIZE + rows.index) % SIZE, minlength=SIZE)
    used = np.flatnonzero(seen > 1)  # what one text alone has teaches nothing about others
    place = np.full(SIZE, len(used), dtype=np.int64)
    place[used] = np.arange(len(used))
    kept = place[rows.index] < len(used)
    small = _Rows(place[rows.index[kept]], rows.value[kept], rows.row[kept], rows.label, rows.weight, rows.part)
    size = len(used)

    def loss(point: Doubles) -> tuple[float, Doubles]:
        weights, constants = point[:size], point[size:]
        logits = small.sums(weights) + constants[0] + constants[1] * small.part
        signs = 1 - 2 * small.label
        total = float(small.weight @ np.logaddexp(0, signs * logits))
        slopes = small.weight * (1 / (1 + np.exp(-logits)) - small.label)
        gradient = np.concatenate([small.back(slopes, size) + l2 * weights, [slopes.sum(), slopes[small.part].sum()]])
        return total + 0.5 * l2 * float(weights @ weights), gradient

    point = minimise(loss, np.zeros(size + 2))
    weights = np.zeros(SIZE, dtype=np.float32)
    weights[used] = point[:size].astype(np.float16)  # as they will be shipped
    return Classifier(weights, float(point[size]), float(point[size] + point[size + 1]), 0.0, 1.0)


def minimise(
    loss: Callable[[Doubles], tuple[float, Doubles]], point: Doubles, *, steps: int = 100, memory: int = 8
) -> Doubles:
    """Minimum of a smooth convex function by L-BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4)."""
    value, gradient = loss(point)
    moves: list[tuple[Doubles, Doubles]] = []
    for _ in range(steps):
        direction = -_two_loops(gradient, moves)
        slope = float(direction @ gradient)
        length = 1.0 if moves else 1.0 / max(float(np.abs(gradient).max()), 1.0)
        for _ in range(30):
            there = point + length * direction
            new_value, new_gradient = loss(there)
            if new_value <= value + 1e-4 * length * slope:
                break
            length *= 0.5
        step, change = there - point, new_gradient - gradient
        if float(step @ change) > TINY:
            moves = [*moves, (step, change)][-memory:]
        done = value - new_value < 1e-5 * max(abs(value), 1.0)
        point, value, gradient = there, new_value, new_gradient
        if done:
            break
    return point


def _two_loops(gradient: Doubles, moves: Sequence[tuple[Doubles, Doubles]]) -> Doubles:
    result = gradient.copy()
    factors = []
    for step, change in reversed(moves):
        factor = float(step @ result) / float(step @ change)
        factors.append(factor)
        result -= factor * change
    if moves:
        step, change = moves[-1]
        result *= float(step @ change) / float(change @ change)
    for (step, change), factor in zip(moves, reversed(factors), strict=True):
        result += step * (factor - float(change @ result) / float(step @ change))
    return result
