"""Values in the process's own memory, bounded in bytes: the longest unused go first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

OVERHEAD = 400
"""Bytes that Python needs for an entry beside its key and value: five objects and a place in the table, measured."""
_SWEEP = 2  # expired entries that one `set` clears from the unused end: more than it adds, so that they never pile up


class _Entry(NamedTuple):
    value: bytes
    expires: float
    size: int


class MemoryKeyValue:
    """An LRU with lifetimes; every operation but `delete_prefix` takes constant time.

    Args:
        max_octets: bound of keys, values and their overhead together, in bytes; a larger value is not kept at all.
        clock: seconds, never going backwards.
    """

    def __init__(self, max_octets: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_octets = max_octets
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the longest unused first
        self._octets = 0

    @property
    def entries(self) -> int:
        """How many values are kept, those included whose time ran out unnoticed."""
        return len(self._entries)

    @property
    def octets(self) -> int:
        """Memory for them, in bytes, overhead included."""
        return self._octets

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.value

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for `ttl` seconds, at the cost of the longest unused ones."""
        self._drop(key)
        now = self._clock()
        for _ in range(_SWEEP):
            oldest = next(iter(self._entries), None)
            if oldest is None or self._entries[oldest].expires > now:
                break
            self._drop(oldest)
        size = len(key.encode()) + len(value) + OVERHEAD
        if size > self._max_octets:
            return
        self._entries[key] = _Entry(value, now + ttl, size)
        self._octets += size
        while self._octets > self._max_octets:
            self._drop(next(iter(self._entries)))

    async def delete(self, key: str) -> None:
        """Forget a value, if it is there."""
        self._drop(key)

    async def delete_prefix(self, prefix: str) -> int:
        """Forget all whose key begins with `prefix`; looks at every key."""
        found = [key for key in self._entries if key.startswith(prefix)]
        for key in found:
            self._drop(key)
        return len(found)

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._octets = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._octets -= entry.size
