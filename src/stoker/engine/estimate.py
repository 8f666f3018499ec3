"""Estimates that order and bound the waiting line before anything is tokenized. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stoker.config import GenerationConfig
from stoker.types import GenerationRequest, texts_of

BYTES_PER_TOKEN = 3.5  # English and code in the vocabularies of small models; other scripts cost more tokens a byte
MESSAGE_TOKENS = 4  # what a chat template adds to each message
PREFIX_CHARS = 256
TEMPLATE_MARGIN = 64  # tokens that a template adds to a message at the most; SmolLM2's adds a system prompt of 20


class Bounds(Protocol):
    """The model's bounds that an estimate needs."""

    @property
    def context(self) -> int:
        """Tokens for each slot; 0 when unknown."""

    @property
    def generation(self) -> GenerationConfig:
        """Defaults of what is generated."""


def prompt_tokens(request: GenerationRequest) -> int:
    """About how many tokens the prompt has, tools and earlier calls included; at least 1."""
    if request.kind == "completion":
        return max(1, int(_tokens(request.prompt)))
    tokens = sum(_tokens(text) for text in texts_of(request)) + MESSAGE_TOKENS * len(request.messages)
    return max(1, int(tokens))


def _tokens(text: str | tuple[int, ...]) -> float:
    return len(text.encode()) / BYTES_PER_TOKEN if isinstance(text, str) else len(text)


def most_tokens(request: GenerationRequest) -> int:
    """More tokens than the prompt can have: one a byte, and what templates and explained tools add."""
    if request.kind == "completion":
        return len(request.prompt.encode()) + 1 if isinstance(request.prompt, str) else len(request.prompt)
    texts = sum(len(text.encode()) for text in texts_of(request))
    return 2 * texts * (request.tool_use is not None) + texts + TEMPLATE_MARGIN * (len(request.messages) + 1)


def cost_of(request: GenerationRequest, bounds: Bounds) -> int:
    """Estimated work in tokens: the prompt's and the longest answer's, no more than the context holds; at least 1."""
    wanted = request.sampling.max_tokens
    answer = bounds.generation.max_tokens if wanted is None else wanted
    total = prompt_tokens(request) + answer
    return max(1, min(total, bounds.context) if bounds.context else total)


def cost_of_inputs(inputs: Sequence[str | tuple[int, ...]]) -> int:
    """Estimated work of an embeddings request in tokens; at least 1."""
    return max(1, int(sum(map(_tokens, inputs))))


def affinity_key(request: GenerationRequest) -> int:
    """Requests with the same key share the beginning of their prompt, and so an engine's cached work on it."""
    if request.kind == "completion":
        head = request.prompt if isinstance(request.prompt, str) else ",".join(map(str, request.prompt[:PREFIX_CHARS]))
        return hash(head[:PREFIX_CHARS])
    return hash(tuple((message.get("content") or "")[:PREFIX_CHARS] for message in request.messages[:2]))
