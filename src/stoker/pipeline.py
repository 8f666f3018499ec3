"""The path of every request: route -> admit -> look up -> generate -> record. Whatever a request meets, it meets in
this order.

Routing stands first because everything behind it depends on the model: who may ask it, how the guard looks at it, and
the cache's key, which holds its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from stoker.admission.auth import Caller
from stoker.admission.gate import Gate
from stoker.admission.limits import Permit
from stoker.cache.answers import AnswerCache, Lookup
from stoker.engine.estimate import cost_of, cost_of_inputs, prompt_tokens
from stoker.engine.pool import ModelPool
from stoker.observability.record import Record
from stoker.observability.tracing import step
from stoker.types import Chunk, EmbeddingRequest, FinishReason, GenerationRequest, Usage
from stoker.wayfinder import Way, Wayfinder

Asked = Sequence[GenerationRequest | EmbeddingRequest]
"""One call: its prompts, or what is to be embedded; never empty."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request on its way: as it goes to the engines, and the model that answers it."""

    request: GenerationRequest
    pool: ModelPool


class Pipeline:
    """What all routes and all jobs go through.

    Args:
        wayfinder: finds the model that answers.
        gate: lets callers in, or not.
        cache: stored answers and shared generations.
    """

    def __init__(self, wayfinder: Wayfinder, gate: Gate, cache: AnswerCache) -> None:
        self.wayfinder = wayfinder
        self.cache = cache
        self._gate = gate

    @asynccontextmanager
    async def admitted(
        self, requests: Sequence[GenerationRequest], caller: Caller, headers: Mapping[str, str], record: Record
    ) -> AsyncGenerator[Sequence[Admitted]]:
        """Route and admit a call, which may hold several prompts: it counts as one until the context ends.

        Raises StokerError for what may not pass.
        """
        record.note_requests(requests)
        with step(record.trace, "admission"):
            way = self.wayfinder.find(requests[0], caller, headers, record)
            ready = [Admitted(way.prepare(request), way.pool) for request in requests]
            for one in ready:
                await self._gate.check(one.request, way.pool.settings.guard, caller, record)
            tokens = sum(cost_of(one.request, way.pool.settings) for one in ready)
            permit = await self._gate.permit(caller, record, tokens)
        try:
            yield ready
        finally:
            await _close(permit, record)

    @asynccontextmanager
    async def accepted(
        self, calls: Sequence[Asked], caller: Caller, headers: Mapping[str, str], record: Record
    ) -> AsyncGenerator[Permit]:
        """Admit calls that are made later, by `ready` or `vectors`: all of them or none, as one request.

        They are charged for what they may cost, and get nothing back of it; unless the context ends with an error, for
        then they are not made. Raises StokerError for what may not pass.

        Yields: the permit, for whoever finds that there is nothing to charge for.
        """
        record.note_requests([request for call in calls for request in call])
        with step(record.trace, "admission"):
            tokens = 0
            for call in calls:
                tokens += await self._check(call, caller, headers, record)
                await asyncio.sleep(0)  # many calls take a while, in which others are served
            permit = await self._gate.permit(caller, record, tokens)
        record.model = record.expert = None  # which one answers is decided when the call is made
        try:
            yield permit
        except BaseException:
            await permit.settle(0)
            raise
        finally:
            await permit.release()

    def ready(
        self, requests: Sequence[GenerationRequest], caller: Caller, headers: Mapping[str, str], record: Record
    ) -> Sequence[Admitted]:
        """Route a call that was accepted before; raises StokerError."""
        record.note_requests(requests)
        way = self.wayfinder.find(requests[0], caller, headers, record)
        return [Admitted(way.prepare(request), way.pool) for request in requests]

    async def vectors(
        self, request: EmbeddingRequest, caller: Caller, headers: Mapping[str, str], record: Record
    ) -> list[list[float]]:
        """A vector for each input of a call that was accepted before; raises StokerError."""
        record.note_requests([request])
        way = self.wayfinder.find(request, caller, headers, record)
        return await _embedded(way, request, record)

    async def answer(self, admitted: Admitted, record: Record) -> AsyncGenerator[Chunk]:
        """Look up, else generate: an admitted request's answer, piece by piece. Closing the generator cancels the work.

        Raises StokerError.
        """
        request, pool = admitted.request, admitted.pool
        lookup = Lookup(trace=record.trace)
        finish: FinishReason | None = None
        usage: Usage | None = None
        pieces = 0

        def generate() -> AsyncGenerator[Chunk]:
            return self._gate.guarded(request, pool.generate(request, record.timings, record.trace))

        try:
            chunks = self.cache.answer(request, pool.settings.identity, lookup, generate)
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not pieces:
                        record.note_first(lookup.outcome, lookup.age_s)
                    pieces += 1
                    finish = chunk.finish_reason or finish
                    usage = chunk.usage or usage  # some servers count on in every chunk
                    if record.said is not None:
                        record.said.append(chunk.text)
                    yield chunk
        finally:
            # Nobody counts what a caller has left; a piece is about a token, and leaving must not be free.
            used = usage or (Usage(prompt_tokens(request), pieces) if pieces else Usage())
            record.note(finish, used, lookup.outcome)

    async def embed(
        self, request: EmbeddingRequest, caller: Caller, headers: Mapping[str, str], record: Record
    ) -> list[list[float]]:
        """A vector for each input; raises StokerError."""
        record.note_requests([request])
        with step(record.trace, "admission"):
            way = self.wayfinder.find(request, caller, headers, record)
            self._gate.check_embedding(request)
            permit = await self._gate.permit(caller, record, cost_of_inputs(request.inputs))
        try:
            return await _embedded(way, request, record)
        finally:
            await _close(permit, record)

    async def _check(self, call: Asked, caller: Caller, headers: Mapping[str, str], record: Record) -> int:
        """Whether a call may pass, and what it may cost in tokens; raises StokerError."""
        way = self.wayfinder.find(call[0], caller, headers, record)
        tokens = 0
        for request in call:
            if isinstance(request, EmbeddingRequest):
                self._gate.check_embedding(request)
                tokens += cost_of_inputs(request.inputs)
            else:
                prepared = way.prepare(request)
                await self._gate.check(prepared, way.pool.settings.guard, caller, record)
                tokens += cost_of(prepared, way.pool.settings)
        return tokens


async def _embedded(way: Way, request: EmbeddingRequest, record: Record) -> list[list[float]]:
    vectors, usage = await way.pool.embed(request, record.timings, record.trace)
    record.note("stop", usage, "bypass")
    return vectors


async def _close(permit: Permit, record: Record) -> None:
    """The call has ended: what it computed is counted in place of what it might have."""
    await permit.settle(record.computed_tokens)
    await permit.release()
