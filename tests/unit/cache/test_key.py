"""What makes two requests the same."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.cache.key import key_of, prefix_of, shareable, worth_storing
from stoker.config import CacheConfig
from stoker.types import (
    Chunk,
    GenerationRequest,
    ModelIdentity,
    Principal,
    ResponseFormat,
    Sampling,
    ToolSpec,
    ToolUse,
)

MODEL = ModelIdentity("m", "1", "a" * 64)
HI = {"role": "user", "content": "hi"}
BASE = GenerationRequest("r1", "chat", "m", 1.0, (HI,), sampling=Sampling(temperature=0.0))  # type: ignore[arg-type]
TOOL = ToolSpec("f", "", {"type": "object", "properties": {}})


def key(request: GenerationRequest, model: ModelIdentity = MODEL, settings: bytes = b"") -> str:
    return key_of(request, model, settings)


def test_what_does_not_shape_an_answer_is_not_in_the_key() -> None:
    assert key(replace(BASE, id="r2", deadline=9.0, model="other name")) == key(BASE)
    assert key(replace(BASE, principal=Principal(address="10.0.0.1"))) == key(BASE)


OTHERS: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repeat_penalty": 1.5,
    "seed": 5,
    "stop": ("x",),
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "ignore_eos": True,
}


def test_every_sampling_parameter_is_looked_at_here() -> None:
    assert set(OTHERS) == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_sampling_parameter_is_in_the_key(name: str) -> None:
    assert key(replace(BASE, sampling=replace(BASE.sampling, **{name: OTHERS[name]}))) != key(BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, messages=({"role": "user", "content": "ho"},)),
        replace(BASE, messages=({"role": "system", "content": "hi"},)),
        replace(BASE, messages=(*BASE.messages, *BASE.messages)),
        replace(BASE, principal=Principal(tenant="key:other")),
        replace(BASE, response_format=ResponseFormat()),
        replace(BASE, response_format=ResponseFormat({"type": "object"})),
        replace(BASE, tool_use=ToolUse((TOOL,))),
        replace(BASE, tool_use=ToolUse((TOOL,), "required")),
        replace(BASE, kind="completion", messages=(), prompt="hi"),
        replace(BASE, kind="completion", messages=(), prompt=(1, 2)),
    ],
)
def test_everything_else_that_shapes_an_answer_is_in_the_key(other: GenerationRequest) -> None:
    assert key(other) != key(BASE)


def test_another_version_or_configuration_never_shares() -> None:
    newer = replace(MODEL, digest="b" * 64)
    assert key(BASE, newer) != key(BASE)
    assert not key(BASE, newer).startswith(prefix_of(MODEL))
    assert key(BASE).startswith(prefix_of(MODEL))
    assert key(BASE, settings=b"x") != key(BASE)


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_messages_are_never_taken_for_one(one: str, other: str) -> None:
    apart = replace(BASE, messages=({"role": "user", "content": one}, {"role": "user", "content": other}))
    together = replace(BASE, messages=({"role": "user", "content": one + other},))
    assert key(apart) != key(together)


@pytest.mark.parametrize(
    ("sampling", "policy", "wanted", "shared"),
    [
        (Sampling(temperature=0.0), "deterministic", True, True),
        (Sampling(temperature=0.7), "deterministic", True, False),
        (Sampling(), "deterministic", True, False),
        (Sampling(temperature=0.7, seed=1), "deterministic", True, True),
        (Sampling(temperature=0.7), "all", True, True),
        (Sampling(temperature=0.0), "off", True, False),
        (Sampling(temperature=0.0), "all", False, False),
    ],
)
def test_what_may_be_shared(sampling: Sampling, policy: Any, wanted: bool, shared: bool) -> None:
    assert shareable(replace(BASE, sampling=sampling, cache=wanted), CacheConfig(policy=policy)) is shared


def test_only_whole_answers_are_stored() -> None:
    config = CacheConfig()
    assert worth_storing(Chunk(finish_reason="stop"), config)
    assert worth_storing(Chunk(finish_reason="tool_calls"), config)
    for finish in ("length", "content_filter"):
        assert not worth_storing(Chunk(finish_reason=finish), config)  # type: ignore[arg-type]
    assert not worth_storing(None, config)
    assert worth_storing(Chunk(finish_reason="length"), CacheConfig(cut_off=True))
