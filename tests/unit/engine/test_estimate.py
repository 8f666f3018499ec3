"""Estimates that order and bound the line: never below one, never above the context, alike for alike prefixes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from stoker.config import GenerationConfig, RestartConfig
from stoker.engine.estimate import affinity_key, cost_of, cost_of_inputs
from stoker.engine.process import backoff
from stoker.types import GenerationRequest, Sampling


@dataclass(frozen=True)
class Bounds:
    context: int = 2048
    generation: GenerationConfig = field(default_factory=GenerationConfig)


def chat(*contents: str, **sampling: object) -> GenerationRequest:
    messages = tuple({"role": "user", "content": content} for content in contents)
    return GenerationRequest("i", "chat", "m", 0, messages=messages, sampling=Sampling(**sampling))


@given(st.lists(st.text(max_size=5000), max_size=5), st.integers(1, 10**9) | st.none(), st.integers(0, 4096))
def test_costs_are_within_reason(contents: list[str], max_tokens: int | None, context: int) -> None:
    cost = cost_of(chat(*contents, max_tokens=max_tokens), Bounds(context))
    assert cost >= 1
    if context:
        assert cost <= context


@given(st.lists(st.text(max_size=99) | st.lists(st.integers(0, 9)).map(tuple), max_size=9))
def test_inputs_cost_something(inputs: list) -> None:
    assert cost_of_inputs(inputs) >= 1


def test_longer_answers_and_prompts_cost_more() -> None:
    bounds = Bounds()
    assert cost_of(chat("a", max_tokens=10), bounds) < cost_of(chat("a", max_tokens=20), bounds)
    assert cost_of(chat("a" * 10, max_tokens=10), bounds) < cost_of(chat("a" * 1000, max_tokens=10), bounds)


def test_a_conversation_stays_with_the_engine_that_knows_its_beginning() -> None:
    beginning = ("You are a pirate.", "Hello")
    assert affinity_key(chat(*beginning)) == affinity_key(chat(*beginning, "Ahoy", "More"))
    assert affinity_key(chat(*beginning)) != affinity_key(chat("You are a poet.", "Hello"))


@given(st.integers(1, 10_000))
def test_backoff_grows_to_its_bound(failures: int) -> None:
    restart = RestartConfig(backoff=0.2, backoff_max=30)
    pause = backoff(failures, restart)
    assert 0.2 <= pause <= 30
    assert backoff(failures + 1, restart) >= pause
