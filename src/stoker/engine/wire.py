"""Between our vocabulary and an engine's JSON: pure functions that compose requests and read events.

Two dialects: llama.cpp's server (extended OpenAI: grammars, prompt progress) and plain OpenAI for servers by URL.
Sources: https://platform.openai.com/docs/api-reference and llama.cpp `tools/server/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from stoker.config import GenerationConfig
from stoker.engine import tools
from stoker.engine.schema import bounded
from stoker.engine.shape import Shape
from stoker.errors import ContextOverflow, EngineDied, EngineError, Overloaded, RequestError, StokerError, Unsupported
from stoker.types import Chunk, GenerationRequest, ResponseFormat, Sampling, ToolCallDelta, ToolUse, Usage

Dialect = Literal["llamacpp", "openai"]
SEED_MODULUS = 2**32 - 1  # llama.cpp takes 32 bits, and 2**32 - 1 there means "random"

_FINISH: Mapping[str, Literal["stop", "length", "tool_calls", "content_filter"]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine said of itself: `context` is tokens for each slot, 0 when unknown; `end` its end-of-text token."""

    dialect: Dialect = "llamacpp"
    native_tools: bool = False
    context: int = 0
    end: str = ""


@dataclass(frozen=True, slots=True)
class EngineCall:
    """A request in the engine's words, and as the bytes to send.

    `parses_tools` when its text holds tool calls that Stoker must read out, with the `shapes` of their arguments where
    a grammar holds them; `json` is how a JSON answer is held, None where no grammar of ours holds it.
    """

    path: str
    body: Mapping[str, Any]
    encoded: bytes
    parses_tools: bool = False
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    json: tools.HeldJson | None = None


def compose(request: GenerationRequest, capabilities: Capabilities, bounds: GenerationConfig, model: str) -> EngineCall:
    """The call that makes an engine answer `request`; always a stream, for only a stream can be cancelled.

    Raises:
        RequestError: a tool's or the response's schema cannot be held.
    """
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": _max_tokens(request.sampling, bounds),
        **_sampling(request.sampling, capabilities.dialect),
    }
    if capabilities.dialect == "llamacpp":
        body["return_progress"] = True  # a write for each batch of the prompt: a client that left is noticed then
    if request.kind == "completion":
        _logprobs_of_completion(body, request.sampling, capabilities.dialect)
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        body["prompt"] = prompt
        held = _hold_format(body, request.response_format, capabilities, bounds)
        return _call("/v1/completions", body, json=held)
    return _compose_chat(request, body, capabilities, bounds)


def _compose_chat(
    request: GenerationRequest, body: dict[str, Any], capabilities: Capabilities, bounds: GenerationConfig
) -> EngineCall:
    use = request.tool_use
    if capabilities.native_tools:
        body["messages"] = list(request.messages)
        if use is not None:
            _native_tools(body, use)
        wanted = request.response_format if use is None or use.choice == "none" else None
        return _call("/v1/chat/completions", body, json=_hold_format(body, wanted, capabilities, bounds))
    body["messages"] = tools.emulate(request.messages, use)
    held = tools.held_tools(use, bounds, request.response_format, capabilities.end) if use else tools.HeldTools()
    json, shapes = None, held.shapes
    if held.grammar is None:
        json = _hold_format(body, request.response_format, capabilities, bounds)
    elif capabilities.dialect == "llamacpp":
        body["grammar"] = held.grammar
    else:
        shapes = {}  # nothing holds them, and what the server makes of them is its own affair
    parses_tools = use is not None and use.choice != "none"
    if parses_tools and capabilities.dialect == "llamacpp":
        body["timings_per_token"] = True  # token counts at any moment: a model that repeats itself is not heard out
    return _call("/v1/chat/completions", body, parses_tools=parses_tools, shapes=shapes, json=json)


def _call(path: str, body: Mapping[str, Any], **more: Any) -> EngineCall:
    try:
        encoded = orjson.dumps(body)
    except TypeError as error:  # integers over 64 bits, texts with half a character
        raise RequestError(f"the request holds something that JSON cannot write: {error}") from None
    return EngineCall(path, body, encoded, **more)


def _native_tools(body: dict[str, Any], use: ToolUse) -> None:
    body["tools"] = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in use.tools
    ]
    named = {"type": "function", "function": {"name": use.named}}
    body["tool_choice"] = named if use.choice == "named" else use.choice
    body["parallel_tool_calls"] = use.parallel


