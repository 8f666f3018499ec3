"""`stoker batch` against a small server with switchable faults."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from jobs_server import JobsServer
from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.errors import ConfigError, OperatorError, StokerError

LONG_S = 30.0


@pytest.fixture
def server() -> Iterator[JobsServer]:
    with JobsServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOKER_URL", "STOKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def texts(path: Path, *asked: str) -> Path:
    return write(path, *({"text": text, "custom_id": text} for text in asked))


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The output's rows by custom_id, each once."""
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    named = {row["custom_id"]: row for row in listed}
    assert len(named) == len(listed)
    return named


def run(server: JobsServer, file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["batch", str(file), "--url", server.url, *arguments])


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def start(server: JobsServer, file: Path, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "stoker", "batch", str(file), "--url", server.url, *arguments]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)


def test_every_line_becomes_a_job_and_a_row(server: JobsServer, tmp_path: Path) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    file = write(
        tmp_path / "in.jsonl",
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"text": "why?"},
        "",
        {"messages": [], "custom_id": "c"},
    )
    result = run(server, file, "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 0, result.output
    written = rows(tmp_path / "out.jsonl")
    assert set(written) == {"a", "line-2", "c"}
    for row in written.values():
        assert row["id"].startswith("batch_req_")
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"] == row["job"]
    assert written["line-2"]["response"]["body"] == {"text": "answer to why?"}
    orders = {order["metadata"]["custom_id"]: order for _, _, order in server.submissions}
    assert orders["a"]["request"] == chat
    assert [orders[name]["endpoint"] for name in ("a", "line-2", "c")] == [
        "/v1/chat/completions",
        "/query",
        "/v1/chat/completions",
    ]
    assert len({key for _, key, _ in server.submissions}) == 3
    assert "3 of 3 lines done" in result.stdout


def test_the_default_output_and_the_model_for_lines_without(server: JobsServer, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", {"text": "x"}, {"text": "y", "model": "own"})
    result = run(server, file, "--model", "given", "--json")
    assert result.exit_code == 0
    assert sorted(order["request"]["model"] for _, _, order in server.submissions) == ["given", "own"]
    figures = json.loads(result.stdout)
    assert figures["output"] == str(tmp_path / "in.results.jsonl")
    assert (figures["lines"], figures["succeeded"], figures["failed"], figures["complete"]) == (2, 2, 0, True)


def test_failures_are_rows_and_exit_status_1(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "fine", "fails", "expires", "refused", "poison")
    result = run(server, file)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    written = rows(tmp_path / "in.results.jsonl")
    assert written["fails"]["response"]["status_code"] == 400
    assert written["fails"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert written["expires"]["response"] is None
    assert written["expires"]["error"]["code"] == "job_expired"
    assert written["refused"]["response"]["status_code"] == 422
    assert written["refused"]["response"]["body"]["error"]["message"] == "looks like an attack"
    assert written["refused"]["job"] is None
    assert written["poison"]["response"]["status_code"] == 500
    assert written["fine"]["response"]["status_code"] == 200
    assert "1 succeeded, 4 failed" in result.stdout
    assert "--retry-failed" in result.stderr
    assert "fails failed: too long" in result.stderr


def test_a_second_start_asks_nothing_again(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "a", "fails")
    assert run(server, file).exit_code == 1
    before, asked = (tmp_path / "in.results.jsonl").read_bytes(), len(server.submissions)
    again = run(server, file, "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["before"] == 2
    assert len(server.submissions) == asked
    assert (tmp_path / "in.results.jsonl").read_bytes() == before


def test_ctrl_c_loses_nothing_and_the_next_start_finds_the_jobs(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", *(f"q{number}" for number in range(6)))
    server.hold = True
    process = start(server, file, "--in-flight", "4")
    until(lambda: len(server.jobs) == 4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=LONG_S)
    assert process.returncode == 130, stderr
    assert b"0 of 6 lines done" in stdout
    assert b"the same command goes on" in stderr
    assert b"Traceback" not in stderr
    server.release()
    result = run(server, file)
    assert result.exit_code == 0, result.output
    assert len(rows(tmp_path / "in.results.jsonl")) == 6
    assert len(server.jobs) == 6, "none was submitted twice"


def test_a_killed_process_leaves_half_a_row(server: JobsServer, tmp_path: Path) -> None:
    file, out = texts(tmp_path / "in.jsonl", "a", "b", "c"), tmp_path / "in.results.jsonl"
    assert run(server, file).exit_code == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[2]) // 2, len(lines[2]) - 1):
        out.write_bytes(lines[0] + lines[1] + lines[2][:cut])
        assert run(server, file).exit_code == 0
        assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(server.jobs) == 3


@pytest.mark.parametrize("content", ["notes of mine", "notes\n", '{"name": 1}\n', '{"custom_id": "a"}\n', "{\n"])
def test_a_file_of_something_else_is_left_alone(content: str, server: JobsServer, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.write_text(content)
    result = run(server, texts(tmp_path / "in.jsonl", "a"), "--out", str(out))
    assert isinstance(result.exception, ConfigError)
    assert "--out" in result.exception.message
    assert out.read_text() == content
    assert not server.submissions


def test_a_changed_line_is_not_taken_for_an_answered_one(server: JobsServer, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", {"text": "one"}, {"text": "two"})
    assert run(server, file).exit_code == 0
    write(file, {"text": "one"}, {"text": "changed"})
    result = run(server, file)
    assert isinstance(result.exception, ConfigError)
    assert "in.jsonl:2" in result.exception.message
    write(file, {"text": "one"}, {"text": "two"}, {"text": "more"})
    assert run(server, file).exit_code == 0
    assert len(rows(tmp_path / "in.results.jsonl")) == 3
    assert len(server.jobs) == 3


def test_too_many_requests_wait_as_long_as_they_are_told(server: JobsServer, tmp_path: Path) -> None:
    server.fail_next(429, "rate_limit_exceeded", **{"Retry-After": "1"})
    result = run(server, texts(tmp_path / "in.jsonl", "a"))
    assert result.exit_code == 0, result.output
    (first, key, _), (second, again, _) = server.submissions
    assert second - first >= 1.0
    assert key == again
    assert "trying again in 1 s" in result.stderr


def test_a_request_over_every_limit_fails_alone(server: JobsServer, tmp_path: Path) -> None:
    server.fail_next(429, "rate_limit_exceeded", **{"x-should-retry": "false"})
    assert run(server, texts(tmp_path / "in.jsonl", "a", "b"), "--in-flight", "1").exit_code == 1
    written = rows(tmp_path / "in.results.jsonl")
    assert written["a"]["response"]["status_code"] == 429
    assert written["b"]["response"]["status_code"] == 200


def test_a_full_queue_and_a_passing_conflict_are_waited_for(server: JobsServer, tmp_path: Path) -> None:
    server.fail_next(429, "queue_full", **{"x-should-retry": "false"})
    server.fail_next(409, "idempotency_key_in_use", **{"Retry-After": "0"})
    server.fail_next(503, "not_ready", **{"Retry-After": "0"})
    assert run(server, texts(tmp_path / "in.jsonl", "a"), "--in-flight", "1").exit_code == 0
    assert len(server.submissions) == 4


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "invalid_api_key", "STOKER_API_KEY"),
        (403, "permission_denied", "not now"),
        (404, "not_found", "takes no jobs"),
        (405, "", "takes no jobs"),
    ],
)
def test_what_concerns_all_lines_stops_the_run(
    status: int, code: str, words: str, server: JobsServer, tmp_path: Path
) -> None:
    server.fail_next(status, code)
    result = run(server, texts(tmp_path / "in.jsonl", "a", "b"), "--in-flight", "1")
    assert isinstance(result.exception, StokerError)
    assert words in result.exception.message
    assert "0 of 2 lines" in result.stderr
    assert (tmp_path / "in.results.jsonl").read_text() == ""
    assert run(server, tmp_path / "in.jsonl").exit_code == 0


def test_a_key_is_sent_and_never_written(server: JobsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "very-secret"
    file = texts(tmp_path / "in.jsonl", "a")
    monkeypatch.setenv("STOKER_API_KEY", "very-wrong")
    wrong = run(server, file)
    assert isinstance(wrong.exception, StokerError)
    assert "not known" in wrong.exception.message
    right = run(server, file, "--key", "very-secret")
    assert right.exit_code == 0
    for said in (wrong.output, str(wrong.exception), right.output, (tmp_path / "in.results.jsonl").read_text()):
        assert "very-" not in said


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_lost_answers_make_no_second_job(method: str, server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "first", "second", "third")
    server.hold = True
    process = start(server, file, "--in-flight", "1")
    until(lambda: len(server.jobs) == 1)
    server.lose[method] = 2
    server.release()
    stdout, stderr = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, stderr
    assert server.lose[method] == 0
    assert b"3 of 3" in stdout
    assert b"trying again" in stderr
    assert len(server.jobs) == 3
    assert len(rows(tmp_path / "in.results.jsonl")) == 3


def test_a_server_that_stays_away_ends_the_run_with_what_there_is(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "a", "b")
    server.hold = True
    process = start(server, file, "--patience", "0.2", "--in-flight", "1")
    until(lambda: server.waiting == 1)
    server.deaf = True
    server.release()
    # The first job's answer still comes: its call was taken before; the second line is then not taken.
    _, stderr = process.communicate(timeout=LONG_S)
    assert process.returncode == 1
    assert b"1 of 2 lines" in stderr
    assert b"no server answers" in stderr
    server.deaf = False
    assert run(server, file).exit_code == 0
    assert len(rows(tmp_path / "in.results.jsonl")) == 2


def test_no_server_at_all(tmp_path: Path) -> None:
    began = time.monotonic()
    result = CliRunner().invoke(app, ["batch", str(texts(tmp_path / "in.jsonl", "a")), "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, StokerError)
    assert not isinstance(result.exception, OperatorError)
    assert "stoker serve" in result.exception.message
    assert time.monotonic() - began < LONG_S, "a mistyped address is not waited for"


def test_jobs_in_flight_are_bounded(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", *(f"q{number}" for number in range(40)))
    assert run(server, file, "--in-flight", "3").exit_code == 0
    assert server.most_open == 3
    assert len(rows(tmp_path / "in.results.jsonl")) == 40


def test_failed_lines_are_asked_again_under_a_new_key(server: JobsServer, tmp_path: Path) -> None:
    file, out = texts(tmp_path / "in.jsonl", "a", "fails", "refused"), tmp_path / "in.results.jsonl"
    assert run(server, file).exit_code == 1
    assert run(server, file, "--retry-failed").exit_code == 1
    assert len(server.jobs) == 3, "the failed job was made anew, the good one was not"
    assert out.read_text().count("\n") == 3, "one row for each line"
    server.failing.clear()
    result = run(server, file, "--retry-failed", "--json")
    figures = json.loads(result.stdout)
    assert (figures["succeeded"], figures["failed"], figures["before"]) == (2, 1, 1)
    assert rows(out)["fails"]["response"]["body"] == {"text": "answer to fails"}
    assert rows(out)["a"]["job"] == "job-1"
    assert not list(tmp_path.glob("*.new"))


def test_an_interrupted_retry_finds_its_jobs(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "fails")
    assert run(server, file).exit_code == 1
    server.hold = True
    process = start(server, file, "--retry-failed")
    until(lambda: len(server.jobs) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONG_S)
    server.failing.clear()
    server.release()
    assert run(server, file, "--retry-failed").exit_code == 0
    assert len(server.jobs) == 2


def test_another_run_makes_new_jobs(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "a", "b")
    assert run(server, file, "--out", str(tmp_path / "1")).exit_code == 0
    same = run(server, file, "--out", str(tmp_path / "2"))
    assert len(server.jobs) == 2
    assert "2 lines had been answered by earlier jobs; --run" in same.stderr
    assert run(server, file, "--out", str(tmp_path / "3"), "--run", "second").exit_code == 0
    assert len(server.jobs) == 4


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "in.jsonl:1: no JSON"),
        (['{"text": "x"}', "[1]"], "in.jsonl:2: no JSON object"),
        (['{"question": "x"}'], '"text", "messages"'),
        (['{"custom_id": "a", "text": "x"}', "", '{"custom_id": "a", "text": "y"}'], "in.jsonl:3: custom_id 'a'"),
        (['{"text": "x", "custom_id": 7}'], "custom_id: must be a text"),
        (['{"url": "/v1/embeddings", "body": {}}'], "custom_id: missing"),
        (['{"custom_id": "a", "method": "GET", "url": "/query", "body": {}}'], "method: must be POST"),
        (['{"custom_id": "a", "url": "https://elsewhere/", "body": {}}'], "url: must be one of /query"),
        (['{"custom_id": "a", "url": "/query", "body": []}'], "body: must be an object"),
        ([], "holds no request"),
        (["", "  "], "holds no request"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_sent(
    lines: list[str], words: str, server: JobsServer, tmp_path: Path
) -> None:
    result = run(server, write(tmp_path / "in.jsonl", *lines))
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert words in result.exception.message
    assert not server.submissions
    assert not (tmp_path / "in.results.jsonl").exists()


def test_wrong_places(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "a")
    for given, words in (
        ((tmp_path / "none.jsonl",), "cannot be read"),
        ((tmp_path,), "cannot be read"),
        ((file, "--out", str(file)), "is the file that is asked"),
        ((file, "--out", str(tmp_path / "no" / "where")), "cannot be written"),
        ((file, "--out", "/dev/null"), "must be a file"),
    ):
        result = run(server, *given)
        assert isinstance(result.exception, ConfigError), given
        assert words in result.exception.message
    assert run(server, file, "--in-flight", "0").exit_code == 2
    assert not server.submissions


def test_two_processes_do_not_write_one_output(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", "a")
    with (tmp_path / "in.results.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = run(server, file)
    assert isinstance(result.exception, ConfigError)
    assert "another `stoker batch`" in result.exception.message
    assert not server.submissions


def test_a_byte_order_mark_and_windows_lines(server: JobsServer, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert run(server, file).exit_code == 0
    assert set(rows(tmp_path / "in.results.jsonl")) == {"line-1", "line-3"}


def test_a_terminal_gets_a_bar_with_rate_and_time_left(server: JobsServer, tmp_path: Path) -> None:
    file = texts(tmp_path / "in.jsonl", *(f"q{number}" for number in range(30)))
    ours, theirs = os.openpty()
    server.hold = True
    process = start(server, file, "--in-flight", "10", stderr=theirs)
    os.close(theirs)
    until(lambda: len(server.jobs) == 10)
    server.release()
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how a pseudo-terminal says that its other end is closed
        pass
    os.close(ours)
    assert process.wait(LONG_S) == 0
    process.communicate()
    text = shown.decode()
    assert "asking" in text
    assert "0/30" in text
    assert "30/30" in text
    assert "/s" in text
    assert "0:00:0" in text
