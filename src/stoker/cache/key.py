"""What makes two requests the same, and which of them may share an answer. Pure functions."""

from __future__ import annotations

import hashlib
from typing import Final

import orjson

from stoker.config import CacheConfig
from stoker.types import Chunk, GenerationRequest, ModelIdentity

FORM: Final = 1
"""Of stored answers; another one is never read."""


def prefix_of(identity: ModelIdentity) -> str:
    """What the keys of a model's answers begin with: its digest, so that a new version never answers with old words."""
    return f"answer:{FORM}:{identity.digest[:24]}:"


def key_of(request: GenerationRequest, identity: ModelIdentity, settings: bytes) -> str:
    """The canonical key: a SHA-256 over the model's digest, the tenant, messages and everything that shapes the answer.

    Args:
        request: as it goes to the engine, an expert's system prompt included.
        identity: the model that is to answer.
        settings: whatever in the configuration shapes an answer, in a form that changes when it does.
    """
    parts = {
        "digest": identity.digest,
        "tenant": request.principal.tenant,
        "kind": request.kind,
        "messages": request.messages,
        "prompt": request.prompt,
        "sampling": request.sampling,
        "tools": request.tool_use,
        "format": request.response_format,
    }
    canonical = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return prefix_of(identity) + hashlib.sha256(settings + canonical).hexdigest()


def shareable(request: GenerationRequest, config: CacheConfig) -> bool:
    """Whether a stored answer will do: the caller did not decline, and the answer is one that comes again."""
    if config.policy == "off" or not request.cache:
        return False
    return config.policy == "all" or request.sampling.temperature == 0 or request.sampling.seed is not None


def worth_storing(chunk: Chunk | None, config: CacheConfig) -> bool:
    """Whether an answer that ended with this finish is whole: neither cut off nor refused."""
    if chunk is None or chunk.finish_reason is None:
        return False
    return chunk.finish_reason in {"stop", "tool_calls"} or (config.cut_off and chunk.finish_reason == "length")
