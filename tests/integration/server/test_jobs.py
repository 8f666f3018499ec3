"""The routes /jobs of a real server: handed in at once, answered later, followed, cancelled, repeated without harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.running import FakeModel, Stoker

from stoker.admission.keys import hash_of

LONG_S = 60.0
SLOW_S = 0.2
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
CHAT = {"endpoint": "/v1/chat/completions", "request": QUESTION}
ANN, BOB, ROOT = "sk-ann-0123456789abcdef", "sk-bob-0123456789abcdef", "sk-root-0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path, fake_model: FakeModel) -> Iterator[Stoker]:
    directory = tmp_path / "server"
    directory.mkdir()
    with Stoker(directory, {"models": [fake_model.settings]}) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Stoker]:
    """A server that tests share, whose engine does nothing strange."""
    directory = tmp_path_factory.mktemp("plain")
    fake = FakeModel(directory, model_path, plan={"slots": 2, "context": 1024})
    with Stoker(directory, {"models": [fake.settings]}) as running:
        yield running


@pytest.fixture
def keyed(tmp_path: Path, fake_model: FakeModel) -> Iterator[Stoker]:
    """A server with keys, each of which may queue two jobs."""
    directory = tmp_path / "server"
    directory.mkdir()
    keys = [{"name": name, "hash": hash_of(key)} for name, key in (("ann", ANN), ("bob", BOB))]
    keys.append({"name": "root", "hash": hash_of(ROOT), "scopes": ["inference", "jobs", "admin"]})
    settings = {"models": [fake_model.settings], "keys": keys, "jobs": {"per_key": 2}}
    with Stoker(directory, settings) as running:
        yield running


def ask(stoker: Stoker, method: str, path: str, key: str | None = None, **more: Any) -> httpx.Response:
    headers = {**more.pop("headers", {}), **({"authorization": f"Bearer {key}"} if key else {})}
    return httpx.request(method, stoker.url + path, headers=headers, timeout=LONG_S + 10, **more)


def submit(stoker: Stoker, body: Any = CHAT, key: str | None = None, **headers: str) -> dict[str, Any]:
    answer = ask(stoker, "POST", "/jobs", key, json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    return job


def show(stoker: Stoker, job: dict[str, Any], wait: float = 0, key: str | None = None) -> dict[str, Any]:
    answer = ask(stoker, "GET", f"/jobs/{job['id']}?wait={wait}", key)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < limit, "it never came about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("endpoint", "request_body", "look"),
    [
        ("/v1/chat/completions", QUESTION, lambda r: r["choices"][0]["message"]["content"] == "w0 w1 w2 "),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}, lambda r: len(r["choices"]) == 2),
        ("/v1/embeddings", {"input": ["a", "bc"]}, lambda r: [row["embedding"][0] for row in r["data"]] == [1.0, 2.0]),
        ("/query", {"text": "hello", "max_tokens": 3}, lambda r: r["text"] == "w0 w1 w2 " and r["route"]),
    ],
)
def test_every_route_can_be_asked_later(
    plain: Stoker, endpoint: str, request_body: dict[str, Any], look: Callable[[Any], bool]
) -> None:
    submitted = submit(plain, {"endpoint": endpoint, "request": request_body, "metadata": {"order": "7"}})
    assert submitted["endpoint"] == endpoint
    assert submitted["state"] in {"queued", "running", "succeeded"}
    job = show(plain, submitted, wait=LONG_S)
    assert job["state"] == "succeeded", job
    assert look(job["result"]), job["result"]
    assert job["metadata"] == {"order": "7"}
    assert job["attempts"] == 1
    assert job["position"] is None
    assert job["created_at"] < job["started_at"] <= job["finished_at"]
    assert job["timings"]["queued_ms"] >= 0
    direct = ask(plain, "POST", endpoint, json=request_body).json()
    assert direct.keys() == job["result"].keys()


def test_the_body_of_query_alone_is_a_job(plain: Stoker) -> None:
    job = show(plain, submit(plain, {"text": 'say "endpoint"', "max_tokens": 1}), wait=LONG_S)
    assert (job["endpoint"], job["state"], job["result"]["text"]) == ("/query", "succeeded", "w0 ")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": "/v1/models", "request": {}}, "endpoint"),
        ({"endpoint": "/query"}, "request"),
        ({"request": {"text": "x"}}, "endpoint"),
        ({"endpoint": "/query", "request": {"text": ""}}, "text"),
        ({"endpoint": "/query", "request": {"text": "x"}, "later": True}, "later"),
        ({**CHAT, "request": {"messages": []}}, "messages"),
        ({**CHAT, "request": {**QUESTION, "max_tokens": 0}}, "max_tokens"),
        ({**CHAT, "not_before": "tomorrow"}, "not_before"),
        ({**CHAT, "not_before": "2099-01-01T00:00:00Z"}, "not_before"),
        ({**CHAT, "not_before": "2026-01-01T00:00:00"}, "not_before"),
        ({**CHAT, "expires_in": 0}, "expires_in"),
        ({**CHAT, "metadata": {"a": 1}}, "metadata.a"),
        ({**CHAT, "callback_url": "https://example.com/"}, "callback_url"),
        ({"text": ""}, "text"),
    ],
)
def test_what_is_wrong_is_told_at_once_as_a_problem(plain: Stoker, body: dict[str, Any], param: str) -> None:
    before = ask(plain, "GET", "/jobs?limit=1000").json()["data"]
    answer = ask(plain, "POST", "/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["param"] == param
    assert len(ask(plain, "GET", "/jobs?limit=1000").json()["data"]) == len(before)


def test_numbers_that_json_cannot_write_are_refused_by_the_route(plain: Stoker) -> None:
    for number in (b"NaN", b"1e999"):
        body = b'{"endpoint": "/query", "request": {"text": "x", "temperature": ' + number + b"}}"
        answer = ask(plain, "POST", "/jobs", content=body)
        assert answer.status_code == 400, number


def test_a_key_of_idempotency_gives_the_same_job(plain: Stoker) -> None:
    first = submit(plain, **{"Idempotency-Key": "one"})
    again = ask(plain, "POST", "/jobs", json=CHAT, headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.headers["idempotent-replayed"] == "true"
    other = ask(plain, "POST", "/jobs", json={**CHAT, "metadata": {}}, headers={"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert show(plain, first, wait=LONG_S)["attempts"] == 1


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_leaves_its_engine(
    server: Stoker, fake_model: FakeModel
) -> None:
    fake_model.set(delay=SLOW_S, tokens=1000)
    body = {"endpoint": "/v1/chat/completions", "request": {**QUESTION, "max_tokens": 900}}
    running = [submit(server, body) for _ in range(2)]
    queued = [submit(server, body) for _ in range(2)]
    until(lambda: all(show(server, job)["state"] == "running" for job in running))
    assert [show(server, job)["position"] for job in queued] == [0, 1]
    cancelled = ask(server, "DELETE", f"/jobs/{queued[1]['id']}").json()
    assert (cancelled["state"], cancelled["attempts"]) == ("cancelled", 0)
    for job in running:
        assert ask(server, "DELETE", f"/jobs/{job['id']}").json()["state"] in {"running", "cancelled"}
        assert show(server, job, wait=LONG_S)["state"] == "cancelled"
    until(lambda: fake_model.departures() >= 2)
    until(lambda: show(server, queued[0])["state"] == "running")
    states = {job["id"]: job["state"] for job in ask(server, "GET", "/jobs?state=cancelled").json()["data"]}
    assert set(states) == {job["id"] for job in (*running, queued[1])}
    ask(server, "DELETE", f"/jobs/{queued[0]['id']}")


def test_lists_have_pages_and_filters(server: Stoker) -> None:
    later = {**CHAT, "not_before": time.time() + 3600}
    ids = [submit(server, later)["id"] for _ in range(5)]
    found, after = [], None
    while True:
        page = ask(
            server, "GET", "/jobs", params={"limit": 2, "state": "queued", **({"after": after} if after else {})}
        )
        found += [job["id"] for job in page.json()["data"]]
        assert page.json()["has_more"] == (page.json()["next"] is not None)
        after = page.json()["next"]
        if after is None:
            break
    assert found == ids[::-1]
    assert ask(server, "GET", "/jobs?state=failed,expired").json()["data"] == []
    assert ask(server, "GET", "/jobs?state=failed&state=queued&limit=1").json()["has_more"]
    for wrong in ("state=done", "limit=0", "limit=x", "after=%20"):
        answer = ask(server, "GET", f"/jobs?{wrong}")
        assert (answer.status_code, answer.json()["param"]) == (400, wrong.partition("=")[0])
    for job_id in ids:
        ask(server, "DELETE", f"/jobs/{job_id}")


def test_a_job_starts_when_it_may(plain: Stoker) -> None:
    soon = submit(plain, {**CHAT, "not_before": time.time() + 1})
    assert show(plain, soon)["state"] == "queued"
    job = show(plain, soon, wait=LONG_S)
    assert job["state"] == "succeeded"
    assert job["started_at"] >= job["not_before"]


def test_a_job_that_waited_too_long_expires(server: Stoker, fake_model: FakeModel) -> None:
    fake_model.set(delay=SLOW_S, tokens=1000)
    long = {**CHAT, "request": {**QUESTION, "max_tokens": 900}}
    busy = [submit(server, long) for _ in range(2)]
    until(lambda: all(show(server, job)["state"] == "running" for job in busy))
    late = show(server, submit(server, {**long, "expires_in": 0.3}), wait=LONG_S)
    assert (late["state"], late["attempts"]) == ("expired", 0)
    for job in busy:
        ask(server, "DELETE", f"/jobs/{job['id']}")


def events(stoker: Stoker, job: dict[str, Any], last: int | None = None) -> list[dict[str, Any]]:
    """Everything that the stream says, until its end."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    text = ask(stoker, "GET", f"/jobs/{job['id']}/events", headers=headers).text
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def test_a_job_can_be_followed(server: Stoker, fake_model: FakeModel) -> None:
    fake_model.set(delay=0.05, tokens=20)
    job = submit(server, {**CHAT, "request": {**QUESTION, "max_tokens": 20}})
    said = events(server, job)
    assert said[0]["event"] == "progress"
    assert said[-1]["event"] == "end"
    tokens = [event for event in said if event["event"] == "token"]
    assert [int(event["id"]) for event in tokens] == list(range(1, len(tokens) + 1))
    text = "".join(event["data"]["choices"][0]["delta"].get("content", "") for event in tokens)
    assert text == said[-1]["data"]["result"]["choices"][0]["message"]["content"] != ""
    assert {event["data"]["state"] for event in said if event["event"] == "progress"} >= {"running"}
    again = [event for event in events(server, job, last=3) if event["event"] == "token"]
    assert [event["id"] for event in again] == [event["id"] for event in tokens[3:]]


