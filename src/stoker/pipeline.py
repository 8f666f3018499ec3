"""The path of every request: admit, route, generate, record. Whatever a request meets, it meets in this order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from stoker.admission.validation import check_embedding, check_generation
from stoker.config import LimitsConfig
from stoker.engine.pool import ModelPool
from stoker.errors import ModelNotFound
from stoker.observability.record import Record
from stoker.types import Chunk, EmbeddingRequest, FinishReason, GenerationRequest, Usage

DEFAULT_NAMES = frozenset({"", "default"})


class Pipeline:
    """What all routes and, later, all jobs go through.

    Args:
        pools: the models that are served, by name.
        default: the name that answers when none, or `default`, is asked for.
        limits: bounds of a single request.
    """

    def __init__(self, pools: Mapping[str, ModelPool], default: str, limits: LimitsConfig) -> None:
        self.pools = pools
        self.limits = limits
        self._default = default

    def find(self, name: str) -> ModelPool:
        """The pool of a model by the name in a request; ModelNotFound lists the names that there are."""
        pool = self.pools.get(self._default if name in DEFAULT_NAMES else name)
        if pool is None:
            known = ", ".join(sorted(self.pools))
            raise ModelNotFound(f"model {name[:128]!r} is not served here; there is: {known}", param="model")
        return pool

    def _route(self, name: str, record: Record) -> ModelPool:
        pool = self.find(name)
        record.model = pool.settings.identity
        record.route_reason = "default" if name in DEFAULT_NAMES else "named"
        return pool

    async def generate(self, request: GenerationRequest, record: Record) -> AsyncGenerator[Chunk]:
        """The answer to `request`, piece by piece; raises StokerError. Closing the generator cancels the work."""
        check_generation(request, self.limits)
        pool = self._route(request.model, record)
        finish: FinishReason | None = None
        usage = Usage()
        try:
            async with aclosing(pool.generate(request, record.timings)) as chunks:
                async for chunk in chunks:
                    finish = chunk.finish_reason or finish
                    usage = chunk.usage or usage  # some servers count on in every chunk
                    yield chunk
        finally:
            record.note(finish, usage)

    async def embed(self, request: EmbeddingRequest, record: Record) -> list[list[float]]:
        """A vector for each input; raises StokerError."""
        check_embedding(request, self.limits)
        pool = self._route(request.model, record)
        vectors, usage = await pool.embed(request, record.timings)
        record.note("stop", usage)
        return vectors
