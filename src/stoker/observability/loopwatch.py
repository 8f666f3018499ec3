"""Notices when the event loop is held up, and by what.

One blocked step delays every request at once, and afterwards nobody can tell why. A heartbeat on the loop says how late
it was; a thread beside it sees one that does not come, and writes down what the loop is doing at that moment.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque

from stoker.observability.logging import get_logger

BEAT_S = 0.25
REMEMBERED_BEATS = 40  # ten seconds
SHOWN_FRAMES = 12
_log = get_logger("loop")


class LoopWatch:
    """Watches the running event loop.

    Args:
        warn_after_s: lateness from which the log tells of it.
    """

    def __init__(self, warn_after_s: float) -> None:
        self._warn_after_s = warn_after_s
        self._late: deque[float] = deque([0.0], maxlen=REMEMBERED_BEATS)
        self._beat = time.monotonic()
        self._over = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lag_s(self) -> float:
        """The worst lateness of the last ten seconds, in seconds; what is late just now counts, from other threads."""
        return max(*self._late, time.monotonic() - self._beat - BEAT_S, 0.0)

    def start(self) -> None:
        """Begin, on the loop that is to be watched."""
        loop = asyncio.get_running_loop()
        self._beat = time.monotonic()
        self._timer = loop.call_later(BEAT_S, self._tick, loop)
        threading.Thread(target=self._watch, args=(threading.get_ident(),), name="loop-watch", daemon=True).start()

    def stop(self) -> None:
        """End both the heartbeat and the thread."""
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self._late.append(now - self._beat - BEAT_S)
        self._beat = now
        self._timer = loop.call_later(BEAT_S, self._tick, loop)

    def _watch(self, loop_thread: int) -> None:
        told = 0.0
        while not self._over.wait(BEAT_S):
            beat = self._beat
            late = time.monotonic() - beat - BEAT_S
            if late > self._warn_after_s and beat != told:
                told = beat
                frame = sys._current_frames().get(loop_thread)  # noqa: SLF001 - documented, named as it is to warn
                stack = traceback.format_stack(frame)[-SHOWN_FRAMES:] if frame else []
                _log.warning("event loop blocked", late_s=round(late, 2), doing="".join(stack))
