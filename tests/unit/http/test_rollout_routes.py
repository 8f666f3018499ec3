"""The routes /admin/rollouts in front of a conductor that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.job_work import observer

from stoker.admission.auth import KeyRing
from stoker.admission.keys import hash_of
from stoker.config import Settings
from stoker.errors import ModelNotFound, StokerError
from stoker.http import docs, middleware, rollouts
from stoker.http.gateway import Gateway
from stoker.http.middleware import Arriving, Errors, RequestId
from stoker.http.parse import Reader
from stoker.rollout.record import DoesNotFit, Options, Order, Rollout, RolloutConflict, Step, Version

ADMIN = "sk-stoker-" + "a" * 43
ASKER = "sk-stoker-" + "b" * 43
BEFORE = Version("chat@1", "1", "1" * 64)
AFTER = Version("chat@2", "2", "2" * 64)
PLAN = {"model": "chat", "fits": True, "steps": ["load"]}
ROUTE = "/admin/rollouts"


def rollout(number: int = 1, **more: Any) -> Rollout:
    options = Options(
        evaluation={"name": "smoke", "cases": [{"prompt": "secret"}]},
        promotion="auto",
        canary=0.1,
        canary_time=300.0,
        bake=600.0,
        gap=False,
    )
    fields = {"id": f"rol-{number}", "model": "chat", "before": BEFORE, "after": AFTER, "options": options}
    return Rollout(**{**fields, "steps": (Step("loading", 1.0),), "revision": 7, **more})


class FakeConductor:
    """Remembers what it was asked; `refusal` is raised by the next act."""

    def __init__(self) -> None:
        self.known = {"rol-1": rollout()}
        self.refusal: StokerError | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()

    async def start(self, order: Order, by: str | None) -> Rollout:
        self.asked.append(("start", order, by))
        self._refuse()
        return rollout(2, by=by)

    async def plan(self, order: Order) -> dict[str, Any]:
        self.asked.append(("plan", order))
        self._refuse()
        return PLAN

    def get(self, rollout_id: str) -> Rollout | None:
        return self.known.get(rollout_id)

    def history(self) -> Sequence[Rollout]:
        return list(self.known.values())

    def current(self) -> Rollout | None:
        return next((one for one in self.known.values() if not one.ended), None)

    async def promote(self, rollout_id: str, by: str | None) -> Rollout:
        return self._act("promote", rollout_id, by, "baking")

    async def rollback(self, rollout_id: str, by: str | None) -> Rollout:
        return self._act("rollback", rollout_id, by, "rolled_back")

    async def abort(self, rollout_id: str, by: str | None) -> Rollout:
        return self._act("abort", rollout_id, by, "aborted")

    async def changed(self, rollout_id: str, seen: int, seconds: float) -> Rollout:
        self.asked.append(("changed", rollout_id, seen, seconds))
        await asyncio.wait_for(self.news.wait(), 10)
        return self.known[rollout_id]

    def _act(self, verb: str, rollout_id: str, by: str | None, phase: Any) -> Rollout:
        self.asked.append((verb, rollout_id, by))
        self._refuse()
        return replace(self.known[rollout_id], phase=phase)

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The lines of the audit log."""
    lines: list[dict[str, Any]] = []
    for module in (rollouts, middleware):
        monkeypatch.setattr(module, "audit", lambda act, **details: lines.append({"act": act, **details}))
    return lines


