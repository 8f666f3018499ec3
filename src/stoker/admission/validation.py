"""Is a request affordable? Bounds from the configuration, checked before the request can cost a slot. Pure functions.

Shape and types have been checked where the wire form was parsed; here are the limits that an operator sets.
"""

from __future__ import annotations

from stoker.config import LimitsConfig
from stoker.errors import RequestError
from stoker.types import EmbeddingRequest, GenerationRequest, texts_of


def check_generation(request: GenerationRequest, limits: LimitsConfig) -> None:
    """Raise RequestError, naming the field and the bound, when `request` asks for more than the limits allow."""
    if request.kind == "chat":
        _at_most(len(request.messages), limits.messages, "messages", "messages")
        _at_most(sum(map(len, texts_of(request))), limits.characters, "characters in messages and tools", "messages")
    else:
        unit = "characters" if isinstance(request.prompt, str) else "tokens"
        _at_most(len(request.prompt), limits.characters, f"{unit} in prompt", "prompt")
    _at_most(len(request.sampling.stop), limits.stop_strings, "stop strings", "stop")
    _at_most(len(request.sampling.logit_bias or ()), limits.logit_bias, "entries in logit_bias", "logit_bias")
    if request.tool_use is not None:
        _at_most(len(request.tool_use.tools), limits.tools, "tools", "tools")
    sampling = request.sampling
    _within(sampling.temperature, limits.temperature, "temperature")
    _within(sampling.top_p, limits.top_p, "top_p")
    _within(sampling.max_tokens, limits.max_tokens, "max_tokens")
    _within(sampling.frequency_penalty and abs(sampling.frequency_penalty), limits.penalty, "frequency_penalty")
    _within(sampling.presence_penalty and abs(sampling.presence_penalty), limits.penalty, "presence_penalty")


def check_embedding(request: EmbeddingRequest, limits: LimitsConfig) -> None:
    """Raise RequestError, naming the field and the bound, when `request` asks for more than the limits allow."""
    _at_most(len(request.inputs), limits.embedding_inputs, "inputs", "input")
    _at_most(sum(map(len, request.inputs)), limits.characters, "characters in input", "input")


def _within(value: float | None, bound: float | None, param: str) -> None:
    if value is not None and bound is not None and value > bound:
        raise RequestError(f"{param}: {value:g} is over this server's limit of {bound:g}", param=param)


def _at_most(found: int, bound: int, what: str, param: str) -> None:
    if found > bound:
        raise RequestError(f"{param}: {found} {what}, and this server takes at most {bound}; send less", param=param)
