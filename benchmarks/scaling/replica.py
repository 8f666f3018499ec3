"""One replica of Stoker in virtual time: slots, the waiting line in front of them, and what its engine remembers.

`WaitingLine` and `ServiceMeter` are those that Stoker runs with. The decisions around them (who gets a slot at once,
who is refused) are those of `stoker.engine.pool`.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import count

from scaling.engine import EngineSpec, pace_of
from stoker.engine.pool import METER_SAMPLES
from stoker.engine.queue import ServiceMeter, Ticket, WaitingLine, retry_after

NEVER = math.inf
DUST = 1e-7  # of a token; what rounding leaves of finished work


@dataclass(slots=True, eq=False)
class Attempt(Ticket):
    """A request on its way through one replica; a client that tries again makes a new one.

    Instants are seconds of virtual time, NaN until they happen. `number` is the request's place in the trace, `tries`
    how many attempts went before.
    """

    number: int = 0
    tries: int = 0
    arrived: float = 0.0
    deadline: float = NEVER
    prompt: float = 0.0
    answer: float = 1.0
    beginning: int = -1
    prefix: float = 0.0
    started: float = math.nan
    first: float = math.nan
    left: float = 0.0
    hit: bool = False
    over: bool = False
    replica: Replica | None = None
    view: int = 0


@dataclass(frozen=True, slots=True)
class LineSpec:
    """Bounds of the waiting line, as `queue` in stoker.yaml."""

    max_requests: int = 64
    max_tokens: int = 65_536


class Replica:
    """The engine, its slots and the line before them, advanced from event to event.

    Args:
        number: its place in the cluster, for the balancers.
        spec, line: as they say.
    """

    def __init__(self, number: int, spec: EngineSpec, line: LineSpec) -> None:
        self.number = number
        self.spec = spec
        self.version = 0
        """Raised by whoever schedules it, so that outdated plans can be told from the latest."""
        self.busy_s = 0.0
        self.load_s = 0.0
        self._pace = pace_of(spec)
        self._bounds = line
        self._serial = count()
        self.clock = 0.0
        self._forget()

    def _forget(self) -> None:
        self.line = WaitingLine(self._bounds.max_requests, self._bounds.max_tokens)
        self.meter = ServiceMeter()
        self._prompts: deque[Attempt] = deque()
        self._answers: list[tuple[float, int, Attempt]] = []
        self._work = 0.0  # tokens that an answer under way since the beginning would have by now
        self._known: OrderedDict[int, None] = OrderedDict()

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._answers) + len(self._prompts)

    @property
    def held(self) -> int:
        """Requests that run or wait."""
        return len(self._answers) + len(self._prompts) + len(self.line)

    def advance(self, now: float) -> None:
        """Let time pass until `now`, which is before the next event of its own."""
        passed = now - self.clock
        if passed <= 0:
            return
        self.clock = now
        answers, held = len(self._answers), self.held
        self.load_s += passed * held
        if not held:
            return
        self.busy_s += passed
        if self._prompts:
            self._prompts[0].left -= passed * self._pace.prompt[answers]
            self._work += passed * self._pace.beside[answers]
        else:
            self._work += passed * self._pace.alone[answers]

    def due(self) -> float:
        """When its next event happens if nothing comes in between."""
        answers = len(self._answers)
        if self._prompts:
            soon = max(0.0, self._prompts[0].left) / self._pace.prompt[answers]
            speed = self._pace.beside[answers]
        else:
            soon, speed = NEVER, self._pace.alone[answers]
        if answers:
            soon = min(soon, max(0.0, self._answers[0][0] - self._work) / speed)
        return self.clock + soon

    def offer(self, now: float, attempt: Attempt) -> float | None:
        """Take an attempt in, or give the seconds of `Retry-After` with which it is refused."""
        self.advance(now)
        free = self.running < self.spec.slots and not len(self.line)
        if not free:
            wait = self.meter.wait(self.line.tokens_ahead, self.spec.slots)
            if not self.line.has_room(attempt.cost):
                return retry_after(wait)
            if self.meter.samples >= METER_SAMPLES and now + wait > attempt.deadline:
                return retry_after(wait - (attempt.deadline - now))
            self.line.push(attempt)
            return None
        self._start(now, attempt)
        return None

    def step(self, now: float) -> list[Attempt]:
        """What happens at `due`: prompts that are read, answers that end; returns the latter."""
        self.advance(now)
        if self._prompts and self._prompts[0].left <= DUST:
            read = self._prompts.popleft()
            self._remember(read.beginning)
            self._answer(now, read)
        done = []
        while self._answers and self._answers[0][0] <= self._work + DUST:
            attempt = heapq.heappop(self._answers)[2]
            attempt.over = True
            self.meter.note(attempt.cost, now - attempt.started)
            done.append(attempt)
        if done:
            self._dispatch(now)
        return done

    def leave(self, now: float, attempt: Attempt) -> None:
        """An attempt's deadline has passed, or its client has left: its place is free again."""
        self.advance(now)
        attempt.over = True
        if attempt.waiting:
            self.line.remove(attempt)
            return
        if attempt in self._prompts:
            self._prompts.remove(attempt)
        else:
            self._answers = [entry for entry in self._answers if entry[2] is not attempt]
            heapq.heapify(self._answers)
        self._dispatch(now)

    def die(self, now: float) -> list[Attempt]:
        """Lose everything; returns the attempts that were in here."""
        self.advance(now)
        lost = [*self._prompts, *(entry[2] for entry in self._answers)]
        while (ticket := self.line.pop()) is not None:
            if isinstance(ticket, Attempt):
                lost.append(ticket)
        for attempt in lost:
            attempt.over = True
        self._forget()
        return lost

    def _dispatch(self, now: float) -> None:
        while self.running < self.spec.slots and len(self.line):
            ticket = self.line.pop()
            if isinstance(ticket, Attempt):
                self._start(now, ticket)

    def _start(self, now: float, attempt: Attempt) -> None:
        attempt.served = True
        attempt.started = now
        attempt.hit = attempt.beginning in self._known
        attempt.left = attempt.prompt + (0.0 if attempt.hit else attempt.prefix)
        if attempt.left > 0 and self.spec.prompt_s > 0:
            self._prompts.append(attempt)
        else:
            self._answer(now, attempt)

    def _answer(self, now: float, attempt: Attempt) -> None:
        attempt.first = now + self.spec.first_s
        ends = self._work + attempt.answer + self.spec.first_s / self.spec.steps[0]
        heapq.heappush(self._answers, (ends, next(self._serial), attempt))

    def _remember(self, beginning: int) -> None:
        if beginning < 0:
            return
        self._known[beginning] = None
        self._known.move_to_end(beginning)
        if len(self._known) > self.spec.prefixes:
            self._known.popitem(last=False)
