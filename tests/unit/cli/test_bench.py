"""`stoker bench` against a small OpenAI server with switchable faults."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from stoker.cli import loadgen
from stoker.cli.bench import bench
from stoker.cli.loadgen import Answer, Prompts, Target, parse_address, requests_in
from stoker.errors import OperatorError

TOKENS = ("one", " two", " three")
REFUSALS = {
    "busy": (503, {"code": "overloaded", "message": "later"}),
    "denied": (401, {"type": "auth", "message": "no"}),
}
NONSENSE = {"html": b"data: <html>\n\n", "empty": b": nothing\n\n"}


@dataclass
class FakeServer:
    """An OpenAI chat server; `fault` is one of the cases below, and `after` requests go well before it begins."""

    url: str = ""
    fault: str = ""
    after: int = 1
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(request, self.fault if len(self.bodies) > self.after else "")
        finally:
            self.at_once -= 1

    async def answer(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault in REFUSALS:
            status, error = REFUSALS[fault]
            return web.json_response({"error": error}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if fault in NONSENSE:
            await response.write(NONSENSE[fault])
            return response
        for number, token in enumerate(TOKENS):
            await response.write(event({"choices": [{"index": 0, "delta": {"content": token}}]}))
            await asyncio.sleep(0.002)
            if fault == "cut" and number:
                request.transport.abort()
                return response
            if fault == "error" and number:
                await response.write(event({"error": {"code": "engine_died", "message": "gone"}}))
                return response
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if fault != "no usage":
            await response.write(event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}))
        await response.write(b"data: [DONE]\n\n")
        return response


def event(body: dict) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """The fake server, on a thread of its own, because the command runs an event loop itself."""
    fake = FakeServer()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/models", fake.models), web.post("/v1/chat/completions", fake.chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def run(*arguments: str):
    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, list(arguments))


def test_a_sweep_prints_a_table_and_writes_json_and_a_plot(server, tmp_path):
    figures, plot = tmp_path / "out.json", tmp_path / "out.svg"
    result = run(server.url, "--clients", "1,3", "--requests", "6", "--json", str(figures), "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert "tiny at http://127.0.0.1" in result.output
    assert "first token" in result.output
    written = json.loads(figures.read_text())
    assert [(level["clients"], level["requests"], level["succeeded"]) for level in written["levels"]] == [
        (1, 6, 6),
        (3, 6, 6),
    ]
    assert written["levels"][0]["completion_tokens"] == 42, "tokens are the server's count, not the number of chunks"
    assert written["levels"][0]["ttft_ms"]["p50"] < written["levels"][0]["total_ms"]["p50"]
    assert plot.read_text().startswith("<svg")
    assert len(server.bodies) == 13, "a warm-up request comes first and does not count"
    assert server.most_at_once == 3


def test_the_request_is_what_an_openai_server_expects(server):
    run(server.url, "--clients", "1", "--requests", "1", "--max-tokens", "5", "--api-key", "k", "--model", "m")
    body = server.bodies[-1]
    assert body["model"] == "m"
    assert body["max_tokens"] == 5
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "ignore_eos" not in body
    assert server.headers[-1]["Authorization"] == "Bearer k"


def test_the_key_comes_from_the_environment_and_is_not_written(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    result = run(server.url, "--clients", "1", "--requests", "1", "--json", str(tmp_path / "o.json"))
    assert server.headers[-1]["Authorization"] == "Bearer very-secret"
    assert "very-secret" not in result.output + (tmp_path / "o.json").read_text()


def test_a_duration_bounds_a_level(server, tmp_path):
    result = run(server.url, "--clients", "2", "--duration", "0.2", "--json", str(tmp_path / "o.json"))
    assert result.exit_code == 0
    assert json.loads((tmp_path / "o.json").read_text())["levels"][0]["succeeded"] >= 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("busy", "HTTP 503 overloaded"),
        ("cut", "cut off in mid-stream"),
        ("error", "error in the stream: engine_died"),
        ("html", "bad answer: an event is not JSON"),
        ("empty", "closed without an answer"),
    ],
)
def test_failures_are_counted_by_kind_and_none_left_is_exit_1(server, tmp_path, fault, kind):
    server.fault = fault
    result = run(server.url, "--clients", "2", "--requests", "4", "--json", str(tmp_path / "o.json"))
    assert result.exit_code == 1
    level = json.loads((tmp_path / "o.json").read_text())["levels"][0]
    assert level["errors"] == {kind: 4}
    assert f"4 x {kind}" in result.output


def test_some_failures_are_not_a_failed_run(server):
    server.fault, server.after = "busy", 4
    result = run(server.url, "--clients", "1", "--requests", "5")
    assert result.exit_code == 0
    assert "2 x HTTP 503 overloaded" in result.output


def test_answers_without_usage_are_said(server):
    server.fault = "no usage"
    result = run(server.url, "--clients", "1", "--requests", "3")
    assert result.exit_code == 0
    assert "3 answers came without usage" in result.output


def test_a_request_that_can_never_succeed_ends_the_run_at_once(server):
    server.fault, server.after = "denied", 0
    result = run(server.url)
    assert isinstance(result.exception, OperatorError)
    assert "HTTP 401 auth" in str(result.exception)
    assert len(server.bodies) == 1


def test_no_server_is_a_helpful_error():
    result = run("http://127.0.0.1:9")
    assert isinstance(result.exception, OperatorError)
    assert "start it" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clients", "1,x"), "--clients 1,x"),
        (("--clients", "0"), "--clients 0"),
        (("--requests", "1", "--duration", "1"), "one of both"),
        (("--prompt", "a", "--prompt-file", "b"), "one of both"),
        (("--prompt-file", "/nowhere/prompts.txt"), "cannot be read"),
        (("--json", "/nowhere/out.json"), "cannot be written"),
        (("--plot", "out.gif"), ".svg or .png"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(server, arguments, said):
    result = run(server.url, *arguments)
    assert isinstance(result.exception, OperatorError)
    assert said in str(result.exception)
    assert server.bodies == []


def test_prompts_come_from_the_file(server, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("alpha\n\n  beta \n", encoding="utf-8")
    run(server.url, "--clients", "1", "--requests", "12", "--prompt-file", str(file), "--seed", "1")
    said = [body["messages"][0]["content"] for body in server.bodies]
    assert {text.split()[-1] for text in said} == {"alpha", "beta"}


def test_a_file_without_prompts_is_refused(server, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds no prompt" in str(run(server.url, "--prompt-file", str(tmp_path / "empty.txt")).exception)


def test_prompts_differ_from_their_first_words_on():
    prompts = Prompts(("same",), seed=7)
    made = [prompts.make(1, number) for number in range(50)]
    assert len({text.split()[1] for text in made}) == 50
    assert made == [Prompts(("same",), seed=7).make(1, number) for number in range(50)]
    assert made[0] != prompts.make(2, 0)
    assert made[0] != Prompts(("same",), seed=8).make(1, 0)


def test_prompts_may_share_a_prefix():
    prompts = Prompts(("same words",), seed=7, shared_prefix=True)
    assert prompts.make(1, 0).startswith("same words ")
    assert prompts.make(1, 0) != prompts.make(1, 1)


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://h:8080", "http://h:8080/v1"),
        ("http://h:8080/", "http://h:8080/v1"),
        ("http://h:8080/v1/", "http://h:8080/v1"),
        ("https://h/proxy/v1/chat/completions?x=1", "https://h/proxy/v1"),
        ("h:8080", "http://h:8080/v1"),
    ],
)
def test_addresses(address, base):
    assert parse_address(address) == (base, "")


def test_unix_sockets():
    assert parse_address("unix:/run/e.sock") == ("http://localhost/v1", "/run/e.sock")
    assert parse_address("unix:///run/e.sock") == ("http://localhost/v1", "/run/e.sock")


@pytest.mark.parametrize("address", ["", "ftp://h", "http://", "http://h:99999", "unix:relative.sock", "http://[::1"])
def test_wrong_addresses(address):
    with pytest.raises(OperatorError):
        parse_address(address)


def test_credentials_in_an_address_are_not_shown():
    assert Target(base="http://me:secret@h/v1").place == "http://h/v1"


@pytest.mark.parametrize(
    "hostile",
    [
        b"[]",
        b"{",
        b'{"choices": 3}',
        b'{"choices": [null, {"delta": []}]}',
        b'{"usage": {"completion_tokens": "9"}}',
        b'{"error": "text"}',
        b'{"error": {}, "choices": null}',
    ],
)
def test_a_strange_server_cannot_break_the_generator(hostile):
    answer = Answer()
    answer.accept(hostile, 1.0)
    assert answer.verdict() is not None
    assert answer.completion_tokens is None


def test_how_many_requests_a_level_has():
    assert requests_in(1, None, None) == 8
    assert requests_in(16, None, None) == 64
    assert requests_in(16, 5, None) == 5
    assert requests_in(16, 5, 1.0) is None


async def test_a_server_that_says_nothing_runs_into_the_timeout():
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    target = Target(base=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", timeout=0.05)
    async with listener, loadgen.session_for(target) as session:
        sample = await loadgen.send(session, target, "hello")
    assert sample.error == "timeout"
