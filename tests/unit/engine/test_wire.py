"""Between our vocabulary and an engine's JSON."""

from __future__ import annotations

import time

import pytest

from stoker.config import GenerationConfig
from stoker.engine.wire import Capabilities, compose, read_event, translate_error
from stoker.errors import ContextOverflow, EngineDied, EngineError, Overloaded, RequestError, StokerError, Unsupported
from stoker.types import Chunk, GenerationRequest, ResponseFormat, Sampling, ToolCallDelta, ToolSpec, ToolUse, Usage

BOUNDS = GenerationConfig(max_tokens=99)
LLAMA = Capabilities("llamacpp", native_tools=False, context=1024)
NATIVE = Capabilities("llamacpp", native_tools=True, context=1024)
REMOTE = Capabilities("openai", native_tools=True)
TOOL = ToolSpec("f", "does f", {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})


def request(**fields: object) -> GenerationRequest:
    plain = {"id": "i", "kind": "chat", "model": "m", "deadline": time.monotonic() + 9}
    return GenerationRequest(**{**plain, "messages": ({"role": "user", "content": "hi"},), **fields})


def test_engines_are_always_asked_to_stream_with_a_bound() -> None:
    call = compose(request(), LLAMA, BOUNDS, "m")
    assert call.path == "/v1/chat/completions"
    assert (call.body["stream"], call.body["max_tokens"], call.body["return_progress"]) == (True, 99, True)
    assert "temperature" not in call.body
    assert not call.parses_tools


def test_other_servers_get_openais_fields_alone() -> None:
    sampling = Sampling(top_k=5, min_p=0.1, repeat_penalty=1.1, temperature=0.0, ignore_eos=True)
    body = compose(request(sampling=sampling), REMOTE, BOUNDS, "theirs").body
    assert not {"top_k", "min_p", "repeat_penalty", "ignore_eos", "return_progress", "grammar"} & set(body)
    assert (body["temperature"], body["model"]) == (0.0, "theirs")


@pytest.mark.parametrize("seed", [0, 5, -1, 2**32, 2**63 - 1, -(2**63)])
def test_seeds_fit_llama_cpp_and_are_never_its_word_for_random(seed: int) -> None:
    sent = compose(request(sampling=Sampling(seed=seed)), LLAMA, BOUNDS, "m").body["seed"]
    assert 0 <= sent < 2**32 - 1


def test_tools_go_as_they_are_to_templates_that_know_them() -> None:
    call = compose(request(tool_use=ToolUse((TOOL,), "named", "f")), NATIVE, BOUNDS, "m")
    assert call.body["tools"][0]["function"]["name"] == "f"
    assert call.body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert not call.parses_tools
    assert "grammar" not in call.body


def test_tools_become_prompt_and_grammar_elsewhere() -> None:
    call = compose(request(tool_use=ToolUse((TOOL,), "required")), LLAMA, BOUNDS, "m")
    assert "tools" not in call.body
    assert call.body["grammar"].startswith("%llguidance")
    assert any("f(" in message["content"] for message in call.body["messages"])
    assert call.parses_tools
    unused = compose(request(tool_use=ToolUse((TOOL,), "none")), LLAMA, BOUNDS, "m")
    assert "grammar" not in unused.body
    assert not unused.parses_tools


def test_formats() -> None:
    wanted = ResponseFormat({"type": "object", "properties": {"a": {"type": "string"}}})
    assert compose(request(response_format=wanted), LLAMA, BOUNDS, "m").body["grammar"].startswith("%llguidance")
    remote = compose(request(response_format=wanted), REMOTE, BOUNDS, "m").body["response_format"]
    assert remote["json_schema"]["schema"]["properties"]["a"]["maxLength"] == BOUNDS.json_string_chars
    anything = compose(request(response_format=ResponseFormat()), REMOTE, BOUNDS, "m").body["response_format"]
    assert anything == {"type": "json_object"}
    far = {"type": "object", "properties": {"a": {"$ref": "http://example.com/schema"}}}
    with pytest.raises(RequestError):
        compose(request(response_format=ResponseFormat(far)), LLAMA, BOUNDS, "m")


