"""Limits of a single request: at the bound it passes, over it the field and the bound are named."""

from __future__ import annotations

import time

import pytest

from stoker.admission.validation import check_embedding, check_generation
from stoker.config import LimitsConfig
from stoker.errors import RequestError
from stoker.types import EmbeddingRequest, GenerationRequest, Sampling, ToolSpec, ToolUse

LIMITS = LimitsConfig(
    messages=2, characters=10, stop_strings=1, tools=1, logit_bias=1, embedding_inputs=2, temperature=1.5
)


def chat(contents: tuple[str, ...] = ("hi",), **fields: object) -> GenerationRequest:
    messages = tuple({"role": "user", "content": content} for content in contents)
    return GenerationRequest("i", "chat", "m", time.monotonic() + 9, messages=messages, **fields)


TOOLS = tuple(ToolSpec(name, "", {}) for name in "ab")


@pytest.mark.parametrize(
    ("within", "over", "param", "bound"),
    [
        (chat(("a", "b")), chat(("a", "b", "c")), "messages", "2"),
        (chat(("a" * 10,)), chat(("a" * 6, "b" * 5)), "messages", "10"),
        (chat(sampling=Sampling(stop=("a",))), chat(sampling=Sampling(stop=("a", "b"))), "stop", "1"),
        (chat(sampling=Sampling(temperature=1.5)), chat(sampling=Sampling(temperature=1.6)), "temperature", "1.5"),
        (
            chat(sampling=Sampling(logit_bias={"1": 1})),
            chat(sampling=Sampling(logit_bias={"1": 1, "2": 1})),
            "logit_bias",
            "1",
        ),
        (chat(tool_use=ToolUse(TOOLS[:1])), chat(tool_use=ToolUse(TOOLS)), "tools", "1"),
        (
            GenerationRequest("i", "completion", "m", 0, prompt="a" * 10),
            GenerationRequest("i", "completion", "m", 0, prompt="a" * 11),
            "prompt",
            "10",
        ),
    ],
)
def test_generation(within: GenerationRequest, over: GenerationRequest, param: str, bound: str) -> None:
    check_generation(within, LIMITS)
    with pytest.raises(RequestError) as caught:
        check_generation(over, LIMITS)
    assert caught.value.param == param
    assert bound in caught.value.message


def test_embeddings() -> None:
    check_embedding(EmbeddingRequest("i", "m", 0, ("a" * 5, "b" * 5)), LIMITS)
    for inputs in (("a", "b", "c"), ("a" * 6, "b" * 5)):
        with pytest.raises(RequestError) as caught:
            check_embedding(EmbeddingRequest("i", "m", 0, inputs), LIMITS)
        assert caught.value.param == "input"
