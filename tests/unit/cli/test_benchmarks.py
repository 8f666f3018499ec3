"""The scripts in benchmarks/: what they conclude from figures, and the stub engine they measure with."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stoker.cli.loadstats import Sample

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks"
pytest.importorskip("psutil", reason="psutil is not installed: pip install psutil (the `bench` dependency group)")


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, as it is when it is run from its directory."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_an_aim_knows_its_direction(script):
    aim = script("harness").Aim
    assert aim("time", 0.9, 1.0, "ms").met
    assert not aim("time", 1.1, 1.0, "ms").met
    assert aim("ratio", 0.97, 0.97, "", at_most=False).met
    assert not aim("ratio", 0.96, 0.97, "", at_most=False).met
    assert "MISSED" in aim("time", 1.1, 1.0, "ms").line()


def test_a_report_writes_its_table_and_fails_on_a_missed_aim(script, tmp_path, capsys):
    harness = script("harness")
    report = harness.Report("sample", ("a", "b"), rows=[("1", "2")], notes=["a remark"])
    assert report.finish(tmp_path) == 0
    report.aims.append(harness.Aim("time", 2.0, 1.0, "ms"))
    assert report.finish(tmp_path) == 1
    written = json.loads((tmp_path / "sample.json").read_text())
    assert written["aims"][0]["met"] is False
    assert "| 1 | 2 |" in written["table"]
    assert "**no**" in written["table"]
    assert written["machine"]["cores"] >= 1
    assert "a remark" in capsys.readouterr().out


def test_tables_go_between_their_markers_again_and_again(script):
    run_all = script("run_all")
    machine = {"cpu": "Abacus", "cores": 2, "memory_gib": 1, "python": "3.11", "versions": {"x": "1"}}
    results = {"start": {"table": "| new |", "finished_at": "2026-01-02T03:04:05", "machine": machine}}
    document = "before\n<!-- start -->\nold\n<!-- /start -->\nbetween\n<!-- kills -->\nkept\n<!-- /kills -->\nafter"
    once = run_all.fill(document, results)
    assert "| new |" in once
    assert "old" not in once
    assert "kept" in once
    assert "2026-01-02: Abacus, 2 cores" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert run_all.fill(once, results) == once


@pytest.mark.parametrize(
    ("sample", "lost"),
    [
        (Sample(0, 1, first=0.5, last=0.9, completion_tokens=3), False),
        (Sample(0, 1, first=0.5, last=0.9, error="error in the stream: engine_died"), False),
        (Sample(0, 1, first=0.5, last=0.9, error="cut off in mid-stream"), True),
        (Sample(0, 1, first=0.5, last=0.9, error="timeout"), True),
        (Sample(0, 1, error="HTTP 503 engine_died"), True),
        (Sample(0, 1, error="error in the stream: engine_died"), True),
    ],
)
def test_a_request_is_lost_when_it_had_not_begun_or_ends_in_silence(script, sample, lost):
    assert script("kills").fate(sample).startswith("LOST") is lost


def test_only_answers_within_a_phase_count(script):
    overload = script("overload")
    ends = [1.0, 5.0, 9.0, 14.0, 14.5]
    samples = [Sample(100.0, 100.0 + end) for end in ends] + [Sample(100.0, 106.0, error="HTTP 503 overloaded")]
    assert overload.answers_per_s(100.0, 14.0, samples) == pytest.approx(3 / 10)


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", True),
    ],
)
def test_when_a_response_is_complete(script, data, complete):
    assert script("harness").whole(data) is complete


@pytest.fixture
def stub(script) -> Iterator[str]:
    """A running stub engine's socket; it is a child that ends with its standard input."""
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        path = str(Path(folder) / "s.sock")
        command = [sys.executable, str(SCRIPTS / "stub_engine.py"), "--child", "--socket", path, "--token-ms", "0.1"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        script("harness").wait_until_ready(process, path, "/health", Path(os.devnull))
        yield path
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("keep_alive", [True, False])
def test_the_stub_engine_answers_like_llama_cpp(script, stub, keep_alive):
    harness = script("harness")
    with harness.RawClient(stub, keep_alive=keep_alive) as client:
        for _ in range(2):
            streamed = client.exchange(harness.chat(3, stream=True, close=not keep_alive))
            assert streamed.status == 200
            events = [line[6:] for line in streamed.body.split(b"\n") if line.startswith(b"data: {")]
            chunks = [json.loads(event) for event in events]
            assert [c["choices"][0]["delta"].get("content") for c in chunks[:-1]] == [None, *[" word"] * 3, None]
            assert chunks[-1]["usage"]["completion_tokens"] == 3
            assert chunks[-1]["timings"]["predicted_n"] == 3
            assert b"data: [DONE]" in streamed.body
        whole = json.loads(client.exchange(harness.chat(2, stream=False)).body)
        assert whole["choices"][0]["message"]["content"] == " word word"
        assert json.loads(client.exchange(harness.request("GET", "/props")).body)["total_slots"] == 8


def test_many_requests_over_many_connections(script, stub):
    harness = script("harness")
    answered = []
    harness.pound(stub, harness.chat(1, stream=True), 40, 4, lambda: answered.append(1))
    assert len(answered) == 40
