"""The cache in the path of a request: a stored answer, or a generation that is under way, or a new one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from stoker.cache.entry import decode, encode
from stoker.cache.flights import Flight, Flights, Source
from stoker.cache.key import key_of, prefix_of, shareable, worth_storing
from stoker.config import CacheConfig
from stoker.errors import DeadlineExceeded
from stoker.observability.tracing import Trace, step
from stoker.store.protocols import KeyValue
from stoker.types import Chunk, GenerationRequest, ModelIdentity

Outcome = Literal["hit", "miss", "joined", "bypass"]


@dataclass(slots=True)
class Lookup:
    """How the cache served a request; `age_s` of a stored answer, in seconds. `trace` is the request's."""

    outcome: Outcome = "bypass"
    age_s: float | None = None
    trace: Trace | None = None


class AnswerCache:
    """Stored answers and shared generations.

    Args:
        config: what is stored, and for how long.
        store: where; one that fails is to answer None, as `store.fallback` does.
        settings: whatever in the configuration shapes answers, as bytes that change when it does.

    `lookups` counts the outcomes.
    """

    def __init__(self, config: CacheConfig, store: KeyValue, settings: bytes) -> None:
        self._config = config
        self._store = store
        self._settings = settings
        self.flights = Flights()
        self.lookups: Counter[str] = Counter()

    def answer(
        self, request: GenerationRequest, identity: ModelIdentity, lookup: Lookup, generate: Source
    ) -> AsyncGenerator[Chunk]:
        """The answer's chunks, from wherever they are had; `lookup` says from where before the first one comes.

        Args:
            request: what is asked.
            identity: the model that answers.
            lookup: told of the outcome.
            generate: makes the answer anew; raises StokerError, which every follower sees.
        """
        if not shareable(request, self._config):
            lookup.outcome = "bypass"
            self.lookups["bypass"] += 1
            return generate()
        return self._shared(request, key_of(request, identity, self._settings), lookup, generate)

    async def _shared(
        self, request: GenerationRequest, key: str, lookup: Lookup, generate: Source
    ) -> AsyncGenerator[Chunk]:
        # A person who joined a job's generation would wait as long as the job does.
        flight_key = f"{key}:{request.priority}"
        async for chunk in self._stored(key, flight_key, lookup):
            yield chunk
        if lookup.outcome == "hit":
            return
        begun = False
        while True:
            flight = self._flight(key, flight_key, lookup, generate)
            try:
                async with aclosing(flight.follow(request.deadline)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except DeadlineExceeded:
                # The deadline may have been the first caller's, and this one may have more time.
                if begun or lookup.outcome != "joined" or time.monotonic() >= request.deadline:
                    raise
                continue
            return

    async def clear(self, identity: ModelIdentity | None) -> int:
        """Forget the answers of a model, or of all; how many those were."""
        return await self._store.delete_prefix("answer:" if identity is None else prefix_of(identity))

    async def _stored(self, key: str, flight_key: str, lookup: Lookup) -> AsyncGenerator[Chunk]:
        if self.flights.find(flight_key) is not None:
            return  # fresher than anything that is stored, and nearer
        with step(lookup.trace, "cache"):
            raw = await self._store.get(key)
            entry = decode(raw) if raw is not None else None
        if entry is not None:
            lookup.outcome, lookup.age_s = "hit", entry.age_s
            self.lookups["hit"] += 1
            for chunk in entry.chunks:
                yield chunk

    def _flight(self, key: str, flight_key: str, lookup: Lookup, generate: Source) -> Flight:
        flight = self.flights.find(flight_key)
        if flight is not None:
            lookup.outcome = "joined"
            self.lookups["joined"] += 1
            return flight
        lookup.outcome = "miss"
        self.lookups["miss"] += 1

        async def store(chunks: Sequence[Chunk]) -> None:
            finish = next((chunk for chunk in reversed(chunks) if chunk.finish_reason is not None), None)
            if worth_storing(finish, self._config):
                raw = encode(chunks, time.time())
                if len(raw) <= self._config.max_entry_kib * 1024:
                    await self._store.set(key, raw, self._config.ttl)

        return self.flights.start(flight_key, generate, store)
