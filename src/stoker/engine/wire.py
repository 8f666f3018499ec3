"""Between our vocabulary and an engine's JSON: pure functions that compose requests and read events.

Two dialects: llama.cpp's server (extended OpenAI: grammars, prompt progress) and plain OpenAI for servers by URL.
Sources: https://platform.openai.com/docs/api-reference and llama.cpp `tools/server/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stoker.config import GenerationConfig
from stoker.engine import tools
from stoker.engine.schema import bounded
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
    """A request in the engine's words; `parses_tools` when its text holds tool calls that Stoker must read out."""

    path: str
    body: Mapping[str, Any]
    parses_tools: bool = False


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
        _hold_format(body, request.response_format, capabilities, bounds)
        return EngineCall("/v1/completions", body)
    return _compose_chat(request, body, capabilities, bounds)


def _compose_chat(
    request: GenerationRequest, body: dict[str, Any], capabilities: Capabilities, bounds: GenerationConfig
) -> EngineCall:
    use = request.tool_use
    if capabilities.native_tools:
        body["messages"] = list(request.messages)
        if use is not None:
            _native_tools(body, use)
        if use is None or use.choice == "none":
            _hold_format(body, request.response_format, capabilities, bounds)
        return EngineCall("/v1/chat/completions", body)
    body["messages"] = tools.emulate(request.messages, use)
    grammar = tools.tool_grammar(use, bounds, request.response_format, capabilities.end) if use else None
    if grammar is None:
        _hold_format(body, request.response_format, capabilities, bounds)
    elif capabilities.dialect == "llamacpp":
        body["grammar"] = grammar
    return EngineCall("/v1/chat/completions", body, parses_tools=use is not None and use.choice != "none")


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
) -> None:
    """Hold the answer in its shape: by our grammar where the engine takes one, else by asking for it."""
    if wanted is None:
        return
    if capabilities.dialect == "llamacpp":
        body["grammar"] = tools.json_grammar(wanted, bounds)
    elif wanted.schema is None:
        body["response_format"] = {"type": "json_object"}
    else:
        schema = {"name": wanted.name, "schema": bounded(wanted.schema, bounds), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}


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
    if "error" in event:
        raise translate_error(500, event)
    choices = event.get("choices") or ()
    usage = _usage(event.get("usage"))
    if not choices:
        return Chunk(usage=usage) if usage else None
    choice = choices[0]
    delta = choice.get("delta")
    finish = _FINISH.get(choice.get("finish_reason") or "")
    calls: Sequence[Mapping[str, Any]] = ()
    logprobs = ((choice.get("logprobs") or {}).get("content")) or ()
    if delta is None:
        text, reasoning = choice.get("text") or "", ""
    else:
        text, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
        calls = delta.get("tool_calls") or ()
    if not (text or reasoning or calls or finish or usage or logprobs):
        return None
    deltas = tuple(_tool_call(call) for call in calls)
    return Chunk(text, reasoning, deltas, tuple(logprobs), finish, usage)


def _tool_call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(call.get("index", 0), call.get("id"), function.get("name"), function.get("arguments") or "")


def _usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached)


PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}


def translate_error(status: int, body: Any, path: str = "") -> StokerError:
    """An engine's HTTP error, or error event, to a call on `path`, in our terms."""
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
    if status in {404, 501}:
        return Unsupported(f"the engine does not do this: {message}")
    if status in {429, 503}:
        return Overloaded(f"the engine is busy: {message}", retry_after=1)
    if 400 <= status < 500:  # noqa: PLR2004 - HTTP's client errors
        return RequestError(message)
    if status == 500 and "shutting down" in message:  # noqa: PLR2004
        return EngineDied(message)
    return EngineError(f"the engine failed: {message}", retry_after=1)
