"""What running jobs tell those who follow them, in this process's memory, bounded for each job and for all together."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stoker.store.jobs import EVENT_OCTETS_KEPT, EVENTS_KEPT, Event

LINGER_S = 60.0
"""How long the events of an ended job can still be read."""
_OVERHEAD = 150  # bytes that Python needs for an event beside its data


@dataclass(slots=True)
class _Book:
    token: str
    attempt: int
    last: int = 0
    stirs: int = 0
    octets: int = 0
    events: deque[Event] = field(default_factory=deque)
    ended: float | None = None


class EventBooks:
    """One book of events for each job that is or was run; the longest unwritten go first when they are too many.

    Args:
        max_octets: bytes of all events together.
        max_books: jobs whose events are kept.
        clock: seconds, never going backwards.
    """

    def __init__(
        self, max_octets: int = 64 << 20, max_books: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_octets = max_octets
        self._max_books = max_books
        self._clock = clock
        self._books: OrderedDict[str, _Book] = OrderedDict()  # the longest unwritten first
        self._octets = 0

    @property
    def octets(self) -> int:
        """Bytes of all events, their overhead included."""
        return self._octets

    def open(self, job_id: str, token: str, attempt: int) -> None:
        """An attempt begins: only its token writes from now on, after what attempts before have written."""
        book = self._books.pop(job_id, None) or _Book(token, attempt)
        book.token, book.attempt, book.ended = token, attempt, None
        self._books[job_id] = book
        self._shrink()

    def append(self, job_id: str, token: str, data: Iterable[bytes]) -> bool:
        """Write events; False when the token is not that of the latest attempt, or the job has ended."""
        book = self._books.get(job_id)
        if book is None or book.token != token or book.ended is not None:
            return False
        for piece in data:
            book.last += 1
            book.events.append(Event(book.last, book.attempt, piece))
            self._grow(book, len(piece) + _OVERHEAD)
            while len(book.events) > EVENTS_KEPT or (book.octets > EVENT_OCTETS_KEPT and len(book.events) > 1):
                self._grow(book, -len(book.events.popleft().data) - _OVERHEAD)
        self._books.move_to_end(job_id)
        self._shrink()
        return True

    def since(self, job_id: str, after: int) -> list[Event]:
        """Events that are kept and numbered above `after`."""
        book = self._books.get(job_id)
        if book is None:
            return []
        new = min(len(book.events), max(0, book.last - after))
        return [book.events[at] for at in range(len(book.events) - new, len(book.events))]

    def stir(self, job_id: str) -> None:
        """Something beside events has come of the job: those who follow it must look whether it goes on."""
        book = self._books.get(job_id)
        if book is not None:
            book.stirs += 1

    def stirs(self, job_id: str) -> int | None:
        """How often it was stirred; None when this process has no book of it."""
        book = self._books.get(job_id)
        return None if book is None else book.stirs

    def end(self, job_id: str) -> None:
        """The attempt is over."""
        book = self._books.get(job_id)
        if book is not None:
            book.ended = self._clock()

    def clear(self) -> None:
        """Forget everything."""
        self._books.clear()
        self._octets = 0

    def _grow(self, book: _Book, octets: int) -> None:
        book.octets += octets
        self._octets += octets

    def _shrink(self) -> None:
        while self._books:
            job_id, book = next(iter(self._books.items()))
            lingered = book.ended is not None and self._clock() - book.ended > LINGER_S
            if not lingered and len(self._books) <= self._max_books and self._octets <= self._max_octets:
                return
            del self._books[job_id]
            self._octets -= book.octets
