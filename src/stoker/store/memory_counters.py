"""Counters in the process's own memory. Nothing here waits, so that every operation is one step of the event loop."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

from stoker.observability.notices import Seldom
from stoker.store.protocols import HOLD_WAIT_S, MICRO, Claim, Hold, Outcome, Standing, Window, corrections
from stoker.store.ring import Ring

_SHARED_RINGS = 256  # for keys that found no room
_FORGET_EACH = 4  # idle keys that one taking forgets: more than it adds, so that they never pile up
_FORGET_WHEN_FULL = 1024

_Place = tuple[OrderedDict[str, Ring], str, Ring]


class MemoryCounters:
    """Counts for one process.

    Idle keys are forgotten. When `max_keys` are active at once, new ones share a few rings: their callers are limited
    more strictly, and those already known keep their exact count; nobody's limit is loosened.

    Args:
        max_keys: windows that are counted one by one; 0.4 kB each while little used, 1.8 kB at most.
        clock: seconds, never going backwards.
    """

    def __init__(self, max_keys: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._tables: dict[int, OrderedDict[str, Ring]] = {}  # by span; in each the longest untouched, so idle, first
        self._holds: dict[str, set[str]] = {}
        self._keys = 0
        self._notice = Seldom("store")

    @property
    def keys(self) -> int:
        """Windows and held keys that are remembered."""
        return self._keys + len(self._holds)

    async def take(self, claims: Sequence[Claim], now: float | None = None) -> Outcome:
        """Grant all claims or none."""
        instant = _micro(self._clock() if now is None else now)
        places = {claim.key: self._place(claim, instant) for claim in claims if isinstance(claim, Window)}
        for _, _, ring in places.values():
            # As in Redis, whose clock may be set back: time never goes backwards within a ring.
            instant = max(instant, ring.newest or 0)
        for claim in claims:
            if isinstance(claim, Window):
                places[claim.key][2].forget(instant, _micro(claim.window_s))
        granted = all(self._fits(claim, places) for claim in claims)
        if granted:
            self._record(claims, places, instant)
        standings = tuple(self._standing(claim, places, instant, granted=granted) for claim in claims)
        return Outcome(granted, tuple(claims), standings, instant)

    async def settle(self, taken: Outcome, amounts: Mapping[str, int], now: float | None = None) -> None:  # noqa: ARG002
        """Correct windows of a taking; `now` does not matter here."""
        if taken.stamp is None:
            return
        for window, difference in corrections(taken, amounts):
            table = self._tables.get(_micro(window.window_s)) or OrderedDict()
            ring = table.get(window.key, table.get(_shared_name(window.key)))
            if ring is not None:
                ring.correct(taken.stamp, difference)

    async def release(self, taken: Outcome) -> None:
        """Give back the holds of a taking."""
        self.abandon(taken)

    def abandon(self, taken: Outcome) -> None:
        """As `release`."""
        for claim in taken.claims:
            if isinstance(claim, Hold) and claim.key in self._holds:
                held = self._holds[claim.key]
                held.discard(claim.id)
                if not held:
                    del self._holds[claim.key]

    async def close(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self._holds.clear()
        self._keys = 0

    def _fits(self, claim: Claim, places: Mapping[str, _Place]) -> bool:
        if isinstance(claim, Window):
            return not claim.amount or places[claim.key][2].used + claim.amount <= claim.limit
        return len(self._holds.get(claim.key, ())) < claim.limit

    def _record(self, claims: Sequence[Claim], places: Mapping[str, _Place], now: int) -> None:
        for claim in claims:
            if isinstance(claim, Hold):
                self._holds.setdefault(claim.key, set()).add(claim.id)
                continue
            table, name, ring = places[claim.key]
            ring.add(now, _micro(claim.window_s), claim.amount)
            if name not in table:
                table[name] = ring
                self._keys += 1
            table.move_to_end(name)
        self._forget_idle(now, _FORGET_EACH)

    def _standing(self, claim: Claim, places: Mapping[str, _Place], now: int, *, granted: bool) -> Standing:
        if isinstance(claim, Window):
            wanted = 0 if granted else claim.amount
            return places[claim.key][2].standing(now, _micro(claim.window_s), claim.limit, wanted)
        remaining = max(0, claim.limit - len(self._holds.get(claim.key, ())))
        return Standing(remaining, 0.0, 0.0 if granted or remaining else HOLD_WAIT_S)

    def _place(self, claim: Window, now: int) -> _Place:
        """Where a key is counted: in a ring of its own, or when there are too many, in a shared one."""
        table = self._tables.setdefault(_micro(claim.window_s), OrderedDict())
        ring = table.get(claim.key)
        if ring is not None:
            return table, claim.key, ring
        if self._keys >= self._max_keys:
            self._forget_idle(now, _FORGET_WHEN_FULL)
        if self._keys < self._max_keys:
            return table, claim.key, Ring()  # put into the table when something is taken
        self._notice.warning("rate_limit_keys_full", keys=self._keys, effect="new callers share their limits")
        name = _shared_name(claim.key)
        if name not in table:
            table[name] = Ring()  # at once: two claims of one caller may share it
            self._keys += 1
        return table, name, table[name]

    def _forget_idle(self, now: int, at_most: int) -> None:
        for span, table in self._tables.items():
            for _ in range(at_most):
                name = next(iter(table), None)
                if name is None or not table[name].idle(now, span):
                    break
                del table[name]
                self._keys -= 1


def _shared_name(key: str) -> str:
    return f"\0{crc32(key.encode()) % _SHARED_RINGS}"


def _micro(seconds: float) -> int:
    return round(seconds * MICRO)
