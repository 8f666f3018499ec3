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
    temperature = request.sampling.temperature
    if temperature is not None and temperature > limits.temperature:
        raise RequestError(
            f"temperature: {temperature:g} is over this server's limit of {limits.temperature:g}", param="temperature"
        )


def check_embedding(request: EmbeddingRequest, limits: LimitsConfig) -> None:
    """Raise RequestError, naming the field and the bound, when `request` asks for more than the limits allow."""
    _at_most(len(request.inputs), limits.embedding_inputs, "inputs", "input")
    _at_most(sum(map(len, request.inputs)), limits.characters, "characters in input", "input")


def _at_most(found: int, bound: int, what: str, param: str) -> None:
    if found > bound:
        raise RequestError(f"{param}: {found} {what}, and this server takes at most {bound}; send less", param=param)
