"""One attempt at an engine, by whoever holds a slot of it: a streamed answer, or vectors; as a step of the trace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from stoker.engine import tools
from stoker.engine.client import EngineClient
from stoker.engine.process import Engine
from stoker.engine.wire import EngineCall
from stoker.errors import EngineDied, EngineError
from stoker.observability.tracing import Trace, step
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, Usage

EMBEDDING_BATCH = 8  # inputs in one call, so that long lists show progress to the watchdog and yield to deadlines


def stream(engine: Engine, request: GenerationRequest, call: EngineCall, trace: Trace | None) -> AsyncGenerator[Chunk]:
    """The answer to a call; tool calls are read out of its text and JSON answers looked at, where needed.

    Raises EngineDied when the engine is gone already, and while it is read as `EngineClient.stream` does.
    """
    client = _client_of(engine)
    if trace is None:
        chunks = client.stream(call, request.deadline)
    else:
        chunks = _traced(engine, client, call, request.deadline, trace)
    if call.parses_tools:
        return _read(chunks, tools.ToolStream(request.tool_use, call.shapes))
    return chunks if call.json is None else _read(chunks, tools.JsonStream(call.json))


async def embed(
    engine: Engine, request: EmbeddingRequest, model: str, trace: Trace | None
) -> tuple[list[list[float]], Usage]:
    """Vectors for every input, in order; `model` is what the engine calls it. Raises as `EngineClient.embed` does."""
    vectors: list[list[float]] = []
    tokens = 0
    with step(trace, "engine", {"stoker.engine": engine.name}, "client"):
        client = _client_of(engine)
        for start in range(0, len(request.inputs), EMBEDDING_BATCH):
            inputs = [
                text if isinstance(text, str) else list(text) for text in request.inputs[start:][:EMBEDDING_BATCH]
            ]
            batch, usage = await client.embed(model, inputs, request.deadline)
            if len(batch) != len(inputs):
                raise EngineError(f"the engine gave {len(batch)} vectors for {len(inputs)} inputs")
            vectors += batch
            tokens += usage.prompt_tokens
    return vectors, Usage(prompt_tokens=tokens)


def _client_of(engine: Engine) -> EngineClient:
    if engine.client is None:
        raise EngineDied("the engine is gone")
    return engine.client


async def _traced(
    engine: Engine, client: EngineClient, call: EngineCall, deadline: float, trace: Trace
) -> AsyncGenerator[Chunk]:
    """An engine's stream as a step of a trace, which the engine is told of."""
    with trace.child("engine", {"stoker.engine": engine.name}, "client") as span:
        async with contextlib.aclosing(client.stream(call, deadline, trace.headers())) as chunks:
            begun = False
            async for chunk in chunks:
                if not begun:
                    begun = True
                    span.event("first token")
                yield chunk


async def _read(chunks: AsyncGenerator[Chunk], reader: tools.ToolStream | tools.JsonStream) -> AsyncGenerator[Chunk]:
    """An answer through a reader, until that has heard enough."""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            for piece in reader.feed(chunk):
                yield piece
            if reader.settled:
                yield Chunk(finish_reason="tool_calls")
                return
