"""Engines that die, wedge and lie, under a whole server: what had not begun is kept, what had is never silent."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.running import FakeModel, Stoker

QUICK = {"restart": {"backoff": 0.05, "backoff_max": 0.2, "give_up_after": 40}, "timeouts": {"stall": 2.5}}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[tuple[Stoker, FakeModel]]:
    directory = tmp_path_factory.mktemp("faults")
    model = FakeModel(directory, model_path, plan={"slots": 2, "context": 1024})
    settings = {**QUICK, "models": [model.settings], "queue": {"max_requests": 3}}
    with Stoker(directory, settings) as running:
        yield running, model


@pytest.fixture
def fault(server: tuple[Stoker, FakeModel]) -> Iterator[FakeModel]:
    """The fake model, healthy before and after the test."""
    stoker, model = server
    wait_until(lambda: stoker.health("/health/ready")[0] == 200)
    yield model
    model.set()


@pytest.fixture
def url(server: tuple[Stoker, FakeModel]) -> str:
    return server[0].url


def wait_until(condition, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def ask(url: str, **fields: object) -> httpx.Response:
    headers = fields.pop("headers", None)
    return httpx.post(f"{url}/v1/chat/completions", json={**CHAT, **fields}, headers=headers, timeout=60)


def stream(url: str, **fields: object) -> tuple[int, str]:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True, **fields}, timeout=60) as r:
        return r.status_code, r.read().decode()


def text_of(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def test_the_fake_engine_answers(fault: FakeModel, url: str) -> None:
    answer = ask(url)
    assert answer.status_code == 200
    assert text_of(answer) == "w0 w1 w2 w3 w4 "
    assert answer.json()["usage"]["total_tokens"] == 12
    asked = fault.requests()[-1]["body"]
    assert asked["stream"] is True
    assert asked["return_progress"] is True


def test_a_death_before_the_first_token_is_tried_again(fault: FakeModel, url: str) -> None:
    fault.set("die_before", times=2)
    before = len(fault.requests())
    assert text_of(ask(url)) == "w0 w1 w2 w3 w4 "
    pids = [request["pid"] for request in fault.requests()[before:]]
    assert len(pids) == len(set(pids)) == 3


def test_a_request_that_kills_every_engine_is_not_tried_for_ever(fault: FakeModel, url: str) -> None:
    fault.set("die_before", times=5)
    answer = ask(url)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_died"
    assert text_of(ask(url)) == "w0 w1 w2 w3 w4 "


@pytest.mark.parametrize("kind", ["die_mid", "truncate"])
def test_a_death_in_mid_stream_is_an_explicit_error(fault: FakeModel, url: str, kind: str) -> None:
    fault.set(kind, times=1, delay=0.05)
    status, raw = stream(url)
    assert status == 200
    assert '"content":"w1 "' in raw
    last = json.loads(raw.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_died"
    assert "[DONE]" not in raw
    fault.set(kind, times=1, delay=0.05)
    assert ask(url).status_code == 503


def test_query_streams_tell_of_a_death_too(fault: FakeModel, url: str) -> None:
    fault.set("die_mid", times=1, delay=0.05)
    with httpx.stream("POST", f"{url}/query", json={"text": "x", "stream": True}, timeout=30) as response:
        raw = response.read().decode()
    assert "event: error" in raw
    assert "engine_died" in raw
    assert "event: done" not in raw


def test_a_wedged_engine_is_killed_and_the_request_tried_again(
    fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]
) -> None:
    fault.set("wedge", times=1)
    assert text_of(ask(url)) == "w0 w1 w2 w3 w4 "
    engine = server[0].health()[1]["models"][0]["engines"][0]
    assert engine["stalls"] >= 1


def test_a_stopped_engine_counts_as_wedged(fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]) -> None:
    (pid,) = server[0].engine_pids()
    os.kill(pid, signal.SIGSTOP)
    assert text_of(ask(url)) == "w0 w1 w2 w3 w4 "
    assert server[0].engine_pids() != [pid]


def test_a_wedge_is_noticed_though_nobody_waits_for_its_end(
    fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]
) -> None:
    (pid,) = server[0].engine_pids()
    fault.set("wedge", times=1)
    assert ask(url, timeout=0.2).status_code == 504  # far shorter than the time after which silence counts
    wait_until(lambda: server[0].engine_pids() not in ([pid], []))
    assert text_of(ask(url)) == "w0 w1 w2 w3 w4 "


def test_a_long_silence_of_an_engine_that_computes_is_no_wedge(
    fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]
) -> None:
    before = server[0].engine_pids()
    fault.set("none", embed_delay=7.0)
    assert httpx.post(f"{url}/v1/embeddings", json={"input": "long"}, timeout=30).status_code == 200
    assert server[0].engine_pids() == before


def test_a_wedge_in_mid_stream_ends_with_an_error(fault: FakeModel, url: str) -> None:
    fault.set("wedge_mid", times=1)
    _, raw = stream(url)
    assert "engine_died" in raw


def test_an_engine_that_fails_without_dying_is_a_bad_gateway(fault: FakeModel, url: str) -> None:
    fault.set("refuse", times=1)
    answer = ask(url)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_error"
    assert "fake failure" in answer.json()["error"]["message"]


def test_a_full_queue_refuses_with_a_time_to_come_back(fault: FakeModel, url: str) -> None:
    fault.set("none", tokens=20, delay=0.05)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(url), range(12)))
    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(good) == 5  # two slots and three places
    assert len(refused) == 7
    for answer in refused:
        assert answer.json()["error"]["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1


def test_deadlines_hold_while_waiting_and_while_running(fault: FakeModel, url: str) -> None:
    fault.set("none", tokens=40, delay=0.05)
    with ThreadPoolExecutor(4) as pool:
        holders = [pool.submit(ask, url) for _ in range(2)]
        wait_until(lambda: httpx.get(f"{url}/health").json()["models"][0]["running"] == 2)
        waiting = ask(url, timeout=0.3)
        assert waiting.status_code in {503, 504}
        assert all(holder.result().status_code == 200 for holder in holders)
    assert ask(url, headers={"X-Request-Timeout": "0.4"}).status_code == 504
    _, raw = stream(url, timeout=0.4)
    assert "deadline_exceeded" in raw


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_its_slot(fault: FakeModel, url: str, streaming: bool) -> None:
    fault.set("none", tokens=2000, delay=0.01)
    before = fault.departures()
    if streaming:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            next(response.iter_bytes())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=0.5)
    wait_until(lambda: httpx.get(f"{url}/health").json()["models"][0]["running"] == 0, 3)
    wait_until(lambda: fault.departures() == before + 1, 3)


def test_a_client_that_leaves_the_line_gives_up_its_place(fault: FakeModel, url: str) -> None:
    fault.set("none", tokens=60, delay=0.05)
    with ThreadPoolExecutor(2) as pool:
        holders = [pool.submit(ask, url) for _ in range(2)]
        wait_until(lambda: httpx.get(f"{url}/health").json()["models"][0]["running"] == 2)
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=0.3)
        wait_until(lambda: httpx.get(f"{url}/health").json()["models"][0]["waiting"] == 0, 3)
        assert all(holder.result().status_code == 200 for holder in holders)


def test_embeddings_survive_a_death(fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]) -> None:
    (pid,) = server[0].engine_pids()
    os.kill(pid, signal.SIGKILL)
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": ["ab", "abc"] * 10}, timeout=30)
    assert [row["embedding"][0] for row in answer.json()["data"]] == [2.0, 3.0] * 10


def test_kills_under_load_lose_nothing_that_had_not_begun(
    fault: FakeModel, url: str, server: tuple[Stoker, FakeModel]
) -> None:
    """The long form with the real model is `benchmarks/kills.py`; here a dozen kills of the quick engine."""
    fault.set("none", tokens=5, delay=0.02)
    outcomes: list[tuple[int, str]] = []
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            outcomes.append(stream(url))

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    for _ in range(12):
        wait_until(lambda: server[0].health("/health/ready")[0] == 200)
        time.sleep(0.15)
        for pid in server[0].engine_pids():
            os.kill(pid, signal.SIGKILL)
    done.set()
    for thread in clients:
        thread.join(30)
    assert len(outcomes) > 12
    for status, raw in outcomes:
        assert status == 200, raw
        assert raw.endswith("[DONE]\n\n") or ('"content":"w0 "' in raw and "engine_died" in raw)


def test_an_engine_that_cannot_start_ends_the_server_with_words(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    model.set("exit_at_start")
    settings = {**QUICK, "models": [model.settings], "restart": {"backoff": 0.02, "give_up_after": 3}}
    with Stoker(tmp_path, settings, wait=False) as stoker:
        assert stoker.process.wait(60) == 1
    assert "told to exit at start" in stoker.log
    assert "Traceback" not in stoker.log


def test_an_engine_that_is_given_up_later_shows_in_health(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    settings = {**QUICK, "models": [model.settings], "restart": {"backoff": 0.02, "give_up_after": 3}}
    with Stoker(tmp_path, settings) as stoker:
        model.set("exit_at_start")
        os.kill(stoker.engine_pids()[0], signal.SIGKILL)
        wait_until(lambda: stoker.health()[1]["models"][0]["engines"][0]["state"] == "failed")
        assert stoker.health()[0] == stoker.health("/health/ready")[0] == 503
        assert stoker.health("/health/live")[0] == 200
        answer = ask(stoker.url)
        assert answer.status_code == 503
        assert "told to exit at start" in answer.json()["error"]["message"]


def test_a_poisonous_request_does_not_take_the_model_down_for_good(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    settings = {
        **QUICK,
        "models": [model.settings],
        "restart": {"backoff": 0.02, "backoff_max": 0.1, "give_up_after": 3},
    }
    with Stoker(tmp_path, settings) as stoker:
        model.set("die_before")
        for _ in range(2):
            answer = ask(stoker.url)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_died")
            assert answer.headers["x-should-retry"] == "false"
        model.set()
        assert text_of(ask(stoker.url)) == "w0 w1 w2 w3 w4 "


def test_long_embeddings_of_an_engine_without_figures_are_no_wedge(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    model.set("no_metrics", embed_delay=3.0)
    settings = {"models": [model.settings], "timeouts": {"stall": 1.0}}
    with Stoker(tmp_path, settings) as stoker:
        answer = httpx.post(f"{stoker.url}/v1/embeddings", json={"input": "hello"}, timeout=60)
        assert answer.status_code == 200
        assert stoker.health()[1]["models"][0]["engines"][0]["stalls"] == 0


def test_two_replicas_share_the_line_and_keep_prefixes_together(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path, replicas=2, plan={"slots": 2, "context": 1024})
    with Stoker(tmp_path, {**QUICK, "models": [model.settings]}) as stoker:
        wait_until(lambda: len(stoker.engine_pids()) == 2)
        time.sleep(0.3)
        for subject in ("a", "b", "c", "d") * 3:
            ask(stoker.url, messages=[{"role": "user", "content": subject}])
        homes: dict[str, set[int]] = {}
        for request in model.requests():
            homes.setdefault(request["body"]["messages"][0]["content"], set()).add(request["pid"])
        assert all(len(pids) == 1 for pids in homes.values())
        model.set("none", tokens=10, delay=0.05)
        with ThreadPoolExecutor(4) as pool:
            assert all(r.status_code == 200 for r in pool.map(lambda _: ask(stoker.url), range(4)))
        assert len({request["pid"] for request in model.requests()[-4:]}) == 2
