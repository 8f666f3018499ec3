"""How many replicas there should be: what Kubernetes's HorizontalPodAutoscaler decides, as pure functions.

Its rules, with its own defaults: every 15 s the ratio of a metric to its target; nothing within a tolerance of 10 %;
pods that are not ready count as idle when the number is to grow; at most four more or twice as many in 15 s; down only
to the highest number that was wanted within the last five minutes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

TOLERANCE = 0.1
PERIOD_S = 15.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the autoscaler looks at.

    Args:
        metric: `cpu`, the share of time in which a replica's engine works (which takes all its CPUs, be it for one
            request or for eight), or `requests`, those that run or wait at a replica.
        target: of the mean over replicas: 0..1 for `cpu`, a number for `requests`.
        least, most: bounds of the number of replicas.
        late_periods: periods of 15 s by which the metric is older than the decision.
        calm_s: the window of the highest wish, for fewer replicas.
    """

    metric: str = "cpu"
    target: float = 0.8
    least: int = 1
    most: int = 1000
    late_periods: int = 1
    calm_s: float = 300.0


def wish(metric: float, target: float, ready: int, starting: int) -> int:
    """The number of replicas for a metric's mean over the `ready` ones, before bounds."""
    current = ready + starting
    ratio = metric / target
    if ratio > 1 and starting:
        ratio = max(1.0, ratio * ready / current)
    if abs(ratio - 1) <= TOLERANCE + 1e-9:
        return current
    if ratio < 1:
        return math.ceil(ready * ratio - 1e-9)
    return math.ceil(current * ratio - 1e-9)


def bounded(current: int, wanted: int, policy: Policy) -> int:
    """The wish within the policy's bounds and the speed of growth."""
    fastest = max(current + 4, 2 * current)
    return max(policy.least, min(policy.most, wanted, fastest))


@dataclass(slots=True)
class Autoscaler:
    """The wishes of the last minutes, of which the highest holds when the number would fall."""

    policy: Policy
    _metrics: deque[float] = field(default_factory=deque)
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now: float, metric: float, ready: int, starting: int) -> int:
        """The number of replicas to have from now on."""
        if not self._wishes:  # as it was found counts as a wish
            self._wishes.append((now, ready + starting))
        self._metrics.append(metric)
        if len(self._metrics) <= self.policy.late_periods:
            return ready + starting
        seen = self._metrics.popleft()
        current = ready + starting
        self._wishes.append((now, wish(seen, self.policy.target, ready, starting)))
        while self._wishes[0][0] < now - self.policy.calm_s:
            self._wishes.popleft()
        newest = self._wishes[-1][1]
        wanted = newest if newest >= current else min(current, max(number for _, number in self._wishes))
        return bounded(current, wanted, self.policy)
