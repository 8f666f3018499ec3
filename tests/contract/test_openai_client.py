"""The official client against the real model: what it sends is understood, what it gets is what its types say."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
import struct
import time
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from tests.running import Stoker

QUESTION = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def client(stoker_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stoker_url}/v1", api_key="none", max_retries=0, timeout=120)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "smollm2"
    assert client.models.retrieve("smollm2").owned_by == "stoker"
    with pytest.raises(openai.NotFoundError, match="smollm2"):
        client.models.retrieve("other")


@pytest.mark.parametrize("model", ["smollm2", "default"])
def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0)
    assert answer.model == "smollm2"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")
    assert answer._request_id


def test_a_stream_says_the_same_as_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


async def test_the_asynchronous_client(stoker_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stoker_url}/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=6, seed=n)
                for n in range(6)
            )
        )
        assert len({answer.id for answer in answers}) == 6
        stream = await client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=6, stream=True)
        assert len([chunk async for chunk in stream]) >= 3


def test_seeds_repeat(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "messages": QUESTION, "max_tokens": 24, "temperature": 1.0, "seed": 2**40 + 7}
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_stop_strings(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 30, "temperature": 0}
    free = client.completions.create(**asked)
    assert "9" in free.choices[0].text
    held = client.completions.create(**asked, stop=["9"])
    assert "9" not in held.choices[0].text
    assert held.choices[0].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)
    older = client.completions.create(model="smollm2", prompt="The sky is", max_tokens=4, logprobs=2)
    assert len(older.choices[0].logprobs.tokens) == 4
    assert all(len(top) == 2 for top in older.choices[0].logprobs.top_logprobs)


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt=["One", "Two", "Three"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    streamed = client.completions.create(model="smollm2", prompt=["One", "Two"], max_tokens=4, stream=True)
    assert {chunk.choices[0].index for chunk in streamed} == {0, 1}
    tokens = client.completions.create(model="smollm2", prompt=[504, 2025], max_tokens=4)
    assert tokens.usage.prompt_tokens == 2


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
        temperature=0,
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age", "tags"}
    assert isinstance(person["age"], int)


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Give me a JSON object about a cat."}],
        response_format={"type": "json_object"},
        max_tokens=400,
        temperature=0,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.startswith("{")


def test_a_shape_that_nothing_has_is_refused_instead_of_ignored(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^abcdef$", "maxLength": 3}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=20, response_format=shape)
    assert caught.value.param == "response_format"


def test_usage_is_right_where_tools_are_emulated(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, tools=[tool], tool_choice="required", temperature=0, max_tokens=100
    )
    assert 0 < answer.usage.completion_tokens <= 100
    assert answer.usage.prompt_tokens > 20


def test_a_required_tool_call(client: openai.OpenAI) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    asked = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0,
    }
    (call,) = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    chunks = list(client.chat.completions.create(**asked, parallel_tool_calls=False, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id
    assert deltas[0].function.name == "get_weather"
    assert "city" in json.loads("".join(delta.function.arguments for delta in deltas))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_embeddings(client: openai.OpenAI, stoker_url: str) -> None:
    texts = ["a cat on a mat", "a kitten on a rug", "the stock market fell"]
    packed = client.embeddings.create(model="smollm2", input=texts)  # the client asks for base64
    vectors = [row.embedding for row in packed.data]
    plain = httpx.post(f"{stoker_url}/v1/embeddings", json={"input": texts[0]}, timeout=60).json()
    assert plain["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-3)
    assert all(abs(math.hypot(*vector) - 1) < 1e-3 for vector in vectors)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > far
    raw = httpx.post(f"{stoker_url}/v1/embeddings", json={"input": "x", "encoding_format": "base64"}, timeout=60).json()
    assert len(base64.b64decode(raw["data"][0]["embedding"])) == 4 * len(vectors[0])
    assert struct.unpack("<f", base64.b64decode(raw["data"][0]["embedding"])[:4])[0] != 0


def test_an_input_longer_than_a_batch_is_embedded(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="smollm2", input="word " * 500)
    assert answer.usage.prompt_tokens > 400


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "smollm2"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": 2.5}, openai.BadRequestError, "temperature"),
        ({"n": 3}, openai.BadRequestError, "n"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError, "context"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, openai.BadRequestError, "characters"),
    ],
)
def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, fields: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        client.chat.completions.create(**{"model": "smollm2", "messages": QUESTION, **fields})
    assert caught.value.body["code"]


def test_context_overflow_has_openais_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="smollm2", prompt="word " * 5000)
    assert caught.value.code == "context_length_exceeded"


def busy_slots(stoker: Stoker) -> int:
    """Slots that the engine itself calls busy, asked on its own socket."""
    (path,) = (stoker.directory / "tmp").glob("*/*.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as engine:
        return sum(slot["is_processing"] for slot in engine.get("http://engine/slots").json())


def wait_idle(stoker: Stoker, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while busy_slots(stoker) or stoker.health()[1]["models"][0]["running"]:
        assert time.monotonic() < limit, "a slot is still held"
        time.sleep(0.02)


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_frees_the_engines_slot(stoker: Stoker, streaming: bool) -> None:
    wait_idle(stoker, 60)
    body = {"messages": QUESTION, "stream": streaming, "max_tokens": 1900, "ignore_eos": True}
    raw = json.dumps(body).encode()
    target = urlsplit(stoker.url)
    with socket.create_connection((target.hostname, target.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        limit = time.monotonic() + 30
        while busy_slots(stoker) != 1:
            assert time.monotonic() < limit
        time.sleep(0.3)
        assert busy_slots(stoker) == 1
    wait_idle(stoker, 5)


def test_leaving_while_the_prompt_is_read_frees_the_engines_slot(stoker: Stoker) -> None:
    wait_idle(stoker, 60)
    body = {"messages": [{"role": "user", "content": "story " * 1500}], "max_tokens": 50}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{stoker.url}/v1/chat/completions", json=body, timeout=0.5)
    wait_idle(stoker, 5)  # the prompt alone takes longer than this
