"""Names of jobs: UUIDs of version 7 (RFC 9562, 5.7), which sort by time. One process's own come in strict order."""

from __future__ import annotations

import secrets
import time
from typing import Final
from uuid import UUID

_FRACTIONS: Final = 1 << 12  # of a millisecond: `rand_a` as RFC 9562, 6.2, method 3 has it
_VERSION: Final = 7 << 76
_VARIANT: Final = 2 << 62


class Ids:
    """Makes ids, each above the one before, also where the clock stands still or goes back."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        """32 hexadecimal digits."""
        now = time.time_ns() * _FRACTIONS // 1_000_000
        self._last = max(now, self._last + 1)
        milliseconds, fraction = divmod(self._last, _FRACTIONS)
        value = (milliseconds << 80) | _VERSION | (fraction << 64) | _VARIANT | secrets.randbits(62)
        return UUID(int=value).hex