def _hold_format(
    body: dict[str, Any], wanted: ResponseFormat | None, capabilities: Capabilities, bounds: GenerationConfig
) -> tools.HeldJson | None:
    """Hold the answer in its shape: by our grammar where the engine takes one, else by asking for it."""
    if wanted is None:
        return None
    if capabilities.dialect == "llamacpp":
        held = tools.held_json(wanted, bounds)
        body["grammar"] = held.grammar
        return held
    if wanted.schema is None:
        body["response_format"] = {"type": "json_object"}
    else:
        schema = {"name": wanted.name, "schema": bounded(wanted.schema, bounds), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return None


def _max_tokens(sampling: Sampling, bounds: GenerationConfig) -> int:
    return bounds.max_tokens if sampling.max_tokens is None else sampling.max_tokens


def _sampling(sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """The sampling parameters that were said; those of llama.cpp alone are kept from other servers."""
    said: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": None if sampling.seed is None else sampling.seed % SEED_MODULUS,
        "stop": list(sampling.stop) or None,
        "logit_bias": sampling.logit_bias,
        "logprobs": sampling.logprobs or None,
        "top_logprobs": sampling.top_logprobs if sampling.logprobs else None,
    }
    if dialect == "llamacpp":
        said |= {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "ignore_eos": sampling.ignore_eos or None,
        }
    return {key: value for key, value in said.items() if value is not None}


def _logprobs_of_completion(body: dict[str, Any], sampling: Sampling, dialect: Dialect) -> None:
    """On /v1/completions `logprobs` is the number of alternatives, not a switch."""
    if body.pop("logprobs", None):
        alternatives = sampling.top_logprobs or 0
        body.pop("top_logprobs", None)
        # llama.cpp gives none at all for 0; the extra alternative is cut off when the answer is rendered
        body["logprobs"] = max(1, alternatives) if dialect == "llamacpp" else alternatives


def read_event(event: Mapping[str, Any]) -> Chunk | None:
    """The chunk in one streamed JSON event; None for events without news (roles, prompt progress).

    Raises:
        StokerError: the event is an error.
    """
    if event.get("error"):
        raise translate_error(500, event)
    choices = event.get("choices") or ()
    usage = _usage(event.get("usage")) or _counted(event.get("timings"))
    if not choices:
        return Chunk(usage=usage) if usage else None
    choice = choices[0]
    delta = choice.get("delta")
    if usage is None and delta and len(delta) == 1 and choice.get("finish_reason") is None:
        text = delta.get("content")
        if text and not choice.get("logprobs"):
            return Chunk(text)  # nearly all of them
    finish = _FINISH.get(choice.get("finish_reason") or "")
    calls: Sequence[Mapping[str, Any]] = ()
    logprobs = _logprobs(choice.get("logprobs") or {})
    if delta is None:
        text, reasoning = choice.get("text") or "", ""
    else:
        text, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
        calls = delta.get("tool_calls") or ()
    if not (text or reasoning or calls or finish or usage or logprobs):
        return None
    deltas = tuple(_tool_call(call) for call in calls)
    return Chunk(text, reasoning, deltas, tuple(logprobs), finish, usage)


def _logprobs(given: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Per-token objects; the older form of completions, parallel lists, is turned into them."""
    if "tokens" not in given:
        return given.get("content") or ()
    tokens, own = given.get("tokens") or (), given.get("token_logprobs") or ()
    others = given.get("top_logprobs") or [{}] * len(tokens)
    return [
        {
            "token": token,
            "logprob": 0.0 if logprob is None else logprob,  # a prompt's first token has none
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": text, "logprob": value} for text, value in (alternatives or {}).items()],
        }
        for token, logprob, alternatives in zip(tokens, own, others, strict=False)
    ]


def _tool_call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(call.get("index", 0), call.get("id"), function.get("name"), function.get("arguments") or "")


def _usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached)


def _counted(timings: Mapping[str, Any] | None) -> Usage | None:
    """Token counts so far, from llama.cpp's timings."""
    if not timings:
        return None
    cached = timings.get("cache_n") or 0
    return Usage(cached + (timings.get("prompt_n") or 0), timings.get("predicted_n") or 0, cached)


PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}


def tokens_in(slots: Any) -> int | None:
    """Tokens that busy slots hold, by llama.cpp's `/slots`, whose `n_prompt_tokens` grows with the answer; None when
    `slots` is nothing of the kind.
    """
    if not isinstance(slots, list) or not all(isinstance(slot, Mapping) for slot in slots):
        return None
    held = [slot.get("n_prompt_tokens") for slot in slots if slot.get("is_processing")]
    return sum(tokens for tokens in held if isinstance(tokens, int))


def translate_error(status: int, body: Any, path: str = "", retry_after: float | None = None) -> StokerError:
    """An engine's HTTP error, or error event, to a call on `path`, in our terms.

    `retry_after` is what the engine's own `Retry-After` said, in seconds.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    details: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
    message = str(details.get("message") or error or f"the engine answered with status {status}")
    kind, code = details.get("type"), details.get("code")
    if isinstance(code, int) and code >= 400:  # noqa: PLR2004 - llama.cpp puts the HTTP status into `code`
        status = code
    if kind == "exceed_context_size_error" or code == "context_length_exceeded":
        asked, room = details.get("n_prompt_tokens"), details.get("n_ctx")
        figures = f": {asked} tokens, and there is room for {room}" if asked and room else ""
        return ContextOverflow(
            f"the prompt is longer than the model's context{figures}; shorten it",
            param=PROMPT_FIELDS.get(path, "messages"),
        )
    return _by_status(status, message, retry_after)


def _by_status(status: int, message: str, retry_after: float | None) -> StokerError:
    if status in {401, 403}:
        return EngineError("the upstream server refuses Stoker's credentials; the operator must mend `upstream_key`")
    if status in {404, 501}:
        return Unsupported(f"the engine does not do this: {message}")
    if status in {429, 503}:
        return Overloaded(f"the engine is busy: {message}", retry_after=retry_after or 1)
    if 400 <= status < 500:  # noqa: PLR2004 - HTTP's client errors
        return RequestError(message)
    if status == 500 and "shutting down" in message:  # noqa: PLR2004
        return EngineDied(message)
    return EngineError(f"the engine failed: {message}", retry_after=1)
