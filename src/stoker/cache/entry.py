"""A finished answer as bytes in a store, and back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stoker.types import Chunk, FinishReason, ToolCallDelta, Usage


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer: its chunks, merged into one or two, and when it was made, in seconds of Unix time."""

    chunks: tuple[Chunk, ...]
    made_at: float

    @property
    def age_s(self) -> float:
        """Seconds since it was made, >= 0."""
        return max(0.0, time.time() - self.made_at)


def encode(chunks: Sequence[Chunk], made_at: float) -> bytes:
    """An answer's chunks as bytes; what a stream brought in pieces becomes one."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for chunk in chunks:
        for delta in chunk.tool_calls:
            calls.setdefault(delta.index, []).append(delta)
    document = {
        "made_at": made_at,
        "text": "".join(chunk.text for chunk in chunks),
        "reasoning": "".join(chunk.reasoning for chunk in chunks),
        "calls": [_call(deltas) for _, deltas in sorted(calls.items())],
        "logprobs": [token for chunk in chunks for token in chunk.logprobs],
        "finish": _last(chunk.finish_reason for chunk in chunks),
        "usage": _usage(_last(chunk.usage for chunk in chunks)),
    }
    return orjson.dumps(document)


def decode(raw: bytes) -> Entry | None:
    """The entry in a store's bytes; None when they are not one, whoever wrote them."""
    try:
        document = orjson.loads(raw)
        finish: FinishReason = document["finish"]
        calls = tuple(
            ToolCallDelta(index, call["id"], call["name"], call["arguments"])
            for index, call in enumerate(document["calls"])
        )
        said = Chunk(document["text"], document["reasoning"], calls, tuple(document["logprobs"]))
        end = Chunk(finish_reason=finish, usage=Usage(*document["usage"]))
        return Entry((said, end) if said != Chunk() else (end,), float(document["made_at"]))
    except (ValueError, TypeError, LookupError):
        return None


def _call(deltas: Sequence[ToolCallDelta]) -> dict[str, Any]:
    return {
        "id": _last(delta.id for delta in deltas),
        "name": _last(delta.name for delta in deltas),
        "arguments": "".join(delta.arguments for delta in deltas),
    }


def _usage(usage: Usage | None) -> list[int]:
    usage = usage or Usage()
    return [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens]


def _last(values: Iterable[Any]) -> Any:
    """The last that says something."""
    return next((value for value in reversed(list(values)) if value is not None), None)
