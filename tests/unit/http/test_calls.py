"""What jobs ask is read as the routes read it, and answered with the bytes that the routes would send."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stoker.admission.auth import Caller
from stoker.config import LimitsConfig, Settings
from stoker.errors import RequestError, Unsupported
from stoker.http.calls import CHAT, COMPLETIONS, EMBEDDINGS, QUERY, WireTranslator
from stoker.http.parse import Reader
from stoker.jobs.calls import Call
from stoker.observability.record import Record
from stoker.pipeline import Admitted
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, ModelIdentity, Priority, Usage

ANN = Caller("10.0.0.1", "ann")
IDENTITY = ModelIdentity("m", "1", "0" * 64)
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
FAR = 1000.0


class FakePipeline:
    """Answers every prompt with two words."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, str]] = []

    def ready(
        self, requests: Sequence[GenerationRequest], _caller: Caller, headers: Mapping[str, str], record: Record
    ) -> Sequence[Admitted]:
        self.headers.append(headers)
        record.model = IDENTITY
        pool: Any = SimpleNamespace(settings=SimpleNamespace(slots=2))
        return [Admitted(request, pool) for request in requests]

    async def answer(self, _admitted: Admitted, record: Record) -> AsyncGenerator[Chunk]:
        for text in ("one ", "two"):
            yield Chunk(text)
        yield Chunk(finish_reason="stop", usage=Usage(3, 2))
        record.note("stop", Usage(3, 2), "miss")

    async def vectors(
        self, request: EmbeddingRequest, _caller: Caller, _headers: Mapping[str, str], record: Record
    ) -> list[list[float]]:
        record.model = IDENTITY
        record.note("stop", Usage(7), "bypass")
        return [[1.0, 2.0] for _ in request.inputs]


def translator(**limits: Any) -> WireTranslator:
    pipeline: Any = FakePipeline()
    return WireTranslator(pipeline, Reader(Settings(limits=LimitsConfig(**limits))))


def read(endpoint: str, body: dict[str, Any], headers: Mapping[str, str] | None = None, **limits: Any) -> Call:
    deadline = time.monotonic() + FAR
    return translator(**limits).read(endpoint, json.dumps(body).encode(), ANN, headers or {}, deadline)


async def made(endpoint: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], Record]:
    """The answer, what was told on the way, and the record."""
    told: list[bytes] = []
    record = Record("r", endpoint)
    answer = await read(endpoint, body).run(record, told.append)
    return json.loads(answer), [json.loads(event) for event in told], record


async def test_a_conversation() -> None:
    answer, told, record = await made(CHAT, {**HELLO, "unheard_of": 1, "stream": True})
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["usage"]["total_tokens"] == 5
    assert [event["object"] for event in told] == ["chat.completion.chunk"] * 4
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in told) == "one two"
    assert told[0]["id"] == answer["id"]
    assert record.ignored == ("unheard_of",)


async def test_several_prompts() -> None:
    answer, told, _ = await made(COMPLETIONS, {"prompt": ["a", "b", "c"]})
    assert [choice["text"] for choice in answer["choices"]] == ["one two"] * 3
    assert {event["choices"][0]["index"] for event in told} == {0, 1, 2}


async def test_a_question() -> None:
    answer, told, _ = await made(QUERY, {"text": "hi"})
    assert (answer["text"], answer["model"], answer["cache"]) == ("one two", "m", "miss")
    assert told == [{"text": "one "}, {"text": "two"}]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_vectors(encoding: str) -> None:
    answer, told, _ = await made(EMBEDDINGS, {"input": ["a", "b"], "encoding_format": encoding})
    assert [row["embedding"] for row in answer["data"]] == [[1.0, 2.0] if encoding == "float" else "AACAPwAAAEA="] * 2
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert told == []


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [(CHAT, HELLO), (COMPLETIONS, {"prompt": ["a", "b"]}), (QUERY, {"text": "a"}), (EMBEDDINGS, {"input": "a"})],
)
def test_jobs_have_their_class_and_their_deadline(endpoint: str, body: dict[str, Any]) -> None:
    now = time.monotonic()
    for timeout, until in ((None, now + FAR), (5, now + 5), (5000, now + FAR)):
        call = read(endpoint, {**body, **({"timeout": timeout} if timeout else {})})
        assert len(call.asked) == (2 if endpoint == COMPLETIONS else 1)
        for request in call.asked:
            assert request.priority == Priority.JOB
            assert request.deadline == pytest.approx(until, abs=2)
            assert request.principal == ANN.principal


def test_headers_count_as_they_do_on_the_routes() -> None:
    (request,) = read(CHAT, HELLO, {"cache-control": "no-cache"}).requests
    assert not request.cache


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {**HELLO, "top_logprobs": 1}, "top_logprobs"),
        (CHAT, {**HELLO, "unheard_of": 1}, "unheard_of"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "unheard_of": 1}, "unheard_of"),
        (QUERY, {"text": "a", "temperature": 2}, "temperature"),
        (EMBEDDINGS, {"input": ""}, "input"),
    ],
)
def test_what_a_route_refuses_is_refused(endpoint: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(endpoint, body, unknown_fields="refuse")
    assert caught.value.param == param


def test_shortened_vectors_are_not_offered() -> None:
    with pytest.raises(Unsupported):
        read(EMBEDDINGS, {"input": "a", "dimensions": 3})