def test_a_follower_that_leaves_does_not_end_the_job(server: Stoker, fake_model: FakeModel) -> None:
    fake_model.set(delay=0.1, tokens=10)
    job = submit(server, {**CHAT, "request": {**QUESTION, "max_tokens": 10}})
    with httpx.stream("GET", f"{server.url}/jobs/{job['id']}/events", timeout=LONG_S) as stream:
        next(stream.iter_lines())
    assert show(server, job, wait=LONG_S)["state"] == "succeeded"


def test_waiting_returns_at_the_end_or_when_the_time_has_passed(server: Stoker, fake_model: FakeModel) -> None:
    fake_model.set(delay=SLOW_S, tokens=1000)
    job = submit(server, {**CHAT, "request": {**QUESTION, "max_tokens": 900}})
    assert show(server, job, wait=0.2)["state"] in {"queued", "running"}
    waited: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: waited.append(show(server, job, wait=LONG_S)))
    waiting.start()
    ask(server, "DELETE", f"/jobs/{job['id']}")
    waiting.join(LONG_S)
    assert waited[0]["state"] == "cancelled"
    for wrong in ("-1", "61", "nan", "x"):
        assert ask(server, "GET", f"/jobs/{job['id']}?wait={wrong}").status_code == 400


def test_a_job_whose_attempts_all_fail_ends_with_the_last_error(tmp_path: Path, fake_model: FakeModel) -> None:
    fake_model.set("refuse")
    directory = tmp_path / "server"
    directory.mkdir()
    with Stoker(directory, {"models": [fake_model.settings], "jobs": {"attempts": 2, "backoff": 0.05}}) as stoker:
        job = show(stoker, submit(stoker), wait=LONG_S)
        assert (job["state"], job["attempts"], job["max_attempts"]) == ("failed", 2, 2)
        assert (job["error"]["code"], job["error"]["status"]) == ("engine_error", 502)
        assert "result" not in job
        assert [dead["id"] for dead in ask(stoker, "GET", "/jobs?state=failed").json()["data"]] == [job["id"]]


