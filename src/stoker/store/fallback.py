"""The shared store while it is well; else a miss, or this replica's own limits. No request fails or waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stoker.store.circuit import Circuit
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import Claim, Counters, Hold, KeyValue, Outcome, StoreError, Window


class FallbackKeyValue:
    """Values of a shared store; while that is down, a get is a miss and a set is forgotten.

    Args:
        shared: the store; raises StoreError.
        circuit: knows whether it may be asked.
    """

    def __init__(self, shared: KeyValue, circuit: Circuit) -> None:
        self._shared = shared
        self._circuit = circuit

    @property
    def entries(self) -> int:
        """As the shared store says."""
        return self._shared.entries

    @property
    def octets(self) -> int:
        """As the shared store says."""
        return self._shared.octets

    async def get(self, key: str) -> bytes | None:
        """The value, or None: never an error."""
        if not self._circuit.closed:
            self._circuit.skipped("get")
            return None
        try:
            return await self._shared.get(key)
        except StoreError as error:
            self._circuit.failed("get", error)
            return None

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value if the store is well."""
        if not self._circuit.closed:
            self._circuit.skipped("set")
            return
        try:
            await self._shared.set(key, value, ttl)
        except StoreError as error:
            self._circuit.failed("set", error)

    async def delete(self, key: str) -> None:
        """Forget a value; raises StoreError, for whoever deletes relies on it."""
        try:
            await self._shared.delete(key)
        except StoreError as error:
            self._circuit.failed("delete", error)
            raise

    async def delete_prefix(self, prefix: str) -> int:
        """Forget all whose key begins with `prefix`; raises StoreError, for whoever deletes relies on it."""
        try:
            return await self._shared.delete_prefix(prefix)
        except StoreError as error:
            self._circuit.failed("delete", error)
            raise

    async def close(self) -> None:
        """Close the shared store."""
        await self._shared.close()


class FallbackCounters:
    """Counts of a shared store, and beside them this replica's own record of everything that it granted.

    Both must agree while the shared store is well; the record decides alone while it is down. So whatever happens to
    the shared store, that it forgets everything included, in any window no replica grants more than the limit, and all
    of them together no more than the limit times their number.

    Args:
        shared: the store; raises StoreError.
        local: this replica's record; its operations wait for nothing, so that each is one step.
        circuit: knows whether the shared store may be asked.
    """

    def __init__(self, shared: Counters, local: MemoryCounters, circuit: Circuit) -> None:
        self._shared = shared
        self._local = local
        self._circuit = circuit

    async def take(self, claims: Sequence[Claim], now: float | None = None) -> Outcome:
        """Grant all claims or none: never an error."""
        theirs = await self._ask_shared(claims, now)
        if theirs is not None and not theirs.granted:
            return theirs
        mine = await self._local.take(claims, now)
        if theirs is None:
            return replace(mine, stamp=None, local_stamp=mine.stamp)
        if mine.granted:
            return replace(theirs, local_stamp=mine.stamp)
        # The shared store has forgotten what this replica granted, or some of that was granted while it was down.
        given_back = replace(theirs, local_stamp=None)
        await self.settle(given_back, {claim.key: 0 for claim in claims if isinstance(claim, Window)})
        await self._release_shared(given_back)
        return replace(mine, stamp=None, local_stamp=mine.stamp)

    async def settle(self, taken: Outcome, amounts: Mapping[str, int], now: float | None = None) -> None:
        """Correct a taking where it was recorded: never an error; what fails leaves the shared count too high."""
        await self._local.settle(replace(taken, stamp=taken.local_stamp), amounts, now)
        if taken.stamp is None:
            return
        if not self._circuit.closed:
            self._circuit.skipped("settle")
            return
        try:
            await self._shared.settle(taken, amounts, now)
        except StoreError as error:
            self._circuit.failed("settle", error)

    async def release(self, taken: Outcome) -> None:
        """Give back holds where they were recorded: never an error; what fails runs out by itself."""
        await self._local.release(taken)
        if taken.stamp is not None:
            await self._release_shared(taken)

    def abandon(self, taken: Outcome) -> None:
        """Give back holds here, and let them run out in the shared store."""
        self._local.abandon(taken)
        self._shared.abandon(taken)

    async def close(self) -> None:
        """Close both."""
        await self._shared.close()
        await self._local.close()

    async def _ask_shared(self, claims: Sequence[Claim], now: float | None) -> Outcome | None:
        if not self._circuit.closed:
            self._circuit.skipped("take")
            return None
        try:
            return await self._shared.take(claims, now)
        except StoreError as error:
            self._circuit.failed("take", error)
            return None

    async def _release_shared(self, taken: Outcome) -> None:
        if not any(isinstance(claim, Hold) for claim in taken.claims):
            return
        if not self._circuit.closed:
            self._shared.abandon(taken)
            self._circuit.skipped("release")
            return
        try:
            await self._shared.release(taken)
        except StoreError as error:
            self._circuit.failed("release", error)