@pytest.fixture
async def client(conductor: FakeConductor, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = [
        {"name": "ops", "hash": hash_of(ADMIN), "scopes": ["admin"]},
        {"name": "asker", "hash": hash_of(ASKER), "scopes": ["inference", "jobs"]},
    ]
    settings = Settings(keys=keys, data_dir=tmp_path)  # type: ignore[arg-type]
    async with _client(settings, conductor, {"Authorization": f"Bearer {ADMIN}"}) as opened:
        yield opened


def _client(settings: Settings, conductor: FakeConductor, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    told = observer()
    pipeline: Any = None
    gateway = Gateway(settings, pipeline, Reader(settings), Arriving(1 << 20), KeyRing(settings), (), told)
    app = FastAPI()
    app.include_router(rollouts.router(gateway, conductor))  # type: ignore[arg-type]
    docs.install(app)
    app.add_middleware(Errors, observer=told)
    app.add_middleware(RequestId, leaving=lambda: False)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stoker", headers=headers)


async def test_an_order_is_taken_as_it_is_written(
    client: httpx.AsyncClient, conductor: FakeConductor, acts: list
) -> None:
    body = {
        "model": "chat-q4@2",
        "serves": "chat",
        "evaluation": {"name": "mine", "cases": [{"prompt": "hi"}]},
        "promotion": "manual",
        "canary": 0.25,
        "canary_time": 60,
        "bake": 0,
        "accept_gap": True,
    }
    answer = await client.post(ROUTE, json=body)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{ROUTE}/rol-2"
    assert answer.json()["id"] == "rol-2"
    ((verb, order, by),) = conductor.asked
    assert (verb, by) == ("start", "ops")
    assert order == Order(**body)
    (line,) = acts
    assert line["act"] == "rollout started"
    assert (line["key"], line["outcome"], line["rollout"]) == ("ops", "done", "rol-2")
    assert (line["before"], line["after"]) == ("chat@1", "chat@2")


async def test_what_is_not_said_is_left_to_the_configuration(
    client: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    await client.post(ROUTE, json={"model": "chat@2"})
    assert conductor.asked == [("start", Order(model="chat@2"), "ops")]


async def test_a_dry_run_changes_nothing(client: httpx.AsyncClient, conductor: FakeConductor, acts: list) -> None:
    answer = await client.post(ROUTE, json={"model": "chat@2", "dry_run": True})
    assert (answer.status_code, answer.json()) == (200, PLAN)
    assert conductor.asked == [("plan", Order(model="chat@2"))]
    assert not acts


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": "chat@2@3"}, "model"),
        ({"model": "chat@"}, "model"),
        ({"model": "chat@2", "canary": 1.0}, "canary"),
        ({"model": "chat@2", "canary": "10%"}, "canary"),
        ({"model": "chat@2", "canary_time": 0}, "canary_time"),
        ({"model": "chat@2", "bake": -1}, "bake"),
        ({"model": "chat@2", "bake": 1e9}, "bake"),
        ({"model": "chat@2", "promotion": "never"}, "promotion"),
        ({"model": "chat@2", "unheard_of": 1}, "unheard_of"),
        ({"model": "chat@2", "evaluation": [], "skip_evaluation": False}, "evaluation"),
        ({"model": "chat@2", "evaluation": {}, "skip_evaluation": True}, "evaluation"),
    ],
)
async def test_orders_that_mean_nothing(
    body: dict, param: str, client: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    answer = await client.post(ROUTE, json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["param"].startswith(param)
    assert not conductor.asked


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": "chat@2", "bake": NaN}', b"\xff", b"[" * 100_000])
async def test_bodies_that_are_no_order(raw: bytes, client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    assert (await client.post(ROUTE, content=raw)).status_code == 400
    assert not conductor.asked


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (RolloutConflict("one at a time"), 409, "rollout_conflict"),
        (DoesNotFit("needs 3 GB of 2"), 409, "does_not_fit"),
        (ModelNotFound("no chat@2"), 404, "model_not_found"),
    ],
)
async def test_what_the_conductor_refuses_is_a_problem(
    *, refusal: StokerError, status: int, code: str, client: httpx.AsyncClient, conductor: FakeConductor, acts: list
) -> None:
    conductor.refusal = refusal
    answer = await client.post(ROUTE, json={"model": "chat@2"})
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert answer.json()["detail"] == refusal.message
    (line,) = acts
    assert (line["act"], line["key"], line["outcome"], line["error"]) == ("rollout started", "ops", "failed", code)
    assert line["model"] == "chat@2"
    acts.clear()
    assert (await client.post(ROUTE, json={"model": "chat@2", "dry_run": True})).status_code == status


async def test_a_rollout_is_shown_without_its_set(client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    conductor.known["rol-1"] = rollout(evaluation={"set": "smoke", "verdict": {"passed": True}})
    shown = (await client.get(f"{ROUTE}/rol-1")).json()
    assert shown["options"]["evaluation"] == "smoke"
    assert "secret" not in str(shown)
    assert shown["evaluation"]["verdict"] == {"passed": True}
    assert shown["steps"] == [{"phase": "loading", "at": 1.0, "note": ""}]
    assert shown["ended"] is False
    conductor.known["rol-1"] = rollout(options=replace(rollout().options, evaluation=None))
    assert (await client.get(f"{ROUTE}/rol-1")).json()["options"]["evaluation"] is None


async def test_a_list_leaves_out_what_is_long(client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    conductor.known = {"rol-2": rollout(2), "rol-1": rollout(1, phase="succeeded", evaluation={"set": "smoke"})}
    page = (await client.get(ROUTE)).json()
    assert page["object"] == "list"
    assert page["current"] == "rol-2"
    assert [(one["id"], one["phase"], one["ended"]) for one in page["data"]] == [
        ("rol-2", "loading", False),
        ("rol-1", "succeeded", True),
    ]
    assert all("steps" not in one and "evaluation" not in one for one in page["data"])
    conductor.known = {}
    assert (await client.get(ROUTE)).json() == {"object": "list", "data": [], "current": None}


async def test_news_are_waited_for(client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    waiting = asyncio.create_task(client.get(f"{ROUTE}/rol-1?wait=30&revision=7"))
    while not conductor.asked:
        await asyncio.sleep(0.01)
    assert not waiting.done()
    conductor.known["rol-1"] = rollout(revision=8, phase="warming")
    conductor.news.set()
    assert (await waiting).json()["phase"] == "warming"
    assert conductor.asked == [("changed", "rol-1", 7, 30.0)]
    await client.get(f"{ROUTE}/rol-1?wait=30")
    assert conductor.asked[-1] == ("changed", "rol-1", 8, 30.0), "from now on, when nothing else is said"


@pytest.mark.parametrize("query", ["", "?wait=0", "?wait=30&revision=6", "?wait=30&revision=300"])
async def test_what_is_news_already_is_not_waited_for(
    query: str, client: httpx.AsyncClient, conductor: FakeConductor
) -> None:
    assert (await client.get(f"{ROUTE}/rol-1{query}")).json()["revision"] == 7
    assert not conductor.asked


async def test_an_ended_rollout_is_not_waited_for(client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    conductor.known["rol-1"] = rollout(phase="refused")
    assert (await client.get(f"{ROUTE}/rol-1?wait=30")).json()["ended"] is True
    assert not conductor.asked


@pytest.mark.parametrize(
    "query", ["wait=61", "wait=x", "wait=nan", "revision=-1", "revision=x", "revision=" + "9" * 30]
)
async def test_parameters_that_are_wrong(query: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{ROUTE}/rol-1?{query}")
    assert answer.status_code == 400
    assert answer.json()["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("verb", "phase", "act"),
    [
        ("promote", "baking", "rollout promoted"),
        ("rollback", "rolled_back", "rollout rolled back"),
        ("abort", "aborted", "rollout aborted"),
    ],
)
async def test_acts(
    *, verb: str, phase: str, act: str, client: httpx.AsyncClient, conductor: FakeConductor, acts: list
) -> None:
    answer = await client.post(f"{ROUTE}/rol-1/{verb}")
    assert (answer.status_code, answer.json()["phase"]) == (200, phase)
    assert conductor.asked == [(verb, "rol-1", "ops")]
    assert [(line["act"], line["outcome"], line["rollout"]) for line in acts] == [(act, "done", "rol-1")]
    acts.clear()
    conductor.refusal = RolloutConflict("not now")
    answer = await client.post(f"{ROUTE}/rol-1/{verb}")
    assert (answer.status_code, answer.json()["detail"]) == (409, "not now")
    assert [(line["act"], line["outcome"], line["rollout"]) for line in acts] == [(act, "failed", "rol-1")]


@pytest.mark.parametrize(("method", "path"), [("GET", "/rol-9"), ("POST", "/rol-9/promote"), ("POST", "/rol-9/abort")])
async def test_a_rollout_that_is_not_there(method: str, path: str, client: httpx.AsyncClient) -> None:
    answer = await client.request(method, ROUTE + path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "rol-9" in answer.json()["detail"]


CALLS = [("GET", ""), ("POST", ""), ("GET", "/rol-1"), ("POST", "/rol-1/promote"), ("POST", "/rol-1/rollback")]


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_only_administrators(
    method: str, path: str, client: httpx.AsyncClient, conductor: FakeConductor, acts: list
) -> None:
    asked = {"json": {"model": "chat@2"}} if method == "POST" else {}
    refused = await client.request(method, ROUTE + path, headers={"Authorization": f"Bearer {ASKER}"}, **asked)
    assert refused.status_code == 403
    assert (await client.request(method, ROUTE + path, headers={"Authorization": ""}, **asked)).status_code == 401
    assert not conductor.asked
    assert [line["outcome"] for line in acts] == ["refused", "refused"]


@pytest.mark.parametrize(("method", "path"), [call for call in CALLS if call[0] == "POST"])
async def test_web_pages_of_others_change_nothing_where_there_are_no_keys(
    method: str, path: str, conductor: FakeConductor, tmp_path: Path
) -> None:
    async with _client(Settings(data_dir=tmp_path), conductor) as client:
        body = b'{"model": "chat@2"}'
        for site in ("cross-site", "same-site"):
            page = {"Sec-Fetch-Site": site, "Content-Type": "text/plain"}
            assert (await client.request(method, ROUTE + path, content=body, headers=page)).status_code == 403
        assert not conductor.asked
        for site in ("none", "same-origin"):
            answer = await client.request(method, ROUTE + path, content=body, headers={"Sec-Fetch-Site": site})
            assert answer.is_success
        assert conductor.asked[-1][-1] is None, "nobody's name is known"


async def test_the_document_describes_the_routes(client: httpx.AsyncClient, conductor: FakeConductor) -> None:
    settings = Settings()
    pipeline: Any = None
    gateway = Gateway(settings, pipeline, Reader(settings), Arriving(1), KeyRing(settings), (), observer())
    app = FastAPI()
    app.include_router(rollouts.router(gateway, conductor))  # type: ignore[arg-type]
    docs.install(app)
    document = app.openapi()
    assert set(document["paths"]) == {
        ROUTE,
        f"{ROUTE}/{{rollout_id}}",
        *(f"{ROUTE}/{{rollout_id}}/{verb}" for verb in ("promote", "rollback", "abort")),
    }
    schemas = document["components"]["schemas"]
    assert {"RolloutRequest", "Rollout", "RolloutPlan", "RolloutList"} <= set(schemas)
    operations = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(operations)) == len(operations)
    # What is told is what is described.
    told = rollout().document()
    assert set(told) == set(schemas["Rollout"]["properties"])
