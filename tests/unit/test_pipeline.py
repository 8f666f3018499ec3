"""Calls that are accepted now and made later: routed again, and by what the key may ask."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.job_work import pipeline, record

from stoker.admission.auth import Caller, Forbidden
from stoker.config import ExpertConfig, Settings
from stoker.errors import ModelNotFound, NotReady, RequestError
from stoker.pipeline import Admitted
from stoker.types import EmbeddingRequest, GenerationRequest

ANN = Caller(key_name="ann")
EXPERTS = (ExpertConfig(name="legal", model="m", header="x-team: law", system="You know the law."),)
SETTINGS = Settings(
    models=({"name": "m", "source": "m.gguf"}, {"name": "other", "source": "o.gguf"}), routing={"experts": EXPERTS}
)
EMBEDDING = EmbeddingRequest("e", "m", 0.0, ("hi",))


def request(model: str = "m", text: str = "hi") -> GenerationRequest:
    return GenerationRequest("r", "chat", model, 0.0, ({"role": "user", "content": text},))


async def test_a_call_is_made_as_it_was_accepted_under_its_expert() -> None:
    path, noted = pipeline(SETTINGS, ("m", "other")), record()
    prompts = [request("legal"), request("legal", "ho")]
    async with path.accepted([prompts, [EMBEDDING]], ANN, {}, noted):
        assert noted.model is None  # which one answers is not decided yet
        assert list(noted.requests) == [*prompts, EMBEDDING]
    running = record()
    ready: list[Admitted] = list(path.ready(prompts, ANN, {}, running))
    assert [one.pool.settings.identity.name for one in ready] == ["m", "m"]
    assert [one.request.messages[0].get("content") for one in ready] == ["You know the law."] * 2
    assert running.expert == "legal"
    assert list(running.requests) == prompts


async def test_what_the_key_may_ask_holds_when_the_call_is_made() -> None:
    path = pipeline(SETTINGS, ("m", "other"))
    bound = replace(ANN, models=("m",))
    assert path.ready([request("m")], bound, {}, record())
    with pytest.raises(Forbidden):
        path.ready([request("other")], bound, {}, record())
    with pytest.raises(Forbidden):
        await path.vectors(replace(EMBEDDING, model="other"), bound, {}, record())


async def test_a_model_that_is_gone_or_down_is_said_when_the_call_is_made() -> None:
    path = pipeline()
    with pytest.raises(ModelNotFound):
        path.ready([request("gone")], ANN, {}, record())
    with pytest.raises(NotReady):  # the model has no engine here
        await path.vectors(EMBEDDING, ANN, {}, record())


async def test_one_that_may_not_pass_keeps_out_all() -> None:
    path = pipeline(Settings(limits={"characters": 10}))
    with pytest.raises(RequestError):
        async with path.accepted([[request()], [request(text="x" * 11)]], ANN, {}, record()):
            raise AssertionError


async def test_others_are_served_while_many_are_looked_at() -> None:
    path, turns = pipeline(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    async with path.accepted([[request()] for _ in range(100)], ANN, {}, record()):
        beside.cancel()
    assert turns >= 100
