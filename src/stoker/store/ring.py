"""A sliding window in bounded memory. `take.lua` does the same in Redis; change both together."""

from __future__ import annotations

from array import array
from math import inf

from stoker.store.protocols import MICRO, STEPS, Standing

_CELL = 3  # numbers of a cell: first taking, latest taking, amount


class Ring:
    """What was taken of one key, as cells in order of time.

    Instants and spans are in whole microseconds. A cell covers takings less than span / STEPS after its first one, and
    counts until one span after its latest: at most STEPS + 2 cells are alive at once.
    """

    __slots__ = ("_cells", "used")

    def __init__(self) -> None:
        self._cells = array("q")
        self.used = 0
        """Sum of all cells, as of the last `forget`."""

    def __len__(self) -> int:
        return len(self._cells) // _CELL

    @property
    def newest(self) -> int | None:
        """When something was last taken."""
        return self._cells[-2] if self._cells else None

    def idle(self, now: int, span: int) -> bool:
        """Whether nothing counts any more."""
        return not self._cells or self._cells[-2] + span <= now

    def forget(self, now: int, span: int) -> None:
        """Drop the cells whose latest taking is a whole span past."""
        cells, gone = self._cells, 0
        while gone < len(cells) and cells[gone + 1] + span <= now:
            self.used -= cells[gone + 2]
            gone += _CELL
        if gone:
            del cells[:gone]

    def add(self, now: int, span: int, amount: int) -> None:
        """Take `amount` at `now`, which is not before the newest taking."""
        cells = self._cells
        if cells and now < cells[-3] + span // STEPS:
            cells[-2] = now
            cells[-1] += amount
        else:
            cells.extend((now, now, amount))
        self.used += amount

    def correct(self, stamp: int, difference: int) -> None:
        """Change the amount taken at `stamp`; nothing happens when that is forgotten."""
        cells = self._cells
        for at in range(len(cells) - _CELL, -1, -_CELL):
            if cells[at] <= stamp <= cells[at + 1]:
                changed = max(0, cells[at + 2] + difference)
                self.used += changed - cells[at + 2]
                cells[at + 2] = changed
                return

    def standing(self, now: int, span: int, limit: int, wanted: int) -> Standing:
        """How a claim of `wanted` more stands, after `forget`; a granted one wants nothing any more."""
        return Standing(max(0, limit - self.used), self._reset(now, span) / MICRO, self._wait(now, span, limit, wanted))

    def _reset(self, now: int, span: int) -> int:
        """Microseconds until nothing counts any more, if nothing more is taken."""
        cells = self._cells
        for at in range(len(cells) - _CELL, -1, -_CELL):
            if cells[at + 2]:
                return cells[at + 1] + span - now
        return 0

    def _wait(self, now: int, span: int, limit: int, wanted: int) -> float:
        """Seconds until `wanted` more would fit: until enough of the oldest cells are forgotten."""
        if not wanted or self.used + wanted <= limit:
            return 0.0
        if wanted > limit:
            return inf
        cells, left = self._cells, self.used
        for at in range(0, len(cells), _CELL):
            left -= cells[at + 2]
            if left + wanted <= limit:
                return (cells[at + 1] + span - now) / MICRO
        return 0.0  # not reached: without cells nothing is used
