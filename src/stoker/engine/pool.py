"""A model's engines behind one waiting line: at most `slots` requests are at an engine, the rest wait here.

The line hands a freed slot to the next request in the same step of the event loop. A request whose engine dies before
its first token goes back to the front of the line; one that has begun ends with an explicit error.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stoker.config import GenerationConfig, GuardPolicy, QueueConfig
from stoker.engine import attempt, tools
from stoker.engine.estimate import affinity_key, cost_of, cost_of_inputs, most_tokens
from stoker.engine.process import Engine, EngineState
from stoker.engine.queue import ServiceMeter, Ticket, WaitingLine, retry_after
from stoker.engine.wire import Capabilities, Dialect, EngineCall, compose
from stoker.errors import ContextOverflow, DeadlineExceeded, EngineDied, NotReady, Overloaded
from stoker.observability.tracing import Trace, step
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, ModelIdentity, Priority, Timings, Usage

ATTEMPTS = 5  # a request that saw so many engines die under it is likelier their cause than their victim
AFFINITY_ENTRIES = 1024
METER_SAMPLES = 8
STOPPING = "the server is stopping; send the request to another replica"
LONG_AWAY_S = 20.0  # a restart is sooner over; a server by URL that is away for longer may be so for hours


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a pool needs to know of its model: `slots` is for each engine, `context` tokens for each slot.

    `job_share` of the turns goes to jobs while interactive requests wait too, 0..1.
    """

    identity: ModelIdentity
    slots: int
    context: int
    dialect: Dialect
    wire_model: str
    tools: str
    queue: QueueConfig
    generation: GenerationConfig
    guard: GuardPolicy = field(default_factory=GuardPolicy)
    most_prompt_tokens: int | None = None
    job_share: float = 0.0


@dataclass(slots=True, eq=False)
class Lease:
    """A slot that a request holds. Its cost and `since` feed the meter when it is `finished` and given back."""

    engine: Engine
    ticket: Ticket
    since: float
    finished: bool = False


