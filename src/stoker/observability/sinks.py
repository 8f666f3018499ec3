"""Hands finished log lines to a thread for each place that they go to: none holds up the service or another place.

Who logs puts a line into a bounded queue, which takes a microsecond. The place's thread sleeps until one is there and
writes all that are there at once, every `Bounds.pace_s` at most: a busy server wakes it 50 times a second, not for each
line. What does not fit into the queue is lost, counted, and told of by a line where the gap is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

BATCH_OCTETS = 1 << 20
"""Written at once, and copied for that, at most; a single line may be longer."""


class Target(Protocol):
    """A place that takes whole lines, and may take long or fail; used by one thread."""

    def write(self, batch: bytes, start: int) -> int:
        """Write lines from octet `start` on.

        Returns:
            Up to where they are written now; it may be less than all.

        Raises:
            OSError: none of them could be; the same call may work later.
        """

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sink may hold, and how often it writes: lines and octets not written yet, and times in seconds."""

    lines: int = 10_000
    octets: int = 8 << 20
    pace_s: float = 0.02
    retry_s: float = 5.0


class Sink:
    """A place for lines, behind a queue and a thread.

    Args:
        name: as metrics and log lines call it.
        target: the place; closed at the end.
        tell_gap: makes the line that says how many lines were lost.
        on_failure: told, by the sink's thread, of the first of several failures in a row.
        bounds: of the queue.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        tell_gap: Callable[[int], bytes],
        on_failure: Callable[[OSError], None],
        bounds: Bounds | None = None,
    ) -> None:
        self.name = name
        self.dropped = 0
        """Lines that were lost so far."""
        self._target = target
        self._tell_gap = tell_gap
        self._on_failure = on_failure
        self._bounds = bounds or Bounds()
        self._closed = False
        self._failing = False
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin without lines and thread: in a new sink, and in a forked child, whose parent writes what was there."""
        # A destructor or a signal's handler may log in the middle of `put`, in the same thread: hence reentrant.
        self._lock = threading.RLock()
        self._wake = threading.Lock()
        self._wake.acquire()  # held by nobody in particular; whoever releases it wakes the thread, once
        self._lines: deque[bytes] = deque()
        self._count = self._octets = 0  # of lines not written yet, those in the thread's hands included
        self._missed = 0  # lost since the last line that was taken
        self._asleep = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, line: bytes) -> None:
        """Take a line, which ends with a newline; or lose it, when there is no room. Never waits, never raises."""
        size = len(line)
        with self._lock:
            # After a gap half the queue must be free first, or a slow reader would be told of a gap before each line.
            share = 2 if self._missed else 1
            bounds = self._bounds
            full = self._count >= bounds.lines // share or self._octets + size > bounds.octets // share
            if full or self._closed or (self._thread is None and not self._start()):
                self._missed += 1
                self.dropped += 1
                return
            if self._missed:
                self._fill_gap()
            self._lines.append(line)
            self._count += 1
            self._octets += size
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._wake.release()

    def close(self) -> None:
        """Have what is there written and then the place closed; what cannot be written at once is lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asleep, self._asleep = self._asleep, False
            thread = self._thread
        self._closing.set()
        if asleep:
            self._wake.release()
        if thread is None:
            self._target.close()

    def wait_closed(self, seconds: float) -> bool:
        """Wait, after `close`, until that has happened, and say whether it has."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(seconds, 0.0))
        return thread is None or not thread.is_alive()

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"log-{self.name}", daemon=True)
        self._thread = thread  # before it runs: what is logged on the way must not start another
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._thread = None
        return self._thread is not None

    def _fill_gap(self) -> None:
        lost, self._missed = self._missed, 0
        line = self._tell_gap(lost)
        self._lines.append(line)
        self._count += 1
        self._octets += len(line)

    def _run(self) -> None:
        """The thread: write batches until the sink is closed and empty."""
        wrote = float("-inf")
        while True:
            lines = self._take()
            if not lines:
                break
            early = wrote + self._bounds.pace_s - time.monotonic()
            if early > 0 and not self._lines and not self._closed:
                time.sleep(early)
                lines += self._take_there(BATCH_OCTETS)
            self._write(lines)
            wrote = time.monotonic()
        self._target.close()

    def _take(self) -> list[bytes]:
        """The next lines, as soon as there are any; none when the sink is closed and empty."""
        while True:
            with self._lock:
                if self._missed and not self._lines:
                    self._fill_gap()
                if self._lines:
                    return self._take_there(BATCH_OCTETS)
                if self._closed:
                    return []
                self._asleep = True
            self._wake.acquire()

    def _take_there(self, octets: int) -> list[bytes]:
        lines = self._lines
        taken: list[bytes] = []
        while octets > 0:
            try:
                line = lines.popleft()
            except IndexError:
                break
            octets -= len(line)
            taken.append(line)
        return taken

    def _write(self, lines: list[bytes]) -> None:
        batch = b"".join(lines)
        at = 0
        while at < len(batch):
            before, last = at, self._closed
            try:
                at = self._target.write(batch, at)
                self._failing = False
            except OSError as error:
                self._note(error)
            if at == before and last:
                self.dropped += batch.count(b"\n", at)
                break
        with self._lock:
            self._count -= len(lines)
            self._octets -= len(batch)

    def _note(self, error: OSError) -> None:
        """Tell of the first failure in a row, and wait before the next attempt."""
        if self._closed:
            return
        if not self._failing:
            self._failing = True
            self._on_failure(error)
        self._closing.wait(self._bounds.retry_s)
