"""Several models behind one port, and models that another server runs."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from tests.running import FakeModel, Stoker

QUICK = {"restart": {"backoff": 0.05, "backoff_max": 0.2, "give_up_after": 40}}


def ask(url: str, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def beside(directory: Path, name: str) -> Path:
    path = directory / name
    path.mkdir()
    return path


def test_several_models_by_name_and_by_default(tmp_path: Path, model_path: Path) -> None:
    first = FakeModel(beside(tmp_path, "first"), model_path)
    second = FakeModel(beside(tmp_path, "second"), model_path)
    settings = {
        **QUICK,
        "models": [{**first.settings, "name": "first"}, {**second.settings, "name": "second"}],
        "default_model": "second",
    }
    with Stoker(tmp_path, settings) as stoker:
        assert ask(stoker.url, model="first").json()["model"] == "first"
        for unsaid in ({}, {"model": "default"}, {"model": ""}):
            assert ask(stoker.url, **unsaid).json()["model"] == "second"
        unknown = ask(stoker.url, model="third")
        assert unknown.status_code == 404
        assert "first, second" in unknown.json()["error"]["message"]
        assert len(first.requests()) == 1
        second.set("exit_at_start")
        query = httpx.post(f"{stoker.url}/query", json={"text": "x", "model": "first"}).json()
        assert query["route"] == {"model": "first", "reason": "named"}


def test_a_model_by_url(tmp_path: Path, model_path: Path) -> None:
    fake = FakeModel(beside(tmp_path, "engine"), model_path)
    with Stoker(beside(tmp_path, "far"), {**QUICK, "models": [fake.settings]}) as far:
        upstream = {"name": "near", "upstream": far.url, "upstream_model": "fake", "upstream_key": "sk-1"}
        with Stoker(beside(tmp_path, "near"), {"models": [upstream]}) as near:
            answer = ask(near.url, max_tokens=3)
            assert answer.json()["model"] == "near"
            assert answer.json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
            assert "return_progress" in fake.requests()[-1]["body"]  # the far side's own addition
            rows = httpx.post(f"{near.url}/v1/embeddings", json={"input": ["a", "bc"]}).json()["data"]
            assert [row["embedding"][0] for row in rows] == [1.0, 2.0]
            far.process.terminate()
            far.process.wait(20)
            gone = ask(near.url, timeout=1)
            assert gone.status_code in {503, 504}
            limit = time.monotonic() + 20
            while near.health("/health/ready")[0] == 200:
                assert time.monotonic() < limit
                time.sleep(0.1)
            assert "sk-1" not in near.log


def test_a_model_by_url_comes_back(tmp_path: Path, model_path: Path) -> None:
    fake = FakeModel(beside(tmp_path, "engine"), model_path)
    place = beside(tmp_path, "far")
    with Stoker(place, {**QUICK, "models": [fake.settings]}) as far:
        url = far.url
        with Stoker(beside(tmp_path, "near"), {"models": [{"name": "near", "upstream": url}]}) as near:
            far.process.terminate()
            far.process.wait(20)
            again = Stoker(
                place, {**QUICK, "models": [{**fake.settings, "name": "near"}], "port": int(url.rsplit(":", 1)[1])}
            )
            with again:
                assert ask(near.url, timeout=30).status_code == 200
