"""Many replicas, their balancers, clients that try again, deaths, starts and the autoscaler: the loop over events."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from scaling.autoscale import PERIOD_S, Autoscaler, Policy
from scaling.balance import BALANCERS, Balancer
from scaling.clients import GIVES_UP, Patience
from scaling.engine import EngineSpec
from scaling.outcome import BROKEN, REFUSED, SERVED, TIMED_OUT, Ledger, Outcome
from scaling.replica import NEVER, Attempt, LineSpec, Replica
from scaling.workload import Trace
from stoker.engine.estimate import MESSAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Failure:
    """At this instant so many replicas die at once; each starts again."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Setup:
    """A cluster.

    Args:
        engine, line: of each replica.
        replicas: at the beginning, all of them ready.
        balancer: a name of `BALANCERS`.
        views: balancers side by side; a request goes through any of them.
        timeout_s: the deadline of each attempt.
        start_s: from the decision to have a replica, or from its death, until it is ready.
        detect_s: from a death until the balancers know; what they send there meanwhile is broken.
        seed: of everything random that is not in the trace.
    """

    engine: EngineSpec
    replicas: int = 1
    balancer: str = "least loaded"
    views: int = 1
    line: LineSpec = field(default_factory=LineSpec)
    timeout_s: float = 300.0
    start_s: float = 5.0
    detect_s: float = 1.0
    patience: Patience = GIVES_UP
    failures: tuple[Failure, ...] = ()
    policy: Policy | None = None
    seed: int = 0


def simulate(setup: Setup, trace: Trace) -> Outcome:
    """Everything that becomes of the trace, until the last attempt is over."""
    return Simulation(setup, trace).run()


