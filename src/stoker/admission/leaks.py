"""Keeps out of an answer what must not leave in it, in whatever part of the answer it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from stoker.admission.guard.output import OutputFilter
from stoker.types import Chunk, JsonObject, ToolCallDelta


class AnswerFilter:
    """One answer's filters: its text, its reasoning and each call's arguments are looked at by themselves.

    Log probabilities spell the text out too, ahead of what is held back; they come with the last piece, or not at all.

    Args:
        make: a fresh filter for one of those parts.
    """

    def __init__(self, make: Callable[[], OutputFilter]) -> None:
        self._make = make
        self._text = make()
        self._reasoning = make()
        self._calls: dict[int, OutputFilter] = {}
        self._logprobs: list[JsonObject] = []

    @property
    def tripped(self) -> str | None:
        """What the answer would have told; None while it is clean."""
        parts = (self._text, self._reasoning, *self._calls.values())
        return next((part.tripped for part in parts if part.tripped), None)

    def feed(self, chunk: Chunk) -> Chunk:
        """What may go out of this chunk now."""
        self._logprobs += chunk.logprobs
        text, reasoning = self._text.feed(chunk.text), self._reasoning.feed(chunk.reasoning)
        calls = tuple(self._feed_call(delta) for delta in chunk.tool_calls)
        if chunk.finish_reason is None:
            return replace(chunk, text=text, reasoning=reasoning, tool_calls=calls, logprobs=())
        text, reasoning = text + self._text.finish(), reasoning + self._reasoning.finish()
        rest = [(index, part.finish()) for index, part in self._calls.items()]
        calls += tuple(ToolCallDelta(index, arguments=held) for index, held in rest if held)
        return replace(chunk, text=text, reasoning=reasoning, tool_calls=calls, logprobs=tuple(self._logprobs))

    def _feed_call(self, delta: ToolCallDelta) -> ToolCallDelta:
        part = self._calls.setdefault(delta.index, self._make())
        return replace(delta, arguments=part.feed(delta.arguments))


async def filtered(
    chunks: AsyncGenerator[Chunk], make: Callable[[], OutputFilter], on_leak: Callable[[str], None]
) -> AsyncGenerator[Chunk]:
    """The answer as far as it is clean; where it is not it ends with `content_filter`, and `on_leak` hears what it was.

    Args:
        chunks: the answer; the caller closes it.
        make: as in AnswerFilter.
        on_leak: told `secret`, `canary` or `system prompt`.
    """
    answer = AnswerFilter(make)
    async with aclosing(chunks):
        async for chunk in chunks:
            safe = answer.feed(chunk)
            if answer.tripped is not None:
                on_leak(answer.tripped)
                yield Chunk(text=safe.text, finish_reason="content_filter", usage=chunk.usage)
                return
            if safe != Chunk():
                yield safe
