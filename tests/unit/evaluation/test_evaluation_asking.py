"""Asking over HTTP, of a small server with switchable faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from stoker.errors import OperatorError
from stoker.evaluation import streaming
from stoker.evaluation.asking import HttpAsker, NoServer, Question, base_of

QUESTION = Question(({"role": "user", "content": "Hello?"},), 16, 0.5, 7)


class Server:
    """An OpenAI chat server; `faults` are used up one by one, then it answers."""

    def __init__(self):
        self.url = ""
        self.faults = []
        self.requests = []
        self.models = {"data": [{"id": "tiny"}]}

    async def listing(self, _request):
        if isinstance(self.models, int):
            return web.json_response({"error": {"message": "who are you?"}}, status=self.models)
        return web.Response(body=self.models if isinstance(self.models, bytes) else json.dumps(self.models).encode())

    async def chat(self, request):
        self.requests.append((dict(request.headers), await request.json()))
        fault = self.faults.pop(0) if self.faults else b"answer"
        if isinstance(fault, tuple):
            status, headers, body = fault
            return web.Response(status=status, headers=headers, body=body)
        response = web.StreamResponse()
        await response.prepare(request)
        if fault == b"answer":
            fault = stream("Good ", "day", usage=2)
        for piece in fault if isinstance(fault, list) else [fault]:
            if piece == b"sleep":
                await asyncio.sleep(3600)
            if piece == b"cut":
                request.transport.abort()
                return response
            await response.write(piece)
        return response


def event(**content):
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def stream(*pieces, usage=None, reason="stop"):
    deltas = [event(choices=[{"delta": {"content": piece}}]) for piece in pieces]
    ending = [event(choices=[{"delta": {}, "finish_reason": reason}])]
    counted = [event(choices=[], usage={"completion_tokens": usage})] if usage is not None else []
    return [b": hello\n\n", *deltas, *ending, *counted, b"data: [DONE]\n\n"]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_get("/v1/models", made.listing)
    app.router.add_post("/v1/chat/completions", made.chat)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def ask(server, question=QUESTION, **options):
    async with HttpAsker(server.url, "chat", **options) as asker:
        return await asker.ask(question)


async def test_an_answer(server):
    reply = await ask(server, key="sk-1")
    assert (reply.text, reply.tokens, reply.finish_reason, reply.error) == ("Good day", 2, "stop", None)
    assert 0 < reply.first_token_s <= reply.total_s
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer sk-1"
    assert headers["Cache-Control"] == "no-store"  # a stored answer would be measured instead of the model
    assert body == {
        "model": "chat",
        "messages": [{"role": "user", "content": "Hello?"}],
        "max_tokens": 16,
        "temperature": 0.5,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_schema_is_sent_along(server):
    schema = {"type": "object"}
    await ask(server, Question(QUESTION.messages, 16, response_schema=schema))
    shape = {"name": "answer", "schema": schema}
    assert server.requests[0][1]["response_format"] == {"type": "json_schema", "json_schema": shape}


async def test_busy_servers_are_asked_again(server):
    server.faults = [(429, {"Retry-After": "0"}, b""), (503, {}, b"{}"), (503, {"Retry-After": "x"}, b"")]
    assert (await ask(server)).text == "Good day"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"Retry-After": "3600"}, b'{"error": {"message": "too many"}}'),
        (429, {"x-should-retry": "false"}, b'{"error": {"message": "too many"}}'),
        (500, {"Retry-After": "0"}, b'{"detail": "too many"}'),
        (404, {}, b'{"error": {"message": "too many", "code": "x"}}'),
        (302, {"Location": "http://127.0.0.1:1/"}, b"too many"),
    ],
)
async def test_what_does_not_pass_is_told(server, fault):
    server.faults = [fault]
    reply = await ask(server)
    assert reply.error == f"HTTP {fault[0]}: too many"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ([event(choices=[{"delta": {"content": "a"}}]), b"cut"], "the connection was cut"),
        ([event(choices=[{"delta": {"content": "a"}}])], "the answer broke off"),
        ([], "closed without an answer"),
        ([b"data: {\n\n"], "not JSON"),
        ([b"data: []\n\n"], "no object"),
        ([event(error={"message": "engine died"})], "broke off: engine died"),
        ([event(choices=[{"delta": {"content": "a"}}]), b"sleep"], "no whole answer within 0.3 s"),
        ([b"data: " + b"x" * 3000], "event without end"),
        (stream("a" * 600, "b" * 600), "longer than 1,000"),
    ],
)
async def test_broken_answers_are_errors(server, fault, words, monkeypatch):
    monkeypatch.setattr(streaming, "LONGEST_EVENT", 2000)
    monkeypatch.setattr(streaming, "LONGEST_ANSWER", 1000)
    server.faults = [fault]
    reply = await ask(server, timeout=0.3)
    assert words in reply.error
    assert len(reply.error) <= 330


@pytest.mark.parametrize(
    "odd",
    [
        event(choices="none"),
        event(choices=[None]),
        event(choices=[{"delta": None}]),
        event(choices=[{"delta": {"content": 5}}]),
        event(usage=[], choices=[]),
        event(usage={"completion_tokens": "many"}),
        b"id: 1\n\n",
    ],
)
async def test_odd_events_are_passed_over(server, odd):
    server.faults = [[odd, *stream("fine")]]
    reply = await ask(server)
    assert (reply.text, reply.error, reply.tokens) == ("fine", None, None)


async def test_thinking_counts_as_the_first_token(server):
    server.faults = [[event(choices=[{"delta": {"reasoning_content": "hm"}}]), *stream(reason="length")]]
    reply = await ask(server)
    assert reply.first_token_s is not None
    assert (reply.text, reply.finish_reason) == ("", "length")


async def test_nobody_there():
    async with HttpAsker("http://127.0.0.1:1", "chat") as asker:
        reply = await asker.ask(QUESTION)
        assert reply.error.startswith("no connection")
        with pytest.raises(NoServer, match="stoker serve"):
            await asker.settle()


async def test_the_first_model_is_taken(server):
    async with HttpAsker(server.url) as asker:
        await asker.settle()
        assert asker.model == "tiny"


async def test_a_named_model_needs_no_listing(server):
    server.models = b"<html>"
    async with HttpAsker(server.url, "chat") as asker:
        await asker.settle()
        assert asker.model == "chat"


@pytest.mark.parametrize(
    ("models", "words"),
    [(401, "API key"), (500, "lists no models"), ({"data": []}, "lists no models"), (b"<html>", "lists no models")],
)
async def test_servers_that_cannot_be_asked(server, models, words):
    server.models = models
    async with HttpAsker(server.url, key="sk-secret") as asker:
        with pytest.raises(NoServer, match=words) as caught:
            await asker.settle()
    assert "sk-secret" not in caught.value.message
    assert "sk-secret" not in repr(asker)


@pytest.mark.parametrize(
    ("written", "base"),
    [
        ("http://host:8080", "http://host:8080/v1"),
        ("host:8080/", "http://host:8080/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/api/v1/chat/completions?x=1#y", "https://host/api/v1"),
    ],
)
def test_addresses(written, base):
    assert base_of(written) == base


@pytest.mark.parametrize("written", ["", "http://", "ftp://host", "http://host:port", "://"])
def test_what_is_no_address(written):
    with pytest.raises(OperatorError, match="not a server's address"):
        base_of(written)


def test_an_address_with_a_password_is_not_repeated():
    with pytest.raises(OperatorError, match="API key") as caught:
        base_of("http://user:secret@host")
    assert "secret" not in caught.value.message
