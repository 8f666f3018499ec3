"""The end of a server: what was accepted is finished, nothing new is let in, nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.running import FakeModel, Stoker

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def gone(pid: int) -> bool:
    """Whether a process is no more (a zombie counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def wait_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 10
    while not all(map(gone, pids)):
        assert time.monotonic() < limit, "an engine outlived its gateway"
        time.sleep(0.02)


def wait_running(stoker: Stoker, count: int) -> None:
    limit = time.monotonic() + 10
    while stoker.health()[1]["models"][0]["running"] != count:
        assert time.monotonic() < limit
        time.sleep(0.02)


def stream(url: str) -> str:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=60) as response:
        return response.read().decode()


@pytest.fixture
def slow(tmp_path: Path, model_path: Path) -> FakeModel:
    model = FakeModel(tmp_path, model_path, plan={"slots": 2, "context": 1024})
    model.set("none", tokens=30, delay=0.05)
    return model


def test_sigterm_finishes_what_was_accepted(tmp_path: Path, slow: FakeModel) -> None:
    with Stoker(tmp_path, {"models": [slow.settings]}) as stoker, ThreadPoolExecutor(4) as pool:
        pids = stoker.engine_pids()
        streams = [pool.submit(stream, stoker.url) for _ in range(3)]  # two run, one waits
        wait_running(stoker, 2)
        time.sleep(0.2)
        stoker.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + 5
        while stoker.health("/health/ready")[0] != 503:
            assert time.monotonic() < limit
        assert stoker.health("/health/live")[0] == 200
        refused = httpx.post(f"{stoker.url}/v1/chat/completions", json=CHAT, timeout=10)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "not_ready"
        assert refused.headers["connection"] == "close"
        assert all(raw.result().endswith("[DONE]\n\n") for raw in streams)
        assert stoker.process.wait(20) == 0
    wait_gone(pids)
    assert not list((tmp_path / "tmp").iterdir())


def test_kept_connections_are_told_before_requests_are_refused(tmp_path: Path, slow: FakeModel) -> None:
    settings = {"models": [slow.settings], "timeouts": {"lame_duck": 3.0}}
    with Stoker(tmp_path, settings) as stoker, httpx.Client(base_url=stoker.url, timeout=30) as kept:
        assert "connection" not in kept.post("/v1/chat/completions", json=CHAT).headers
        stoker.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + 5
        while stoker.health("/health/ready")[0] != 503:
            assert time.monotonic() < limit
        answer = kept.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert stoker.process.wait(20) == 0


def test_a_second_signal_ends_streams_properly_and_at_once(tmp_path: Path, slow: FakeModel) -> None:
    slow.set("none", tokens=5000, delay=0.05)
    with Stoker(tmp_path, {"models": [slow.settings]}) as stoker, ThreadPoolExecutor(2) as pool:
        pids = stoker.engine_pids()
        streams = [pool.submit(stream, stoker.url) for _ in range(2)]
        wait_running(stoker, 2)
        stoker.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert stoker.process.poll() is None
        stoker.process.send_signal(signal.SIGINT)
        assert stoker.process.wait(10) == 0
        for raw in streams:
            assert '"code":"not_ready"' in raw.result().strip().split("\n\n")[-1]
    wait_gone(pids)


def test_the_grace_period_ends(tmp_path: Path, slow: FakeModel) -> None:
    slow.set("none", tokens=5000, delay=0.05)
    settings = {"models": [slow.settings], "timeouts": {"shutdown": 1.0}}
    with Stoker(tmp_path, settings) as stoker, ThreadPoolExecutor(1) as pool:
        raw = pool.submit(stream, stoker.url)
        wait_running(stoker, 1)
        stoker.process.send_signal(signal.SIGTERM)
        assert stoker.process.wait(15) == 0
        assert "the answer is incomplete: the server is stopping" in raw.result()


def test_a_server_whose_terminal_is_gone_still_finishes_what_it_accepted(tmp_path: Path, slow: FakeModel) -> None:
    with Stoker(tmp_path, {"models": [slow.settings]}, piped=True) as stoker, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream, stoker.url)
        wait_running(stoker, 1)
        stoker.hang_up()
        stoker.process.send_signal(signal.SIGTERM)
        assert "[DONE]" in answer.result()
        assert stoker.process.wait(20) == 0


def test_engines_do_not_outlive_a_killed_gateway(tmp_path: Path, model_path: Path) -> None:
    real = {"name": "m", "source": str(model_path), "plan": {"slots": 1, "context": 512}, "replicas": 2}
    with Stoker(tmp_path, {"models": [real]}) as stoker:
        limit = time.monotonic() + 30
        while len(stoker.engine_pids()) < 2 or "starting" in str(stoker.health()[1]["models"]):
            assert time.monotonic() < limit
            time.sleep(0.05)
        pids = stoker.engine_pids()
        os.kill(stoker.process.pid, signal.SIGKILL)
        stoker.process.wait()
    wait_gone(pids)
    assert not list((tmp_path / "tmp").glob("*/*.sock"))


def test_a_signal_while_loading_stops_at_once(tmp_path: Path, slow: FakeModel) -> None:
    slow.set("never_ready")
    with Stoker(tmp_path, {"models": [slow.settings]}, wait=False) as stoker:
        limit = time.monotonic() + 30
        while "loading" not in stoker.log:
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(0.5)
        stoker.process.send_signal(signal.SIGTERM)
        assert stoker.process.wait(15) == 0
    assert not list((tmp_path / "tmp").iterdir())
