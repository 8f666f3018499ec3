"""Log lines about a condition that lasts: said at once, then seldom, with how often it happened in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from stoker.observability.logging import get_logger

EVERY_S = 5.0


class Seldom:
    """Writes at most one warning every `every_s` seconds, whichever threads ask for it.

    Args:
        component: who speaks.
        every_s: seconds of silence after a line.
        clock: seconds, never going backwards.
    """

    def __init__(self, component: str, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = get_logger(component)
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._unsaid = 0

    def warning(self, event: str, **details: Any) -> None:
        """Warn, or count the warning when the last one was a moment ago."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._unsaid += 1
                return
            self._next = now + self._every_s
            unsaid, self._unsaid = self._unsaid, 0
        self._log.warning(event, **details, unsaid=unsaid)
