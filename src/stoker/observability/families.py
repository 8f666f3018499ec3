"""Counters and histograms with labels, which cost little to update and to write out.

They stand where prometheus_client's own would: those take 7 us for a line of text and look for a bucket one by one,
which is too dear for the thousands of lines that fine buckets of many models make. All updates are thread-safe.
Source: the text exposition format 0.0.4, https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import Lock
from typing import ClassVar, Generic, Literal, TypeVar

MOST_CHILDREN = 1000
OTHER = "other"
"""The value of every label of what comes after a family is full."""

Kind = Literal["counter", "gauge", "histogram"]
Child = TypeVar("Child")


class Count:
    """One counter of a family."""

    __slots__ = ("_lock", "value")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count so many more."""
        with self._lock:
            self.value += amount


class Distribution:
    """One histogram of a family: how many values fell into each bucket, the last of which has no bound."""

    __slots__ = ("_bounds", "_lock", "counts", "total")

    def __init__(self, lock: Lock, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._lock = lock
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take in a value."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            self.counts[place] += 1
            self.total += value


class Family(ABC, Generic[Child]):
    """What is told under one name: a child for each combination of labels that occurred.

    Args:
        name: as it is exported.
        labels: their names, one at least.
        text: what it is, for people.
        group: under which documentation lists it.
        most: children; all that come later are one, whose labels are `other`.
    """

    kind: ClassVar[Kind]

    def __init__(
        self, name: str, labels: Sequence[str], text: str, *, group: str = "", most: int = MOST_CHILDREN
    ) -> None:
        self.name = name
        self.label_names = tuple(labels)
        self.text = text
        self.group = group
        self._most = most
        self._lock = Lock()
        self._children: dict[tuple[str, ...], Child] = {}

    @abstractmethod
    def _new(self) -> Child:
        """A child that has seen nothing."""

    @abstractmethod
    def _lines(self, labels: str, child: Child) -> str:
        """A child's lines; `labels` is what stands between the braces."""

    def labels(self, *values: str) -> Child:
        """The child of these values, in the order of `label_names`; ValueError when there are not as many."""
        found = self._children.get(values)
        return self._add(values) if found is None else found

    def _add(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not as many as {values}")
        with self._lock:
            if len(self._children) >= self._most:
                values = (OTHER,) * len(values)
            return self._children.setdefault(values, self._new())

    def render(self) -> Iterator[str]:
        """The family's pieces of text."""
        yield f"# HELP {self.name} {_escaped(self.text)}\n# TYPE {self.name} {self.kind}\n"
        with self._lock:
            children = list(self._children.items())
        for values, child in children:
            pairs = zip(self.label_names, map(_quoted, values), strict=True)
            yield self._lines(",".join(f"{name}={value}" for name, value in pairs), child)


class CounterFamily(Family[Count]):
    """Counters; `name` ends with `_total`."""

    kind = "counter"

    def _new(self) -> Count:
        return Count(self._lock)

    def _lines(self, labels: str, child: Count) -> str:
        return f"{self.name}{{{labels}}} {child.value}\n"


class HistogramFamily(Family[Distribution]):
    """Histograms; the upper `bounds` of their buckets ascend, and the one without a bound comes by itself."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        labels: Sequence[str],
        text: str,
        bounds: Sequence[float],
        *,
        group: str = "",
        most: int = MOST_CHILDREN,
    ) -> None:
        super().__init__(name, labels, text, group=group, most=most)
        self.bounds = tuple(bounds)
        self._ends = [f',le="{number(bound)}"}} %d\n' for bound in (*self.bounds, math.inf)]

    def _new(self) -> Distribution:
        return Distribution(self._lock, self.bounds)

    def _lines(self, labels: str, child: Distribution) -> str:
        with self._lock:
            counts, total = child.counts.copy(), child.total
        begin = f"{self.name}_bucket{{{labels}".replace("%", "%%")
        below = tuple(accumulate(counts))
        buckets = (begin + begin.join(self._ends)) % below  # one call for all lines: a tenth of one for each
        name = self.name
        return f"{buckets}{name}_sum{{{labels}}} {number(total)}\n{name}_count{{{labels}}} {below[-1]}\n"


def renard(steps: Literal[5, 10], low: float, high: float) -> tuple[float, ...]:
    """Bounds from `low` to `high`: so many a decade, in about equal ratios, of the Renard series R5 or R10 (ISO 3)."""
    mantissas = ("1", "1.25", "1.6", "2", "2.5", "3.15", "4", "5", "6.3", "8")[:: 10 // steps]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = (float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas)
    return tuple(value for value in values if low <= value <= high)


def number(value: float) -> str:
    """A number as the exposition format writes it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    escaped = _escaped(value).replace('"', '\\"')
    return f'"{escaped}"'
