"""What the rest of Stoker may ask of a store, in two narrow protocols: values with a lifetime, and counters.

Counters take all of a request's claims or none, in one atomic step. A window is a sliding one, kept as a ring of at
most `STEPS` + 2 cells: takings less than a step (window / `STEPS`) apart share a cell and are forgotten together, one
window after the latest of them. So no window ever holds more than the limit, a taking is never remembered for longer
than window + step, and the memory of a key does not depend on its limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stoker.errors import StokerError

STEPS = 60
"""Steps of a window: what is forgotten together was taken within window / STEPS."""
MICRO = 1_000_000
"""Microseconds in a second; stores reckon in whole microseconds, exact in Lua's doubles until the year 2255."""
HOLD_WAIT_S = 1.0
"""Nobody knows when a held place comes free: what a refused caller is told to wait, in seconds."""


class StoreError(StokerError):
    """The store failed, refused, or was slower than its time limit. Callers go on without it.

    `reason` is one of a few words, for metrics: `timeout`, `connection`, `response`, `down` (was not even asked).
    """

    status = 503
    code = "store_down"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Window:
    """A claim of `amount` (>= 0) out of `limit` (>= 1) in any `window_s` seconds (>= 1)."""

    key: str
    limit: int
    window_s: float
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim to one of `limit` places until it is released.

    `id` must be unlike that of any other live hold. A shared store forgets holds of an owner that has not been heard
    of for `ttl_s` seconds; while the owner lives, its adapter renews them.
    """

    key: str
    limit: int
    id: str
    ttl_s: float = 30.0


Claim = Window | Hold


@dataclass(frozen=True, slots=True)
class Standing:
    """How one claim stands after the decision.

    `remaining` of its limit; `reset_s` until all of a window's limit is free again if nothing more is taken (0 for
    holds); `wait_s` until the claim could be granted: 0 when it can, infinite when it asks for more than the limit.
    """

    remaining: int
    reset_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a taking, which is also its receipt: `settle` and `release` want it back.

    `standings` are in the order of `claims`. `stamp` is when it was taken, in microseconds by the store's own clock;
    None if the shared store has no record of it. `local_stamp` is the same in a replica's own record beside.
    """

    granted: bool
    claims: tuple[Claim, ...]
    standings: tuple[Standing, ...]
    stamp: int | None
    local_stamp: int | None = None


class KeyValue(Protocol):
    """Values with a lifetime. A value may vanish early; it never outlives its lifetime."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over; raises StoreError."""
        ...

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for `ttl` seconds (> 0); raises StoreError."""
        ...

    async def delete(self, key: str) -> None:
        """Forget a value, if it is there; raises StoreError."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Forget all whose key begins with `prefix` and say how many those were; raises StoreError."""
        ...

    async def close(self) -> None:
        """Free what the store holds open."""
        ...

    @property
    def entries(self) -> int:
        """How many values are kept in this process; 0 when they are elsewhere."""
        ...

    @property
    def octets(self) -> int:
        """Memory for them in this process, in bytes; 0 when they are elsewhere."""
        ...


class Counters(Protocol):
    """Counts of what callers took."""

    async def take(self, claims: Sequence[Claim], now: float | None = None) -> Outcome:
        """Grant all claims or none, in one atomic step; raises StoreError.

        `now` stands in for the store's clock, in seconds, for tests. The keys of the claims differ from each other.
        """
        ...

    async def settle(self, taken: Outcome, amounts: Mapping[str, int], now: float | None = None) -> None:
        """Correct windows of a granted taking, by key, to the amounts (>= 0) really used; raises StoreError.

        The correction applies to when it was taken, so that a window never forgets it later than it would have. Once
        for each taking: the amounts claimed are what it is reckoned from. Amounts may exceed what was claimed, and
        so the limit: then nothing is granted until enough of it is past.
        """
        ...

    async def release(self, taken: Outcome) -> None:
        """Give back the holds of a granted taking; again does no harm; raises StoreError."""
        ...

    def abandon(self, taken: Outcome) -> None:
        """Answer for its holds no more, without asking the store: they run out by themselves."""
        ...

    async def close(self) -> None:
        """Free what the store holds open."""
        ...


def corrections(taken: Outcome, amounts: Mapping[str, int]) -> list[tuple[Window, int]]:
    """The windows of a taking whose used amount differs from the claimed one, with the difference."""
    windows = [claim for claim in taken.claims if isinstance(claim, Window)]
    changed = [(claim, amounts.get(claim.key, claim.amount) - claim.amount) for claim in windows]
    return [(claim, difference) for claim, difference in changed if difference]
