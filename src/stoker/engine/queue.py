"""The bounded waiting line in front of a model's slots: ordered by class, fair between tenants. Pure bookkeeping, no
I/O.

Fairness is start-time fair queueing (Goyal, Vin, Cheng 1996): a request's tag is the larger of the line's virtual time
and its tenant's last tag plus the cost of that tenant's previous request, so that a tenant with a thousand waiting
requests delays another's single one by about one request, not by a thousand.
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
class WaitingLine:
    """Waiting tickets, bounded in number and in estimated tokens.

    Args:
        max_requests: tickets that may wait.
        max_tokens: sum of their costs; a single ticket over it may still wait alone.
    """

    max_requests: int
    max_tokens: int
    tokens: int = 0
    _heap: list[tuple[int, float, int, Ticket]] = field(default_factory=list)
    _finish: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)
    _virtual: float = 0.0
    _sequence: count[int] = field(default_factory=count)
    _length: int = 0

    def __len__(self) -> int:
        return self._length

    def has_room(self, cost: int) -> bool:
        """Whether one more ticket of this cost may wait."""
        if self._length >= self.max_requests:
            return False
        return self._length == 0 or self.tokens + cost <= self.max_tokens

    def push(self, ticket: Ticket) -> None:
        """Put a ticket into the line; for a new one the caller has asked `has_room`.

        One that has been served already (its engine died) goes to the front of its class, whatever the bounds.
        """
        if ticket.served:
            ticket.tag = -1.0
        else:
            ticket.tag = max(self._virtual, self._finish.get(ticket.tenant, 0.0))
            self._finish[ticket.tenant] = ticket.tag + ticket.cost
        self._insert(ticket)

    def pop(self) -> Ticket | None:
        """Take the next ticket out of the line, or None when nobody waits."""
        while self._heap:
            _, tag, _, ticket = heapq.heappop(self._heap)
            if ticket.waiting:
                self._virtual = max(self._virtual, tag)
                self._leave(ticket)
                return ticket
        return None

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out wherever it stands; does nothing when it waits no more."""
        if ticket.waiting:
            self._leave(ticket)
            if len(self._heap) > 64 + 2 * self._length:  # keep abandoned entries from piling up
                self._heap = [entry for entry in self._heap if entry[3].waiting]
                heapq.heapify(self._heap)

    def _insert(self, ticket: Ticket) -> None:
        ticket.waiting = True
        self._length += 1
        self.tokens += ticket.cost
        self._waiting[ticket.tenant] = self._waiting.get(ticket.tenant, 0) + 1
        heapq.heappush(self._heap, (ticket.priority, ticket.tag, next(self._sequence), ticket))

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._length -= 1
        self.tokens -= ticket.cost
        left = self._waiting[ticket.tenant] - 1
        if left:
            self._waiting[ticket.tenant] = left
            return
        del self._waiting[ticket.tenant]
        if not self._waiting:  # an empty line forgets everything, so that nothing grows with the number of tenants
            self._finish.clear()
            self._heap.clear()
            self._virtual = 0.0


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

    def wait(self, tokens: int, slots: int) -> float:
        """Seconds until so many estimated tokens have passed through `slots` slots; 0 before the first sample."""
        if not self.samples or slots <= 0:
            return 0.0
        return tokens * self._seconds / max(self._cost, 1.0) / slots


def retry_after(seconds: float) -> float:
    """A `Retry-After` from a predicted wait: whole seconds, at least one, at most two minutes."""
    return float(min(120, max(1, math.ceil(seconds))))