class Simulation:
    """One run. Events are (instant, serial, act, subject); arrivals and deadlines are in order by themselves."""

    def __init__(self, setup: Setup, trace: Trace) -> None:
        self.setup = setup
        self.trace = trace
        self.now = 0.0
        self.ledger = Ledger()
        self.chance = random.Random(setup.seed)
        self.views: list[Balancer] = [BALANCERS[setup.balancer](self.chance) for _ in range(setup.views)]
        self.ready: dict[int, Replica] = {}
        self.starting: dict[int, Replica] = {}
        self.down: set[int] = set()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = count()
        self._numbers = count()
        self._deadlines: deque[Attempt] = deque()
        self._open = 0  # attempts that are not over, and pauses before new ones
        self._scaler = Autoscaler(setup.policy) if setup.policy else None
        for _ in range(setup.replicas):
            replica = self._new()
            self.starting[replica.number] = replica
            self._on_ready(replica)
        for failure in setup.failures:
            self._at(failure.at, self._on_failure, failure.replicas)
        if self._scaler:
            self._at(PERIOD_S, self._on_period)

    def run(self) -> Outcome:
        """Go from event to event until all is over."""
        times, position = self.trace.times.tolist(), 0
        while position < len(times) or self._open:
            arrival = times[position] if position < len(times) else NEVER
            event = self._events[0][0] if self._events else NEVER
            while self._deadlines and self._deadlines[0].over:
                self._deadlines.popleft()
            deadline = self._deadlines[0].deadline if self._deadlines else NEVER
            if arrival <= event and arrival <= deadline:
                self.now = arrival
                self._attempt(position, 0)
                position += 1
            elif deadline < event:
                self.now = deadline
                self._expire(self._deadlines.popleft())
            else:
                self.now, _, act, subject = heapq.heappop(self._events)
                act(*subject)
        return self.ledger.close(self.now)

    def _at(self, instant: float, act: Callable[..., None], *subject: object) -> None:
        heapq.heappush(self._events, (instant, next(self._serial), act, subject))

    # -- attempts --------------------------------------------------------------------------------------------------

    def _attempt(self, number: int, tries: int) -> None:
        trace, work = self.trace, self.trace.work
        prompt = float(trace.prompts[number])
        attempt = Attempt(
            cost=max(1, int(prompt + work.prefix) + MESSAGE_TOKENS + work.limit),
            tenant="",
            number=number,
            tries=tries,
            arrived=self.now,
            deadline=self.now + self.setup.timeout_s,
            prompt=prompt,
            answer=float(trace.answers[number]),
            beginning=int(trace.keys[number]) if work.prefix else -1,
            prefix=float(work.prefix),
        )
        self.ledger.arrivals += 1
        self._open += 1
        if len(self.views) > 1:
            attempt.view = int(self.chance.random() * len(self.views))
        self._send(attempt)

    def _send(self, attempt: Attempt) -> None:
        view = self.views[attempt.view]
        if not view.members:
            self._over(attempt, BROKEN)
            return
        replica = view.choose(attempt.beginning)
        if replica.number in self.down:
            self._over(attempt, BROKEN)
            return
        refused = replica.offer(self.now, attempt)
        if refused is not None:
            self._over(attempt, REFUSED, refused)
            return
        attempt.replica = replica
        view.began(replica)
        if self.setup.timeout_s < NEVER:
            self._deadlines.append(attempt)
        self._plan(replica)

    def _over(self, attempt: Attempt, fate: int, retry_after: float | None = None) -> None:
        attempt.over = True
        self._open -= 1
        times = (attempt.arrived, attempt.started, attempt.first, self.now)
        self.ledger.rows.append((attempt.number, fate, *times, attempt.tries, attempt.hit))
        if fate in {REFUSED, BROKEN}:
            pause = self.setup.patience.wait(attempt.tries, retry_after, self.chance)
            if pause is not None:
                self._open += 1
                self._at(self.now + pause, self._on_retry, attempt.number, attempt.tries + 1)

    def _on_retry(self, number: int, tries: int) -> None:
        self._open -= 1
        self._attempt(number, tries)

    def _expire(self, attempt: Attempt) -> None:
        replica = attempt.replica
        if replica is None:
            return
        replica.leave(self.now, attempt)
        self.views[attempt.view].ended(replica)
        self._over(attempt, TIMED_OUT)
        self._plan(replica)

    # -- replicas --------------------------------------------------------------------------------------------------

    def _new(self) -> Replica:
        replica = Replica(next(self._numbers), self.setup.engine, self.setup.line)
        replica.clock = self.now
        return replica

    def _plan(self, replica: Replica) -> None:
        due = replica.due()
        replica.version += 1
        if due < math.inf:
            self._at(due, self._on_step, replica, replica.version)

    def _on_step(self, replica: Replica, version: int) -> None:
        if version != replica.version:
            return
        for attempt in replica.step(self.now):
            self.views[attempt.view].ended(replica)
            self._over(attempt, SERVED)
        self._plan(replica)

    def _on_ready(self, replica: Replica) -> None:
        if self.starting.pop(replica.number, None) is None:
            return
        self.down.discard(replica.number)
        replica.advance(self.now)
        replica.busy_s = replica.load_s = 0.0
        self.ready[replica.number] = replica
        for view in self.views:
            view.join(replica)
        self._note()

    def _on_failure(self, number: int) -> None:
        for key in self.chance.sample(sorted(self.ready), min(number, len(self.ready))):
            replica = self.ready.pop(key)
            self.down.add(key)
            replica.version += 1
            for attempt in replica.die(self.now):
                self.views[attempt.view].ended(replica)
                self._over(attempt, BROKEN)
            self.starting[key] = replica
            self._at(self.now + min(self.setup.detect_s, self.setup.start_s), self._on_detected, replica)
            self._at(self.now + self.setup.start_s, self._on_ready, replica)
        self._note()

    def _on_detected(self, replica: Replica) -> None:
        for view in self.views:
            view.leave(replica)

    # -- their number ----------------------------------------------------------------------------------------------

    def _on_period(self) -> None:
        scaler = self._scaler
        if scaler is None:
            return
        self._at(self.now + PERIOD_S, self._on_period)
        ready = list(self.ready.values())
        for replica in ready:
            replica.advance(self.now)
        spent = sum(r.busy_s if scaler.policy.metric == "cpu" else r.load_s for r in ready)
        for replica in ready:
            replica.busy_s = replica.load_s = 0.0
        metric = spent / PERIOD_S / max(1, len(ready))
        wanted = scaler.decide(self.now, metric, len(ready), len(self.starting))
        have = len(ready) + len(self.starting)
        for _ in range(wanted - have):
            replica = self._new()
            self.starting[replica.number] = replica
            self._at(self.now + self.setup.start_s, self._on_ready, replica)
        self._shrink(have - wanted)
        self._note()

    def _shrink(self, number: int) -> None:
        """Take the youngest away; those that were ready finish what they have."""
        for _ in range(max(0, number)):
            if self.starting:
                self.starting.pop(max(self.starting))
                continue
            replica = self.ready.pop(max(self.ready))
            for view in self.views:
                view.leave(replica)

    def _note(self) -> None:
        self.ledger.replicas.append((self.now, len(self.ready), len(self.starting)))
