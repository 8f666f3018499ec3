"""`stoker jobs` and `stoker batch` against a real server: with the real model, and with one that can be held up."""

from __future__ import annotations

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
from tests.running import FakeModel, Stoker

from stoker.admission.keys import hash_of

LONG_S = 60.0
KEY = "sk-a-very-secret-key-0123456789"
SLOW_S = 0.2
"""Between the tokens of the fake model, where a test wants to come before its end."""


def command(url: str, *arguments: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("STOKER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "stoker", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, "STOKER_URL": url},
    )


def run(url: str, *arguments: str, status: int = 0) -> str:
    """Standard output of a command that must end with the status."""
    process = command(url, *arguments)
    stdout, stderr = process.communicate(timeout=2 * LONG_S)
    assert process.returncode == status, stdout + stderr
    assert "Traceback" not in stderr
    return stdout


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The output's rows by custom_id, each once."""
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    named = {row["custom_id"]: row for row in listed}
    assert len(named) == len(listed)
    return named


def listed(url: str) -> list[dict[str, Any]]:
    return json.loads(run(url, "jobs", "list", "--limit", "1000", "--json"))["data"]


@pytest.fixture
def held(tmp_path: Path, fake_model: FakeModel) -> Iterator[Stoker]:
    """A server whose model takes its time."""
    fake_model.set(delay=SLOW_S)
    directory = tmp_path / "server"
    directory.mkdir()
    with Stoker(directory, {"models": [fake_model.settings]}) as running:
        yield running


def test_a_job_from_submission_to_answer(stoker: Stoker) -> None:
    job_id = run(stoker.url, "jobs", "submit", "What is the capital of Germany?").strip()
    assert "Berlin" in run(stoker.url, "jobs", "wait", job_id)
    assert "Berlin" in run(stoker.url, "jobs", "status", job_id)
    job = json.loads(run(stoker.url, "jobs", "status", job_id, "--json"))
    assert (job["state"], job["endpoint"], job["attempts"]) == ("succeeded", "/query", 1)
    assert job_id in run(stoker.url, "jobs", "list", "--state", "succeeded", "--state", "failed")
    assert run(stoker.url, "jobs", "cancel", job_id) == f"{job_id}: succeeded\n"


def test_a_chat_with_notes_and_a_key(stoker: Stoker, tmp_path: Path) -> None:
    body = tmp_path / "chat.json"
    body.write_text(json.dumps({"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4}))
    arguments = ("jobs", "submit", "--request", str(body), "--metadata", "who=me", "--idempotency-key", "one")
    first = run(stoker.url, *arguments).strip()
    assert run(stoker.url, *arguments).strip() == first
    whole = json.loads(run(stoker.url, "jobs", "wait", first, "--json"))
    assert whole["metadata"] == {"who": "me"}
    assert whole["result"]["usage"]["completion_tokens"] <= 4


def test_a_batch_of_every_form(stoker: Stoker, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4}
    file = write(
        tmp_path / "in.jsonl",
        [
            {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": chat},
            {
                "custom_id": "plain",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": "1 2", "max_tokens": 2},
            },
            {"custom_id": "wrong", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": "none"}},
            {"custom_id": "nowhere", "method": "POST", "url": "/v1/other", "body": {}},
            {"custom_id": "unknown", "text": "x", "model": "unknown"},
            {"text": "What is the capital of Germany?"},
        ],
    )
    out = tmp_path / "out.jsonl"
    figures = json.loads(run(stoker.url, "batch", str(file), "--out", str(out), "--json", status=1))
    assert (figures["succeeded"], figures["failed"]) == (3, 3)
    written = rows(out)
    statuses = {name: row["response"]["status_code"] for name, row in written.items()}
    assert statuses.pop("wrong") in {400, 422}
    assert statuses.pop("nowhere") in {400, 422}
    assert statuses == {"chat": 200, "plain": 200, "line-6": 200, "unknown": 404}
    assert "Berlin" in written["line-6"]["response"]["body"]["text"]
    assert written["chat"]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    before = out.read_bytes()
    assert "(6 by earlier starts)" in run(stoker.url, "batch", str(file), "--out", str(out), status=1)
    assert out.read_bytes() == before


def test_an_interrupted_batch_finds_its_jobs_again(held: Stoker, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [{"text": f"question {number}"} for number in range(8)])
    process = command(held.url, "batch", str(file), "--in-flight", "5")
    until(lambda: len(listed(held.url)) >= 5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LONG_S)
    assert process.returncode == 130, stderr
    run(held.url, "batch", str(file))
    written = rows(tmp_path / "in.results.jsonl")
    assert len(written) == 8
    jobs = {job["id"]: job for job in listed(held.url)}
    assert len(jobs) == 8, "none was submitted twice"
    assert {row["job"] for row in written.values()} == set(jobs)


def test_a_batch_goes_on_after_the_server_was_killed(tmp_path: Path, fake_model: FakeModel) -> None:
    fake_model.set(delay=SLOW_S / 2)
    file = write(tmp_path / "in.jsonl", [{"text": f"question {number}"} for number in range(8)])
    directory = tmp_path / "server"
    directory.mkdir()
    settings = {"models": [fake_model.settings], "jobs": {"lease": 2}}
    with Stoker(directory, settings) as first:
        url, port = first.url, int(first.url.rsplit(":", 1)[1])
        process = command(url, "batch", str(file), "--in-flight", "4")
        out = tmp_path / "in.results.jsonl"
        until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2)
        first.process.kill()
        first.process.wait()
    with Stoker(directory, {**settings, "port": port}) as second:
        assert second.url == url
        stdout, stderr = process.communicate(timeout=2 * LONG_S)
        assert process.returncode == 0, stdout + stderr
        assert "trying again" in stderr
        written = rows(out)
        assert len(written) == 8
        assert len(listed(url)) == 8


def test_a_waiting_job_is_cancelled(held: Stoker) -> None:
    later = run(held.url, "jobs", "submit", "x", "--not-before", f"{time.localtime().tm_year + 1}-01-01").strip()
    assert "not before" in run(held.url, "jobs", "status", later)
    assert run(held.url, "jobs", "cancel", later) == f"{later}: cancelled\n"
    run(held.url, "jobs", "wait", later, status=1)
    run(held.url, "jobs", "status", "0" * 32, status=1)


def test_a_key_is_asked_for(tmp_path: Path, fake_model: FakeModel) -> None:
    settings = {"models": [fake_model.settings], "keys": [{"name": "me", "hash": hash_of(KEY)}]}
    directory = tmp_path / "server"
    directory.mkdir()
    file = write(tmp_path / "in.jsonl", [{"text": "x"}])
    with Stoker(directory, settings) as server:
        process = command(server.url, "batch", str(file))
        _, stderr = process.communicate(timeout=LONG_S)
        assert process.returncode == 1
        assert "STOKER_API_KEY" in stderr
        run(server.url, "batch", str(file), "--key", KEY)
        assert KEY not in server.log
