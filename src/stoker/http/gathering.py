"""Whole answers, gathered from the pipeline's pieces: for replies that are not streamed, and for jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from stoker.http.render import Answer
from stoker.observability.record import Record
from stoker.pipeline import Admitted, Pipeline
from stoker.types import Chunk

Heard = Callable[[int, Chunk], None]
"""Told each chunk as it comes, with the index of its prompt."""


async def gathered(
    pipeline: Pipeline, calls: Sequence[Admitted], record: Record, heard: Heard | None = None
) -> Sequence[Answer]:
    """The answers, in order; no more prompts at once than an engine has slots, so that one call fills no line.

    The first prompt that fails ends the others.
    """
    if len(calls) == 1:
        return [await _one(pipeline, calls[0], record, 0, heard)]
    places = asyncio.Semaphore(calls[0].pool.settings.slots)

    async def in_turn(index: int, call: Admitted) -> Answer:
        async with places:
            return await _one(pipeline, call, record, index, heard)

    tasks = [asyncio.create_task(in_turn(index, call)) for index, call in enumerate(calls)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(pipeline: Pipeline, call: Admitted, record: Record, index: int, heard: Heard | None) -> Answer:
    answer = Answer()
    async with contextlib.aclosing(pipeline.answer(call, record)) as chunks:
        async for chunk in chunks:
            answer.add(chunk)
            if heard is not None:
                heard(index, chunk)
    return answer
