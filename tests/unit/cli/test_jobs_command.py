"""`stoker jobs` against a small server with switchable faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import Result
from jobs_server import JobsServer
from typer.testing import CliRunner

from stoker.cli import client, remote
from stoker.cli.client import error_in, retry_after_of
from stoker.cli.jobs import answer_of
from stoker.cli.main import app
from stoker.errors import ConfigError, StokerError


@pytest.fixture
def server() -> Iterator[JobsServer]:
    with JobsServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOKER_URL", "STOKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(server: JobsServer, verb: str, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["jobs", verb, *arguments, "--url", server.url], input=given)


def last_order(server: JobsServer) -> dict[str, Any]:
    return server.submissions[-1][2]


def test_submit_prints_the_id_alone(server: JobsServer) -> None:
    result = run(server, "submit", "why?")
    assert result.exit_code == 0
    assert result.stdout == "job-1\n"
    assert last_order(server) == {"endpoint": "/query", "request": {"text": "why?"}}
    again = run(server, "submit", "why?")
    assert again.stdout == "job-2\n", "two submissions are two jobs, unless a key says otherwise"


def test_submit_says_all_that_it_is_told(server: JobsServer) -> None:
    when = "2030-01-31 22:00:00"
    result = run(
        server,
        *("submit", "-", "--model", "tiny", "--callback-url", "https://example.com/done", "--not-before", when),
        *("--expires-in", "60", "--metadata", "who=me", "--metadata", "sum=1+1=2", "--idempotency-key", "mine"),
        "--json",
        given="from a pipe",
    )
    assert json.loads(result.stdout)["id"] == "job-1"
    order = last_order(server)
    moment = datetime.fromisoformat(order.pop("not_before"))
    assert moment.tzinfo is not None
    assert moment.replace(tzinfo=None) == datetime.fromisoformat(when)
    assert order == {
        "endpoint": "/query",
        "request": {"text": "from a pipe", "model": "tiny"},
        "callback_url": "https://example.com/done",
        "expires_in": 60,
        "metadata": {"who": "me", "sum": "1+1=2"},
    }
    assert server.submissions[-1][1] == "mine"


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        ({"text": "x"}, "/query"),
        ({"messages": []}, "/v1/chat/completions"),
        ({"prompt": "x"}, "/v1/completions"),
        ({"input": "x"}, "/v1/embeddings"),
    ],
)
def test_the_route_is_known_by_the_body(body: dict, endpoint: str, server: JobsServer, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    assert run(server, "submit", "--request", str(file)).exit_code == 0
    assert last_order(server) == {"endpoint": endpoint, "request": body}
    assert run(server, "submit", "--request", "-", "--endpoint", "/other", given=json.dumps(body)).exit_code == 0
    assert last_order(server)["endpoint"] == "/other"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "TEXT"),
        (("x", "--request", "y"), "TEXT"),
        (("--request", "/nowhere"), "cannot be read"),
        (("--request", "-"), "no JSON"),
        (("x", "--metadata", "plain"), "NAME=VALUE"),
    ],
)
def test_mistakes_have_status_2(arguments: tuple[str, ...], words: str, server: JobsServer) -> None:
    result = run(server, "submit", *arguments, given="{")
    assert isinstance(result.exception, ConfigError)
    assert words in result.exception.message
    assert not server.submissions


@pytest.mark.parametrize(("given", "words"), [("[]", "JSON object"), ('{"x": 1}', "--endpoint")])
def test_bodies_that_are_none(given: str, words: str, server: JobsServer) -> None:
    result = run(server, "submit", "--request", "-", given=given)
    assert isinstance(result.exception, ConfigError)
    assert words in result.exception.message


def test_submit_can_wait_for_the_answer(server: JobsServer) -> None:
    assert run(server, "submit", "why?", "--wait").stdout == "answer to why?\n"
    whole = json.loads(run(server, "submit", "why?", "--wait", "--json").stdout)
    assert whole["result"] == {"text": "answer to why?"}
    failed = run(server, "submit", "fails", "--wait")
    assert isinstance(failed.exception, StokerError)
    assert "failed: too long (context_length_exceeded)" in failed.exception.message
    expired = run(server, "submit", "expires", "--wait")
    assert isinstance(expired.exception, StokerError)
    assert "expired" in expired.exception.message


def test_wait_ends_with_the_job_or_with_the_time(server: JobsServer) -> None:
    server.hold = True
    run(server, "submit", "why?")
    late = run(server, "wait", "job-1", "--timeout", "0.05")
    assert isinstance(late.exception, StokerError)
    assert "still queued after 0.05 s" in late.exception.message
    threading.Timer(0.2, server.release).start()
    assert run(server, "wait", "job-1").stdout == "answer to why?\n"


def test_status(server: JobsServer) -> None:
    server.hold = True
    run(server, "submit", "why?", "--metadata", "who=me")
    shown = run(server, "status", "job-1").stdout
    for words in ("queued", "position", "3", "1 of 5", "/query", "1.5 s", "note who"):
        assert words in shown
    assert "finished" not in shown
    server.release()
    run(server, "wait", "job-1")
    assert run(server, "status", "job-1").stdout.endswith("\nanswer to why?\n")
    assert json.loads(run(server, "status", "job-1", "--json").stdout)["state"] == "succeeded"


def test_cancel(server: JobsServer) -> None:
    server.hold = True
    run(server, "submit", "a")
    run(server, "submit", "b")
    assert run(server, "cancel", "job-1", "job-2").stdout == "job-1: cancelled\njob-2: cancelled\n"
    gone = run(server, "wait", "job-1")
    assert isinstance(gone.exception, StokerError)
    assert "was cancelled" in gone.exception.message
    unknown = run(server, "cancel", "job-9")
    assert isinstance(unknown.exception, StokerError)
    assert "only the key that submitted" in unknown.exception.message


def test_an_id_is_no_path(server: JobsServer) -> None:
    result = run(server, "status", "../jobs?limit=1")
    assert isinstance(result.exception, StokerError)
    assert "404" in result.exception.message
    assert not server.queries


def test_list(server: JobsServer) -> None:
    assert "stoker jobs submit" in run(server, "list").stdout
    for text in ("a", "b", "fails"):
        run(server, "submit", text, "--wait")
    result = run(server, "list", "--state", "failed", "--state", "succeeded", "--limit", "2", "--after", "c")
    assert server.queries[-1].replace("%2C", ",") == "state=failed,succeeded&limit=2&after=c"
    assert "job-1" in result.stdout
    assert "job-3" not in result.stdout
    assert "--after cursor-2" in result.stderr
    listed = json.loads(run(server, "list", "--batch", "x", "--json").stdout)
    assert [job["id"] for job in listed["data"]] == ["job-1", "job-2", "job-3"]
    assert server.queries[-1] == "batch=x&limit=20"
    assert run(server, "list", "--state", "other").exit_code == 2


def test_a_lost_answer_makes_no_second_job(server: JobsServer) -> None:
    server.lose["POST"] = 1
    result = run(server, "submit", "why?")
    assert result.stdout == "job-1\n"
    assert len(server.submissions) == 2
    assert len(server.jobs) == 1


def test_a_server_that_is_not_ready_is_waited_for(server: JobsServer) -> None:
    server.fail_next(503, "not_ready", **{"Retry-After": "0"})
    server.fail_next(502, "")
    result = run(server, "submit", "why?")
    assert result.stdout == "job-1\n"
    assert len({key for _, key, _ in server.submissions}) == 1


def test_limits_are_waited_for_while_that_is_short(server: JobsServer) -> None:
    server.fail_next(429, "rate_limit_exceeded", **{"Retry-After": "1"})
    began = time.monotonic()
    result = run(server, "submit", "why?")
    assert result.stdout == "job-1\n"
    assert time.monotonic() - began >= 1
    assert "trying again in 1 s" in result.stderr
    server.fail_next(429, "rate_limit_exceeded", **{"Retry-After": "3600"})
    long = run(server, "submit", "why?")
    assert isinstance(long.exception, StokerError)
    assert "429" in long.exception.message
    assert "3600 s" in long.exception.message


def test_keys(server: JobsServer) -> None:
    server.key = "very-secret"
    without = run(server, "list")
    assert isinstance(without.exception, StokerError)
    assert "an API key is needed" in without.exception.message
    assert run(server, "list", "--api-key", "very-secret").exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://", "ftp://127.0.0.1"])
def test_no_server(url: str) -> None:
    result = CliRunner().invoke(app, ["jobs", "list", "--url", url])
    assert isinstance(result.exception, StokerError)
    assert "stoker serve" in result.exception.message


async def test_an_answer_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    runner = web.AppRunner(other := web.Application())
    other.add_routes([web.get("/jobs", page)])
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        async with remote.Remote(url, None, client.Patience(), lambda _: None) as there:
            with pytest.raises(StokerError, match="no Stoker"):
                await there.page(())
            with pytest.raises(client.Refused, match="takes no jobs"):
                await there.submit(b"{}", "key")
    finally:
        await runner.cleanup()


def test_an_interrupt_leaves_the_job(server: JobsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote.Remote, "end", interrupted)
    result = run(server, "submit", "why?", "--wait")
    assert result.exit_code == client.INTERRUPTED
    assert "stoker jobs wait job-1" in result.stderr


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"text": "plain"}, "plain"),
        ({"choices": [{"message": {"content": "said"}}]}, "said"),
        ({"choices": [{"text": "one"}, {"text": "two"}]}, "one\ntwo"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, '"tool_calls": []'),
        ({"data": [{"embedding": [1.0]}]}, '"embedding"'),
        (None, "null"),
    ],
)
def test_the_text_of_answers(result: Any, text: str) -> None:
    assert text in answer_of(result)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_of("7") == 7.0
    assert retry_after_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (retry_after_of("Fri, 01 Jan 2100 00:00:00 GMT") or 0) > 1e9
    assert [retry_after_of(header) for header in (None, "", "soon", "-1", "1e9")] == [None] * 5


def test_errors_in_both_envelopes_and_neither() -> None:
    assert error_in(b'{"error": {"code": "c", "message": "m"}}') == {"code": "c", "message": "m"}
    assert error_in(b'{"detail": "d", "code": "c"}')["message"] == "d"
    for raw in (b"<html>", b"[]", b'{"error": "text"}', b'{"detail": []}', b""):
        assert error_in(raw) == {}
