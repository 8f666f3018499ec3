"""From chunks to the wire: what OpenAI's own types accept, and what streams add up to."""

from __future__ import annotations

import json
import time

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from stoker.errors import EngineDied
from stoker.http.query import QueryRenderer
from stoker.http.render import Answer, ChatRenderer, CompletionRenderer
from stoker.observability.record import Record
from stoker.types import Chunk, GenerationRequest, ModelIdentity, Sampling, ToolCallDelta, Usage

IDENTITY = ModelIdentity("m", "1", "ab" * 32, 1)
USAGE = Usage(7, 5, 3)
LOGPROB = {
    "token": "a",
    "bytes": [97],
    "logprob": -0.5,
    "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
}
CHUNKS = [
    Chunk(reasoning="hm"),
    Chunk("Hel"),
    Chunk('lo "\n', logprobs=(LOGPROB,)),
    Chunk(tool_calls=(ToolCallDelta(0, "call_1", "f"), ToolCallDelta(0, arguments='{"a"'))),
    Chunk(tool_calls=(ToolCallDelta(0, arguments=": 1}"), ToolCallDelta(1, "call_2", "g", "{}"))),
    Chunk(finish_reason="tool_calls"),
    Chunk(usage=USAGE),
]


def request(kind: str = "chat", **sampling: object) -> GenerationRequest:
    return GenerationRequest("id-1", kind, "m", time.monotonic() + 9, sampling=Sampling(**sampling))


def events(raw: bytes) -> list[dict]:
    lines = [line[6:] for line in raw.decode().split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def streamed(renderer: object, chunks: list[Chunk]) -> bytes:
    return renderer.begin(IDENTITY) + b"".join(renderer.event(0, chunk) for chunk in chunks) + renderer.end(USAGE)


@pytest.mark.parametrize("usage", [True, False])
def test_a_chat_stream_is_what_the_client_expects(usage: bool) -> None:
    raw = streamed(ChatRenderer(request(), usage), CHUNKS)
    assert raw.endswith(b"data: [DONE]\n\n")
    parsed = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(raw)]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in parsed if c.choices) == 'Hello "\n'
    arguments = [d.function.arguments for c in parsed if c.choices for d in c.choices[0].delta.tool_calls or []]
    assert "".join(arguments) == '{"a": 1}{}'
    assert [c.choices[0].finish_reason for c in parsed if c.choices][-1] == "tool_calls"
    assert (parsed[-1].usage is not None) is usage
    if usage:
        assert parsed[-1].choices == []
        assert parsed[-1].usage.total_tokens == 12
        assert all("usage" in event for event in events(raw))
    assert {c.id for c in parsed} == {"id-1"}


def test_a_whole_chat_answer_is_what_the_client_expects() -> None:
    answer = Answer()
    for chunk in CHUNKS:
        answer.add(chunk)
    parsed = ChatCompletion.model_validate_json(ChatRenderer(request(), False).whole(IDENTITY, [answer], USAGE))
    message = parsed.choices[0].message
    assert message.content == 'Hello "\n'
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("call_1", "f", '{"a": 1}'),
        ("call_2", "g", "{}"),
    ]
    assert parsed.choices[0].logprobs.content[0].logprob == -0.5
    assert parsed.system_fingerprint == "fp_" + "ab" * 6


def test_calls_without_text_have_no_content() -> None:
    answer = Answer()
    answer.add(Chunk(tool_calls=(ToolCallDelta(0, "c", "f", "{}"),), finish_reason="tool_calls"))
    body = json.loads(ChatRenderer(request(), False).whole(IDENTITY, [answer], USAGE))
    assert body["choices"][0]["message"]["content"] is None


def test_completions_have_the_older_logprobs() -> None:
    answers = []
    for text in ("a", "b"):
        answer = Answer()
        answer.add(Chunk(text, logprobs=(LOGPROB, LOGPROB)))
        answers.append(answer)
    renderer = CompletionRenderer(request("completion", logprobs=True, top_logprobs=1), False)
    parsed = Completion.model_validate_json(renderer.whole(IDENTITY, answers, USAGE))
    assert [choice.index for choice in parsed.choices] == [0, 1]
    assert parsed.choices[0].logprobs.text_offset == [0, 1]
    assert parsed.choices[0].logprobs.top_logprobs == [{"a": -0.5}, {"a": -0.5}]


def test_a_broken_stream_ends_with_an_error_and_without_done() -> None:
    error = EngineDied("the engine died", retry_after=1)
    for renderer in (ChatRenderer(request(), False), CompletionRenderer(request("completion"), False)):
        raw = renderer.broken(error)
        assert events(raw)[0]["error"]["code"] == "engine_died"
        assert b"[DONE]" not in raw


def test_query_streams_text_then_everything_else() -> None:
    record = Record("r", "/query")
    raw = streamed(QueryRenderer("query-1", record), [Chunk("a"), Chunk("b", finish_reason="length")])
    assert events(raw)[:2] == [{"text": "a"}, {"text": "b"}]
    done = json.loads(raw.split(b"event: done\ndata: ")[1])
    assert (done["id"], done["finish_reason"], done["usage"]["total_tokens"]) == ("query-1", "length", 12)
    assert done["timings"]["total_ms"] >= 0
