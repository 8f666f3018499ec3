"""What became of the attempts of a run, as columns, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SERVED, REFUSED, TIMED_OUT, BROKEN = range(4)
FATES = ("served", "refused", "timed out", "broken")


@dataclass(slots=True)
class Ledger:
    """One row for each attempt that is over: fate, instants in seconds (NaN for what never happened), tries before it,
    whether its beginning was remembered.
    """

    rows: list[tuple[int, int, float, float, float, float, int, bool]] = field(default_factory=list)
    arrivals: int = 0
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """Instant, ready and starting replicas, when either changed."""

    def close(self, seconds: float) -> Outcome:
        """The columns, when everything is over."""
        columns = np.array(self.rows, dtype=np.float64).reshape(-1, 8).T
        whole = columns[[0, 1, 6]].astype(np.int64)
        return Outcome(
            *(whole[0], whole[1], columns[2], columns[3], columns[4], columns[5], whole[2], columns[7] > 0),
            arrivals=self.arrivals,
            seconds=seconds,
            replicas=self.replicas,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every attempt that is over, and how many there were."""

    number: NDArray[np.int64]
    fate: NDArray[np.int64]
    arrived: NDArray[np.float64]
    started: NDArray[np.float64]
    first: NDArray[np.float64]
    ended: NDArray[np.float64]
    tries: NDArray[np.int64]
    hit: NDArray[np.bool_]
    arrivals: int
    seconds: float
    replicas: list[tuple[float, int, int]]

    def count(self, fate: int) -> int:
        """Attempts with this fate."""
        return int((self.fate == fate).sum())

    def share(self, fate: int, since: float = 0.0) -> float:
        """Share of the attempts from `since` on that had this fate, 0..1."""
        chosen = self.fate[self.arrived >= since]
        return float((chosen == fate).mean()) if len(chosen) else 0.0

    def served(self, since: float = 0.0) -> Outcome:
        """Those that were answered and arrived from `since` on."""
        return self.where((self.fate == SERVED) & (self.arrived >= since))

    def where(self, chosen: NDArray[np.bool_]) -> Outcome:
        """Some of the rows."""
        columns = (self.number, self.fate, self.arrived, self.started, self.first, self.ended, self.tries, self.hit)
        picked = [column[chosen] for column in columns]
        return Outcome(*picked, arrivals=int(chosen.sum()), seconds=self.seconds, replicas=self.replicas)

    @property
    def wait_s(self) -> NDArray[np.float64]:
        """Seconds in line."""
        return self.started - self.arrived

    @property
    def first_s(self) -> NDArray[np.float64]:
        """Seconds to the first token."""
        return self.first - self.arrived

    @property
    def total_s(self) -> NDArray[np.float64]:
        """Seconds to the end."""
        return self.ended - self.arrived


def percentile(values: NDArray[np.float64], q: float) -> float:
    """The `q`-th percentile, NaN of nothing."""
    return float(np.percentile(values, q)) if len(values) else float("nan")
