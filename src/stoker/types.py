"""The shared vocabulary: what a request, a piece of an answer and a finished answer are.

Every room speaks these words, so that none of them needs to know another's wire form. There is no behaviour here beyond
trivial derivations; anything that decides lives in the room whose decision it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, TypedDict

import orjson

JsonObject = Mapping[str, Any]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Kind = Literal["chat", "completion"]


class Priority(IntEnum):
    """Service class of a request; a lower number is served first."""

    INTERACTIVE = 0
    JOB = 1


class Message(TypedDict, total=False):
    """One chat message in OpenAI's form, with `content` already flattened to a string (or None beside tool calls)."""

    role: str
    content: str | None
    name: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Anonymous callers of a server without keys share one tenant."""

    tenant: str = "anonymous"
    address: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `None` means: not said by the caller, the model's default applies.

    Units and ranges: `max_tokens` >= 0 tokens; `temperature` 0..2; `top_p`, `min_p` 0..1; penalties -2..2 (OpenAI's
    ranges); `repeat_penalty` > 0 (llama.cpp); `top_logprobs` 0..20.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function the model may call: its name, what it is for, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the caller allows with tools: `choice` is `none`, `auto`, `required` or a function's name in `named`."""

    tools: tuple[ToolSpec, ...]
    choice: Literal["none", "auto", "required", "named"] = "auto"
    named: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The shape that the answer's text must have; `schema` is None for any JSON object."""

    schema: JsonObject | None = None
    name: str = "response"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation, whatever route it came by.

    `deadline` is a `time.monotonic()` instant in seconds after which the answer is of no use to the caller.
    Exactly one of `messages` (kind chat) and `prompt` (kind completion: text or token ids) is set. `cache` says whether
    a stored answer will do. `admitted` marks the later prompts of a call whose first one has been let in.
    """

    id: str
    kind: Kind
    model: str
    deadline: float
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ""
    sampling: Sampling = field(default_factory=Sampling)
    tool_use: ToolUse | None = None
    response_format: ResponseFormat | None = None
    cache: bool = True
    principal: Principal = field(default_factory=Principal)
    priority: Priority = Priority.INTERACTIVE
    admitted: bool = False


def texts_of(request: GenerationRequest) -> Iterator[str]:
    """Every text of a chat that its prompt will hold: messages, earlier calls, and the tools that are offered."""
    for message in request.messages:
        yield message.get("content") or ""
        for call in message.get("tool_calls") or ():
            yield str((call.get("function") or {}).get("arguments") or "")
    if request.tool_use is not None:
        for tool in request.tool_use.tools:
            yield tool.name
            yield tool.description
            yield orjson.dumps(tool.parameters).decode()


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts (or token ids) to turn into vectors; `deadline` as in GenerationRequest."""

    id: str
    model: str
    deadline: float
    inputs: tuple[str | tuple[int, ...], ...]
    principal: Principal = field(default_factory=Principal)
    priority: Priority = Priority.INTERACTIVE
    admitted: bool = False


def asked(request: GenerationRequest | EmbeddingRequest) -> str:
    """What a request asks, as one text for people: each message after its role; token ids as such."""
    if isinstance(request, EmbeddingRequest):
        return "\n".join(text if isinstance(text, str) else f"{list(text)}" for text in request.inputs)
    if request.kind == "completion":
        return request.prompt if isinstance(request.prompt, str) else f"{list(request.prompt)}"
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in request.messages)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come with its first piece, `arguments` is JSON text to append."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Chunk:
    """A piece of an answer as the engine makes it. The last one carries `finish_reason`, then `usage`.

    Nobody changes one; it is not frozen because that makes each of thousands a second three times as dear.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[JsonObject, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model that can answer: the name callers use, its version, and the SHA-256 of its file (or of its URL)."""

    name: str
    version: str
    digest: str
    created: int = 0

    @property
    def fingerprint(self) -> str:
        """Short form of the digest, as OpenAI's `system_fingerprint`."""
        return f"fp_{self.digest[:12]}"


@dataclass(slots=True)
class Timings:
    """Where a request's time went, in milliseconds; -1 until known. Filled in as the request advances."""

    queue_ms: float = -1.0
    first_token_ms: float = -1.0
    total_ms: float = -1.0
    attempts: int = 0
    engine: str = ""