class ModelPool:
    """The engines of one model.

    Args:
        settings: the model's identity and bounds.
        engines: makes the engines, given the function that they call when their state changes.
    """

    def __init__(self, settings: PoolSettings, engines: Callable[[Callable[[], None]], Sequence[Engine]]) -> None:
        self.settings = settings
        self.line = WaitingLine(settings.queue.max_requests, settings.queue.max_tokens, settings.job_share)
        self.meter = ServiceMeter()
        self.refused = 0
        self.engines = engines(self._on_change)
        self._leases: dict[str, int] = {engine.name: 0 for engine in self.engines}
        self._waiters: dict[Ticket, asyncio.Future[Lease]] = {}
        self._affinity: OrderedDict[int, str] = OrderedDict()
        self._changed = asyncio.Event()
        self._owners: list[asyncio.Task[None]] = []
        self._refusal = ""
        self._closed = False

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engines' owner tasks; `wait_ready` says when the first one can answer."""
        self._owners = [asyncio.create_task(engine.run(), name=engine.name) for engine in self.engines]

    async def wait_ready(self) -> None:
        """Return when an engine is ready; EngineDied when all of them are given up, or were stopped."""
        while not self.ready:
            if self.failed or self._closed:
                raise EngineDied(f"model {self.settings.identity.name}: {self.trouble()}")
            self._changed.clear()
            await self._changed.wait()

    def refuse_new(self, reason: str = STOPPING) -> None:
        """Begin to drain: whoever is in the line or at an engine finishes, nobody new is let in."""
        self._refusal = reason

    async def stop(self) -> None:
        """End every engine and whoever still waits."""
        self._refusal = self._refusal or STOPPING
        self._closed = True
        self._changed.set()
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(NotReady(self._refusal, retry_after=5))
        for engine in self.engines:
            engine.stop()
        if self._owners:  # whoever gives up waiting for them must not end them: they see to their children
            await asyncio.wait(self._owners)

    @property
    def ready(self) -> bool:
        """Whether an engine can take requests now."""
        return any(engine.state is EngineState.READY for engine in self.engines)

    @property
    def failed(self) -> bool:
        """Whether every engine has been given up."""
        return all(engine.state is EngineState.FAILED for engine in self.engines)

    @property
    def stopped(self) -> bool:
        """Whether its engines were ended for good."""
        return self._closed

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return sum(self._leases.values())

    @property
    def slots(self) -> int:
        """Slots of the engines that are ready."""
        return self.settings.slots * sum(engine.state is EngineState.READY for engine in self.engines)

    @property
    def kv_cache_ratio(self) -> float | None:
        """Share of the ready engines' KV cache that running requests use, 0..1; None when engines do not tell."""
        held = [engine.tokens_held for engine in self.engines if engine.tokens_held is not None]
        room = self.settings.context * self.settings.slots * len(held)
        return min(sum(held) / room, 1.0) if room else None

    def trouble(self) -> str:
        """Why the model does not answer, in words."""
        reasons = [f"{engine.name} {engine.state}: {engine.last_error or 'no reason known'}" for engine in self.engines]
        return "; ".join(reasons)

    # -- work ------------------------------------------------------------------------------------------------------

    async def generate(
        self, request: GenerationRequest, timings: Timings, trace: Trace | None = None
    ) -> AsyncGenerator[Chunk]:
        """Wait for a slot and yield the answer's chunks; closing the generator cancels the work and frees the slot.

        Raises:
            Overloaded: the line is full, or the deadline would pass in it.
            NotReady: the model is down for good, or the server stops.
            DeadlineExceeded, EngineDied, RequestError: as they say.
        """
        begun = False
        ticket = self._ticket(request, cost_of(request, self.settings), affinity_key(request))
        arrived = time.monotonic()
        call = None
        if self.props:  # what cannot be asked, or does not fit, costs no slot
            call = await self._compose(request)
            await self._refuse_overflow(request, call)
        for number in count(1):
            with step(trace, "queue"):
                lease = await self._acquire(ticket, request.deadline)
            timings.attempts += 1
            timings.engine = lease.engine.name
            if timings.queue_ms < 0:
                timings.queue_ms = (time.monotonic() - arrived) * 1000
            try:
                if call is None:
                    call = await self._compose(request)
                async with contextlib.aclosing(attempt.stream(lease.engine, request, call, trace)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                lease.finished = True
                lease.engine.note_success()
            except EngineDied as error:
                lease.engine.note_broken()
                self._explain_death(error, begun=begun, attempts=number)
                continue
            finally:
                self._release(lease)
            return

    async def embed(
        self, request: EmbeddingRequest, timings: Timings, trace: Trace | None = None
    ) -> tuple[list[list[float]], Usage]:
        """Vectors for every input, in order; raises as `generate` does."""
        ticket = self._ticket(request, cost_of_inputs(request.inputs))
        arrived = time.monotonic()
        for number in count(1):
            with step(trace, "queue"):
                lease = await self._acquire(ticket, request.deadline)
            timings.attempts += 1
            timings.engine = lease.engine.name
            timings.queue_ms = (time.monotonic() - arrived) * 1000
            try:
                answer = await attempt.embed(lease.engine, request, self.settings.wire_model, trace)
                lease.finished = True
                lease.engine.note_success()
            except EngineDied as error:
                lease.engine.note_broken()
                self._explain_death(error, begun=False, attempts=number)
                continue
            finally:
                self._release(lease)
            timings.first_token_ms = (time.monotonic() - arrived) * 1000
            return answer
        raise AssertionError  # the loop above has no end of its own

    @staticmethod
    def _ticket(request: GenerationRequest | EmbeddingRequest, cost: int, key: int | None = None) -> Ticket:
        return Ticket(cost, request.principal.tenant, request.priority, admitted=request.admitted, key=key)

    async def _compose(self, request: GenerationRequest) -> EngineCall:
        """The call for the engines, which are all of one kind; schemas are worked on beside the event loop."""
        bounds, model = self.settings.generation, self.settings.wire_model
        if request.tool_use is None and request.response_format is None:
            return compose(request, self.capabilities(), bounds, model)
        return await asyncio.to_thread(compose, request, self.capabilities(), bounds, model)

    async def _refuse_overflow(self, request: GenerationRequest, call: EngineCall) -> None:
        """Have a prompt counted that may be too long; ContextOverflow when it is. Most are too short to be asked about.

        A token is a byte at least, and what templates add is bounded by a margin for each message.
        """
        room = min(self.settings.context or math.inf, (self.settings.most_prompt_tokens or math.inf) + 1)
        client = next((engine.client for engine in self.engines if engine.state is EngineState.READY), None)
        if self.settings.dialect != "llamacpp" or client is None or most_tokens(request) < room:
            return
        count = await client.count_tokens(call)
        if count is not None and count >= room:
            raise ContextOverflow(
                f"the prompt has {count} tokens, more than the context has room for ({int(room) - 1}); shorten it",
                param="prompt" if request.kind == "completion" else "messages",
            )

    @property
    def props(self) -> Mapping[str, Any]:
        """What the engines say of themselves; empty until the first one is ready."""
        return next((engine.props for engine in self.engines if engine.props), {})

    def capabilities(self) -> Capabilities:
        """What the engines can do, from their own words and the configuration."""
        props = self.props
        mode = self.settings.tools
        if self.settings.dialect == "llamacpp":
            native = not tools.wants_emulation(props.get("chat_template_caps") or {}, mode)
        else:
            native = mode != "emulated"
        end = str(props.get("eos_token") or "")
        return Capabilities(self.settings.dialect, native_tools=native, context=self.settings.context, end=end)

    def _explain_death(self, error: EngineDied, *, begun: bool, attempts: int) -> None:
        """Raise what the caller must hear, or return when the request is to be tried again."""
        if self._closed:
            raise NotReady(f"the answer is incomplete: {self._refusal}", retry_after=5) from None
        if begun:
            raise EngineDied(f"the answer is incomplete: {error.message}; send the request again", retry_after=1)
        if attempts >= ATTEMPTS:
            raise EngineDied(f"{attempts} engines in a row died on this request; it is not tried again") from None

    # -- slots -----------------------------------------------------------------------------------------------------

    async def _acquire(self, ticket: Ticket, deadline: float) -> Lease:
        """A slot, at once or after waiting in line until `deadline`."""
        self._admit(ticket, deadline)
        engine = self._choose(ticket.key) if ticket.served or not len(self.line) else None
        if engine is not None:
            return self._lease(engine, ticket)
        self.line.push(ticket)
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters[ticket] = waiter
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())  # granted in the very step in which the caller left or ran out of time
            if isinstance(error, TimeoutError):
                message = "the deadline passed while the request waited for a slot"
                raise DeadlineExceeded(message, retry_after=1) from None
            raise
        finally:
            self.line.remove(ticket)
            self._waiters.pop(ticket, None)

    def _admit(self, ticket: Ticket, deadline: float) -> None:
        """Refuse what cannot be served: a full line, a hopeless deadline, a model that is down."""
        if self.failed:
            raise NotReady(f"model {self.settings.identity.name} is down: {self.trouble()}")
        if self._closed:  # nobody would ever be served, not even who was let in
            raise NotReady(self._refusal, retry_after=5)
        if ticket.served or ticket.admitted:
            return
        if self._refusal:
            raise NotReady(self._refusal, retry_after=5)
        if min(engine.away_s for engine in self.engines) > LONG_AWAY_S:
            raise NotReady(f"model {self.settings.identity.name} is away: {self.trouble()}", retry_after=5)
        if ticket.priority is Priority.JOB:  # these are few, and have been accepted
            return
        wait = self.expected_wait()
        free = self.running < self.slots and not len(self.line)
        if not free and not self.line.has_room(ticket.cost):
            self.refused += 1
            raise Overloaded(
                f"{len(self.line)} requests (about {self.line.tokens} tokens) are waiting already; try again later",
                retry_after=retry_after(wait),
            )
        if not free and self.meter.samples >= METER_SAMPLES and time.monotonic() + wait > deadline:
            self.refused += 1
            raise Overloaded(
                f"the wait would be about {wait:.0f} s, longer than this request's deadline",
                retry_after=retry_after(wait - (deadline - time.monotonic())),
            )

    def expected_wait(self) -> float:
        """Seconds that an interactive newcomer would wait, from the measured rate; 0 while that is unknown."""
        hopeful = sum(engine.state is not EngineState.FAILED for engine in self.engines)  # a restart is soon over
        return self.meter.wait(self.line.tokens_ahead, self.settings.slots * max(1, hopeful))

    def _free(self) -> list[Engine]:
        """Ready engines with a slot to spare."""
        return [
            engine
            for engine in self.engines
            if engine.state is EngineState.READY and self._leases[engine.name] < self.settings.slots
        ]

    def _choose(self, key: int | None) -> Engine | None:
        """The ready engine for a request: the one that last saw its prefix if that has a free slot, else the idlest."""
        free = self._free()
        if not free:
            return None
        if key is None or len(self.engines) == 1:
            return min(free, key=lambda engine: self._leases[engine.name])
        home = self._affinity.get(key)
        chosen = next((engine for engine in free if engine.name == home), None)
        if chosen is None:
            chosen = min(free, key=lambda engine: self._leases[engine.name])
        self._affinity[key] = chosen.name
        self._affinity.move_to_end(key)
        if len(self._affinity) > AFFINITY_ENTRIES:
            self._affinity.popitem(last=False)
        return chosen

    def _lease(self, engine: Engine, ticket: Ticket) -> Lease:
        self._leases[engine.name] += 1
        ticket.served = True
        return Lease(engine, ticket, time.monotonic())

    def _release(self, lease: Lease) -> None:
        self._leases[lease.engine.name] -= 1
        if lease.finished:  # one that failed or was left says nothing about the speed
            self.meter.note(lease.ticket.cost, time.monotonic() - lease.since)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free slots to those who wait, in the line's order."""
        while len(self.line) and self._free():
            ticket = self.line.pop()
            waiter = self._waiters.get(ticket) if ticket else None
            engine = self._choose(ticket.key) if ticket and waiter and not waiter.done() else None
            if ticket and waiter and engine:
                waiter.set_result(self._lease(engine, ticket))

    def _on_change(self) -> None:
        """An engine changed its state: wake whoever may go on, and whoever cannot hope any more."""
        self._changed.set()
        if self.failed:
            for waiter in self._waiters.values():
                if not waiter.done():
                    waiter.set_exception(NotReady(f"model {self.settings.identity.name} is down: {self.trouble()}"))
        self._dispatch()
