"""The bounded waiting line in front of a model's slots: interactive requests before jobs, fair between tenants. Pure
bookkeeping, no I/O.

Between tenants of a class it is start-time fair queueing (Goyal, Vin, Cheng 1996): a request's tag is the larger of the
class's virtual time and its tenant's last tag plus the cost of that tenant's previous request, so that a tenant with a
thousand waiting requests delays another's single one by about one request, not by a thousand.

Between the classes, each turn while jobs wait earns them a share of a turn. Interactive requests go first until a whole
one is owed, so that t turns in a row hold at most 1 + share * t in which a job went before one of them. What jobs get
while nobody else waits pays for it, too: an interactive request that comes now and then is never the one who waits.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from itertools import count

from stoker.types import Priority


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the line. `cost` is its estimated work in tokens (>= 1); `served` once it has held a slot.

    `admitted`: part of a call that was let in before, so that neither bounds nor a drain refuse it. `key`: of its
    prompt's beginning, for affinity.
    """

    cost: int
    tenant: str
    priority: Priority = Priority.INTERACTIVE
    admitted: bool = False
    key: int | None = None
    tag: float = 0.0
    waiting: bool = False
    served: bool = False


@dataclass(slots=True)
class _Class:
    """The waiting tickets of one class, in an order that is fair between tenants."""

    tokens: int = 0
    length: int = 0
    heap: list[tuple[float, int, Ticket]] = field(default_factory=list)
    finish: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)
    _virtual: float = 0.0
    _sequence: count[int] = field(default_factory=count)

    def push(self, ticket: Ticket) -> None:
        if ticket.served:
            ticket.tag = -1.0
        else:
            ticket.tag = max(self._virtual, self.finish.get(ticket.tenant, 0.0))
            self.finish[ticket.tenant] = ticket.tag + ticket.cost
        ticket.waiting = True
        self.length += 1
        self.tokens += ticket.cost
        self._waiting[ticket.tenant] = self._waiting.get(ticket.tenant, 0) + 1
        heapq.heappush(self.heap, (ticket.tag, next(self._sequence), ticket))

    def pop(self) -> Ticket | None:
        while self.heap:
            tag, _, ticket = heapq.heappop(self.heap)
            if ticket.waiting:
                self._virtual = max(self._virtual, tag)
                self._leave(ticket)
                return ticket
        return None

    def remove(self, ticket: Ticket) -> None:
        self._leave(ticket)
        if len(self.heap) > 64 + 2 * self.length:  # keep abandoned entries from piling up
            self.heap = [entry for entry in self.heap if entry[2].waiting]
            heapq.heapify(self.heap)

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self.length -= 1
        self.tokens -= ticket.cost
        left = self._waiting[ticket.tenant] - 1
        if left:
            self._waiting[ticket.tenant] = left
            return
        del self._waiting[ticket.tenant]
        if not self._waiting:  # an empty class forgets everything, so that nothing grows with the number of tenants
            self.finish.clear()
            self.heap.clear()
            self._virtual = 0.0


@dataclass(slots=True)
class WaitingLine:
    """Waiting tickets. Interactive ones are bounded in number and in estimated tokens; who makes jobs bounds those.

    Args:
        max_requests: interactive tickets that may wait.
        max_tokens: sum of their costs; a single ticket over it may still wait alone.
        job_share: share of the turns that jobs get while interactive tickets wait too, 0..1; with 0 jobs only go when
            nobody else waits.
    """

    max_requests: int
    max_tokens: int
    job_share: float = 0.0
    _interactive: _Class = field(default_factory=_Class)
    _jobs: _Class = field(default_factory=_Class)
    _owed: float = 0.0
    """Turns that jobs have earned and not had."""

    def __len__(self) -> int:
        return self._interactive.length + self._jobs.length

    @property
    def tokens(self) -> int:
        """Estimated tokens of all who wait."""
        return self._interactive.tokens + self._jobs.tokens

    @property
    def tokens_ahead(self) -> float:
        """Estimated tokens that go before an interactive newcomer of a tenant that waits already."""
        before = self._interactive.tokens
        if self.job_share >= 1:
            return float(self.tokens)
        return before + min(self._jobs.tokens, before * self.job_share / (1 - self.job_share))

    def has_room(self, cost: int) -> bool:
        """Whether one more interactive ticket of this cost may wait."""
        waiting = self._interactive
        if waiting.length >= self.max_requests:
            return False
        return waiting.length == 0 or waiting.tokens + cost <= self.max_tokens

    def push(self, ticket: Ticket) -> None:
        """Put a ticket into the line; for a new interactive one the caller has asked `has_room`.

        One that has been served already (its engine died) goes to the front of its class, whatever the bounds.
        """
        self._class_of(ticket).push(ticket)

    def pop(self) -> Ticket | None:
        """Take the next ticket out of the line, or None when nobody waits."""
        return self._whose_turn().pop()

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out wherever it stands; does nothing when it waits no more."""
        if ticket.waiting:
            self._class_of(ticket).remove(ticket)

    def _class_of(self, ticket: Ticket) -> _Class:
        return self._jobs if ticket.priority is Priority.JOB else self._interactive

    def _whose_turn(self) -> _Class:
        if not self._jobs.length:
            return self._interactive
        self._owed += self.job_share
        if self._interactive.length and self._owed < 1:
            return self._interactive
        self._owed = max(0.0, self._owed - 1)
        return self._jobs


@dataclass(slots=True)
class ServiceMeter:
    """Measured speed of service: seconds of a slot for each estimated token, as a decaying average.

    `weight` is the share of the newest request, 0..1; the first few count more, so that the meter learns quickly.
    """

    weight: float = 0.1
    samples: int = 0
    _seconds: float = 0.0
    _cost: float = 0.0

    def note(self, cost: int, seconds: float) -> None:
        """A request of this estimated cost held a slot for so many seconds."""
        self.samples += 1
        share = max(self.weight, 1.0 / self.samples)
        self._seconds += share * (seconds - self._seconds)
        self._cost += share * (cost - self._cost)

    def wait(self, tokens: float, slots: int) -> float:
        """Seconds until so many estimated tokens have passed through `slots` slots; 0 before the first sample."""
        if not self.samples or slots <= 0:
            return 0.0
        return tokens * self._seconds / max(self._cost, 1.0) / slots


def retry_after(seconds: float) -> float:
    """A `Retry-After` from a predicted wait: whole seconds, at least one, at most two minutes."""
    return float(min(120, max(1, math.ceil(seconds))))