def test_an_engine_that_dies_costs_an_attempt_and_not_the_job(server: Stoker, fake_model: FakeModel) -> None:
    fake_model.set("die_mid", times=1)
    job = show(server, submit(server), wait=LONG_S)
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


def test_a_killed_server_forgets_nothing(tmp_path: Path, fake_model: FakeModel) -> None:
    fake_model.set(delay=SLOW_S, tokens=1000)
    directory = tmp_path / "server"
    directory.mkdir()
    settings = {"models": [fake_model.settings], "jobs": {"lease": 1}}
    body = {**CHAT, "request": {**QUESTION, "max_tokens": 2}}
    with Stoker(directory, settings) as stoker:
        jobs = [submit(stoker, {**body, "metadata": {"n": str(n)}}) for n in range(6)]
        until(lambda: show(stoker, jobs[0])["state"] == "running")
        stoker.process.kill()
        stoker.process.wait()
    fake_model.set()
    with Stoker(directory, settings) as stoker:
        for number, job in enumerate(jobs):
            ended = show(stoker, job, wait=LONG_S)
            assert (ended["state"], ended["metadata"]) == ("succeeded", {"n": str(number)})


def test_jobs_belong_to_their_key(keyed: Stoker, fake_model: FakeModel) -> None:
    later = {**CHAT, "not_before": time.time() + 3600}
    job = submit(keyed, later, ANN)
    path = f"/jobs/{job['id']}"
    for method, place in (("GET", path), ("GET", f"{path}?wait=1"), ("GET", f"{path}/events"), ("DELETE", path)):
        answer = ask(keyed, method, place, BOB)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert ask(keyed, method, place).status_code == 401
    assert ask(keyed, "GET", "/jobs", BOB).json()["data"] == []
    assert show(keyed, job, key=ANN)["state"] == "queued"
    assert show(keyed, job, key=ROOT)["state"] == "queued"
    submit(keyed, later, ANN)
    full = ask(keyed, "POST", "/jobs", ANN, json=later)
    assert (full.status_code, full.json()["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    submit(keyed, later, BOB)
    assert ask(keyed, "DELETE", path, ANN).json()["state"] == "cancelled"
    submit(keyed, later, ANN)


def test_jobs_are_described(plain: Stoker) -> None:
    document = ask(plain, "GET", "/openapi.json").json()
    assert document["paths"]["/jobs"]["post"]["responses"]["202"]
    assert "JobRequest" in document["components"]["schemas"]
    names = [parameter["name"] for parameter in document["paths"]["/jobs"]["get"]["parameters"]]
    assert names == ["state", "batch", "limit", "after"]


def test_no_jobs_where_they_are_switched_off(tmp_path: Path, fake_model: FakeModel) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    with Stoker(directory, {"models": [fake_model.settings], "jobs": {"enabled": False}}) as stoker:
        assert ask(stoker, "POST", "/jobs", json=CHAT).status_code == 404
        assert ask(stoker, "GET", "/v1/files").status_code == 404
