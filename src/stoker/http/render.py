"""From our chunks to the wire: OpenAI's JSON objects and server-sent events, as ready bytes.

Source: https://platform.openai.com/docs/api-reference (objects `chat.completion`, `chat.completion.chunk`,
`text_completion`, `list`). The parts of an event that stay the same through a stream are encoded once.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from stoker.errors import StokerError
from stoker.http.envelope import openai_error
from stoker.observability.record import Record
from stoker.types import Chunk, FinishReason, GenerationRequest, JsonObject, ModelIdentity, ToolCallDelta, Usage

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """A finished answer, gathered from its chunks."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    logprobs: list[JsonObject] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        if chunk.text:
            self.texts.append(chunk.text)
        if chunk.reasoning:
            self.reasonings.append(chunk.reasoning)
        if chunk.logprobs:
            self.logprobs.extend(chunk.logprobs)
        for delta in chunk.tool_calls:
            self.calls.setdefault(delta.index, []).append(delta)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
        if chunk.usage is not None:
            self.usage = chunk.usage

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)

    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls in OpenAI's form."""
        return [
            {
                "id": next((delta.id for delta in deltas if delta.id), f"call_{index}"),
                "type": "function",
                "function": {
                    "name": next((delta.name for delta in deltas if delta.name), ""),
                    "arguments": "".join(delta.arguments for delta in deltas),
                },
            }
            for index, deltas in sorted(self.calls.items())
        ]


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Renderer(Protocol):
    """How a route shows an answer; one object for each response, told its model before anything else."""

    def begin(self, identity: ModelIdentity) -> bytes:
        """The first bytes of a stream."""

    def event(self, index: int, chunk: Chunk) -> bytes:
        """The bytes of a chunk of the answer to prompt `index`."""

    def end(self, usage: Usage) -> bytes:
        """The last bytes of a stream that went well."""

    def broken(self, error: StokerError) -> bytes:
        """The last bytes of a stream that did not."""

    def whole(self, identity: ModelIdentity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The body of an answer that was not streamed."""

    def refusal(self, error: StokerError) -> tuple[bytes, bytes]:
        """The body of an error before the first chunk, and its content type."""


class ChatRenderer:
    """`/v1/chat/completions`."""

    def __init__(self, request: GenerationRequest, include_usage: bool) -> None:
        self._id = request.id
        self._include_usage = include_usage
        self._created = int(time.time())
        self._head = b""
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def begin(self, identity: ModelIdentity) -> bytes:
        """The event that says the role."""
        frame = _frame(self._id, "chat.completion.chunk", self._created, identity)
        self._head = b"data: " + orjson.dumps(frame)[:-1] + b',"choices":[{"index":0,"delta":'
        return self._event(b'{"role":"assistant","content":""}', b"null", None)

    def event(self, _index: int, chunk: Chunk) -> bytes:
        """An event of a piece of text, or of whatever else the chunk has."""
        if chunk.text and not (chunk.tool_calls or chunk.reasoning or chunk.logprobs or chunk.finish_reason):
            return self._event(b'{"content":' + orjson.dumps(chunk.text) + b"}", b"null", None)
        if not (chunk.text or chunk.tool_calls or chunk.reasoning or chunk.logprobs or chunk.finish_reason):
            return b""
        delta: dict[str, Any] = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.text or chunk.logprobs:
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = [_call_delta(call) for call in chunk.tool_calls]
        logprobs = orjson.dumps({"content": chunk.logprobs, "refusal": None}) if chunk.logprobs else b"null"
        return self._event(orjson.dumps(delta), logprobs, chunk.finish_reason)

    def end(self, usage: Usage) -> bytes:
        """The event with the token counts, if asked for, and the end of the stream."""
        if not self._include_usage:
            return DONE
        head = self._head[: self._head.rindex(b"[{")]
        return head + b'[],"usage":' + orjson.dumps(usage_object(usage)) + b"}\n\n" + DONE

    def broken(self, error: StokerError) -> bytes:
        """An error event, which OpenAI's clients raise; no `[DONE]` follows, for it is not done."""
        return b"data: " + openai_error(error) + b"\n\n"

    def whole(self, identity: ModelIdentity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The object `chat.completion`."""
        answer = answers[0]
        calls = answer.tool_calls()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not answer.texts else answer.text,
            "refusal": None,
        }
        if answer.reasonings:
            message["reasoning_content"] = "".join(answer.reasonings)
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": answer.logprobs, "refusal": None} if answer.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        frame = _frame(self._id, "chat.completion", self._created, identity)
        return orjson.dumps({**frame, "choices": [choice], "usage": usage_object(usage)})

    def refusal(self, error: StokerError) -> tuple[bytes, bytes]:
        """OpenAI's error envelope."""
        return openai_error(error), b"application/json"

    def _event(self, delta: bytes, logprobs: bytes, finish: FinishReason | None) -> bytes:
        reason = b'"' + finish.encode() + b'"' if finish else b"null"
        return self._head + delta + b',"logprobs":' + logprobs + b',"finish_reason":' + reason + b"}]" + self._tail


class CompletionRenderer:
    """`/v1/completions`, with the older form of log probabilities."""

    def __init__(self, request: GenerationRequest, include_usage: bool) -> None:
        self._id = request.id
        self._include_usage = include_usage
        self._alternatives = request.sampling.top_logprobs or 0
        self._created = int(time.time())
        self._frame: dict[str, Any] = {}
        self._offsets: dict[int, int] = {}

    def begin(self, identity: ModelIdentity) -> bytes:
        """Nothing: completions have no opening event."""
        self._frame = _frame(self._id, "text_completion", self._created, identity)
        return b""

    def event(self, index: int, chunk: Chunk) -> bytes:
        """An event of a piece of text."""
        if not (chunk.text or chunk.finish_reason or chunk.logprobs):
            return b""
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(chunk.text)
        choice = {
            "index": index,
            "text": chunk.text,
            "logprobs": self._logprobs(chunk.logprobs, offset),
            "finish_reason": chunk.finish_reason,
        }
        usage = {"usage": None} if self._include_usage else {}
        return b"data: " + orjson.dumps({**self._frame, "choices": [choice], **usage}) + b"\n\n"

    def end(self, usage: Usage) -> bytes:
        """The event with the token counts, if asked for, and the end of the stream."""
        if not self._include_usage:
            return DONE
        last = {**self._frame, "choices": [], "usage": usage_object(usage)}
        return b"data: " + orjson.dumps(last) + b"\n\n" + DONE

    def broken(self, error: StokerError) -> bytes:
        """An error event; no `[DONE]` follows."""
        return b"data: " + openai_error(error) + b"\n\n"

    def whole(self, identity: ModelIdentity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The object `text_completion`, a choice for each prompt."""
        choices = [
            {
                "index": index,
                "text": answer.text,
                "logprobs": self._logprobs(answer.logprobs, 0),
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        frame = _frame(self._id, "text_completion", self._created, identity)
        return orjson.dumps({**frame, "choices": choices, "usage": usage_object(usage)})

    def refusal(self, error: StokerError) -> tuple[bytes, bytes]:
        """OpenAI's error envelope."""
        return openai_error(error), b"application/json"

    def _logprobs(self, tokens: Sequence[JsonObject], offset: int) -> dict[str, Any] | None:
        """The newer per-token objects in the form of /v1/completions: parallel lists."""
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in token["top_logprobs"][: self._alternatives]}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def embedding_list(vectors: Sequence[Sequence[float]], encoding: str | None, record: Record) -> bytes:
    """OpenAI's list of embeddings; `base64` packs each vector as little-endian 32-bit floats."""
    packed = encoding == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    tokens = record.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": record.served().name, "usage": usage})


def _frame(identifier: str, kind: str, created: int, identity: ModelIdentity) -> dict[str, Any]:
    return {
        "id": identifier,
        "object": kind,
        "created": created,
        "model": identity.name,
        "system_fingerprint": identity.fingerprint,
    }


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is not None:
        function["name"] = delta.name
    call: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
    return call