def test_completions_ask_for_logprobs_by_number() -> None:
    plain = request(kind="completion", prompt="x", messages=(), sampling=Sampling(logprobs=True, top_logprobs=0))
    assert compose(plain, LLAMA, BOUNDS, "m").body["logprobs"] == 1  # llama.cpp gives none for 0
    assert compose(plain, REMOTE, BOUNDS, "m").body["logprobs"] == 0
    tokens = request(kind="completion", prompt=(1, 2), messages=())
    assert compose(tokens, LLAMA, BOUNDS, "m").body["prompt"] == [1, 2]


@pytest.mark.parametrize(
    ("event", "chunk"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, None),
        ({"choices": [{"delta": {"role": "assistant"}}], "prompt_progress": {"total": 9}}, None),
        ({"choices": [{"delta": {"content": "a"}}]}, Chunk("a")),
        ({"choices": [{"delta": {"reasoning_content": "a"}}]}, Chunk(reasoning="a")),
        ({"choices": [{"text": "a", "finish_reason": "length"}]}, Chunk("a", finish_reason="length")),
        ({"choices": [{"delta": {}, "finish_reason": "function_call"}]}, Chunk(finish_reason="tool_calls")),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Chunk(usage=Usage(3, 2))),
        (
            {"choices": [{"delta": {"tool_calls": [{"index": 1, "id": "c", "function": {"name": "f"}}]}}]},
            Chunk(tool_calls=(ToolCallDelta(1, "c", "f", ""),)),
        ),
        ({"choices": []}, None),
    ],
)
def test_events(event: dict, chunk: Chunk | None) -> None:
    assert read_event(event) == chunk


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "bad grammar", "type": "invalid_request_error"}, RequestError),
        (400, {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 5}, ContextOverflow),
        (200, {"code": 500, "message": "oh"}, EngineError),
        (501, {"message": "no"}, Unsupported),
        (429, {"message": "slow down"}, Overloaded),
        (503, {"message": "loading"}, Overloaded),
        (500, {"message": "server is shutting down"}, EngineDied),
        (500, "text", EngineError),
    ],
)
def test_errors(status: int, error: object, kind: type[StokerError]) -> None:
    translated = translate_error(status, {"error": error})
    assert type(translated) is kind
    assert translated.message
    assert type(translate_error(500, ["no mapping"])) is EngineError


def test_an_upstreams_own_pause_is_passed_on_and_its_refusal_of_our_key_is_not_the_callers_fault() -> None:
    assert translate_error(429, {"error": {"message": "slow down"}}, retry_after=17.0).retry_after == 17
    refused = translate_error(401, {"error": {"message": "Incorrect API key sk-abc"}})
    assert refused.status == 502
    assert "sk-abc" not in refused.message


def test_null_errors_and_the_older_logprobs_of_other_servers() -> None:
    old = {"tokens": ["a", "b"], "token_logprobs": [None, -1.5], "top_logprobs": [None, {"b": -1.5, "c": -2.0}]}
    chunk = read_event({"error": None, "choices": [{"text": "ab", "logprobs": old}]})
    assert chunk is not None
    assert [(token["token"], token["logprob"]) for token in chunk.logprobs] == [("a", 0.0), ("b", -1.5)]
    assert [other["token"] for other in chunk.logprobs[1]["top_logprobs"]] == ["b", "c"]


def test_timings_tell_the_tokens_so_far() -> None:
    event = {"choices": [{"delta": {"content": "x"}}], "timings": {"cache_n": 5, "prompt_n": 7, "predicted_n": 3}}
    chunk = read_event(event)
    assert chunk is not None
    assert chunk.usage == Usage(12, 3, 5)


def test_what_json_cannot_write_is_the_callers_mistake() -> None:
    tool = ToolSpec("f", "", {"type": "object", "properties": {"x": {"maximum": 10**30}}})
    with pytest.raises(RequestError, match="64"):
        compose(request(tool_use=ToolUse((tool,))), Capabilities(native_tools=True), BOUNDS, "m")


def test_an_error_event_is_raised() -> None:
    with pytest.raises(EngineError, match="boom"):
        read_event({"error": {"code": 500, "message": "boom"}})
