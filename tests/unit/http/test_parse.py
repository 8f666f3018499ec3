"""From bytes to our vocabulary: what is taken, what is refused and with which field."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import Settings
from stoker.errors import RequestError
from stoker.http import schemas
from stoker.http.parse import Reader, read_body
from stoker.types import GenerationRequest, Principal

READER = Reader(Settings())
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


def chat(headers: dict | None = None, **fields: object) -> GenerationRequest:
    body = read_body(schemas.ChatRequest, json.dumps({**HELLO, **fields}).encode())
    return READER.chat(body, headers or {}, Principal())


def test_sampling_is_carried_over() -> None:
    request = chat(max_tokens=9, temperature=0.5, stop="x", seed=3, logprobs=True, top_logprobs=2, min_p=0.1)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.stop, sampling.seed) == (9, 0.5, ("x",), 3)
    assert (sampling.logprobs, sampling.top_logprobs, sampling.min_p) == (True, 2, 0.1)


def test_what_is_not_said_stays_unsaid() -> None:
    assert chat(temperature=None, stop=None).sampling == chat().sampling
    assert chat().sampling.temperature is None


def test_newer_name_of_the_token_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_parts_are_joined_and_roles_mapped() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "result"},
        ]
    )
    assert [message["role"] for message in request.messages] == ["system", "assistant", "tool"]
    assert request.messages[0]["content"] == "ab"
    assert request.messages[1]["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"top_p": 1.01}, "top_p"),
        ({"stop": [""]}, None),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, None),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logit_bias": {"x": 1}}, None),
        ({"functions": []}, "functions"),
    ],
)
def test_mistakes_name_their_field(fields: dict, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    assert caught.value.message
    if param is not None:
        assert caught.value.param == param


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    other = {"type": "function", "function": {"name": "g"}}
    use = chat(tools=[tool, other], tool_choice={"type": "function", "function": {"name": "g"}}).tool_use
    assert use is not None
    assert (use.choice, use.named, [spec.name for spec in use.tools]) == ("named", "g", ["f", "g"])
    with pytest.raises(RequestError, match="not among the tools"):
        chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "h"}})
    with pytest.raises(RequestError, match="once"):
        chat(tools=[tool, tool])


def test_deep_schemas_are_refused() -> None:
    schema: dict = {"type": "object"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(RequestError, match="levels deep"):
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


@pytest.mark.parametrize("number", ["1e999", "18446744073709551616", "-9223372036854775809", "NaN"])
def test_numbers_that_json_does_not_keep_are_refused_in_schemas(number: str) -> None:
    raw = '{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema":'
    raw += f'{{"name": "x", "schema": {{"type": "integer", "maximum": {number}}}}}}}}}'
    with pytest.raises(RequestError):
        READER.chat(read_body(schemas.ChatRequest, raw.encode()), {}, Principal())


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        (schemas.CompletionRequest, b'{"prompt": [' + b"-1," * 50_000 + b"-1]}"),
        (schemas.ChatRequest, b'{"messages": [' + b"0," * 50_000 + b"0]}"),
        (schemas.ChatRequest, b'{"messages": [{"role": "user", "content": [' + b"0," * 50_000 + b"0]}]}"),
        (
            schemas.ChatRequest,
            b'{"messages": [{"role": "user", "content": "x"}], "stop": [' + b'"",' * 50_000 + b'""]}',
        ),
        (schemas.EmbeddingsRequest, b'{"input": [' + b"[-1]," * 50_000 + b"[-1]]}"),
    ],
)
def test_a_body_full_of_mistakes_is_not_complained_of_item_by_item(model: type, raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_body(model, raw)
    assert "more)" not in caught.value.message


def test_unknown_fields_are_named_on_one_line() -> None:
    body = read_body(schemas.ChatRequest, json.dumps({**HELLO, "user": "x", "a\u0085b\u2028\n": 1}).encode())
    assert READER.unknown_fields(body) == ("user", "a\\x85b\\u2028\\n")
    strict = Reader(Settings(limits={"unknown_fields": "refuse"}))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="unknown"):
        strict.unknown_fields(body)
    only_known = read_body(schemas.ChatRequest, json.dumps({**HELLO, "user": "x"}).encode())
    assert strict.unknown_fields(only_known) == ("user",)


def test_deadlines() -> None:
    now = time.monotonic()
    assert 299 < chat().deadline - now < 302
    assert 4 < chat(timeout=5).deadline - now < 7
    assert 8 < chat({"x-request-timeout": "9"}).deadline - now < 11
    assert chat({"x-request-timeout": "80000"}).deadline - now < 3602  # the configured maximum
    for wrong in ("nan", "-1", "soon", "inf", "0"):
        with pytest.raises(RequestError, match="X-Request-Timeout"):
            chat({"x-request-timeout": wrong})


@pytest.mark.parametrize(("prompt", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)])
def test_the_four_ways_to_give_prompts(prompt: object, count: int) -> None:
    body = read_body(schemas.CompletionRequest, json.dumps({"prompt": prompt}).encode())
    requests = READER.completions(body, {}, Principal())
    assert len(requests) == count
    assert len({request.id for request in requests}) == 1


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", 1], {"a": 1}, [1.5], None, [-1]])
def test_empty_and_mixed_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        READER.completions(
            read_body(schemas.CompletionRequest, json.dumps({"prompt": prompt}).encode()), {}, Principal()
        )


def test_query_refuses_unknown_fields_and_heat() -> None:
    with pytest.raises(RequestError) as caught:
        read_body(schemas.QueryRequest, b'{"text": "a", "temprature": 1}')
    assert caught.value.param == "temprature"
    with pytest.raises(RequestError, match="temperature"):
        READER.query(read_body(schemas.QueryRequest, b'{"text": "a", "temperature": 1.5}'), {}, Principal())


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_a_request_error(raw: bytes) -> None:
    try:
        read_body(schemas.ChatRequest, raw)
    except RequestError as error:
        assert error.status == 400
        assert "pydantic" not in error.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(schemas.ChatRequest.model_fields)), json_values)
def test_no_value_in_any_field_does_more_than_a_request_error(name: str, value: object) -> None:
    try:
        chat(**{name: value})
    except RequestError as error:
        assert error.status == 400
