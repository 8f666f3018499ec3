"""A new version takes over while users are asking: switched to, watched, taken back. The engines are fake."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.rollouts import SET, Rolling, Users, Versions, ask
from tests.running import Stoker

from stoker.admission.keys import hash_of

KEYS = [f"sk-stoker-{number:043d}" for number in range(12)]


@pytest.fixture
def versions(tmp_path: Path, model_path: Path) -> Versions:
    return Versions(tmp_path, model_path)


@pytest.fixture
def server(versions: Versions) -> Iterator[Stoker]:
    with Stoker(versions.directory, versions.settings()) as running:
        yield running


@pytest.fixture
def rolling(server: Stoker) -> Rolling:
    return Rolling(server)


def test_a_good_version_takes_over_and_nobody_notices(versions: Versions, rolling: Rolling) -> None:
    for version in ("1", "2"):
        versions.set(version, tokens=10, delay=0.01)
    with Users(rolling.url) as users:
        told = rolling.until(rolling.start())
    assert told["phase"] == "succeeded"
    assert users.wrong == []
    assert users.said["a"] > 10
    assert users.said["b"] > 3
    assert [step["phase"] for step in told["steps"]] == [
        "loading", "warming", "evaluating", "baking", "retiring", "succeeded",
    ]  # fmt: skip
    assert told["evaluation"]["verdict"]["passed"]
    health = httpx.get(f"{rolling.url}/health").json()
    assert [(model["version"], model["ready"]) for model in health["models"]] == [("2", True)]
    assert health["aside"] == []


def test_a_stream_of_the_old_version_ends_as_it_began(versions: Versions, rolling: Rolling) -> None:
    versions.set("1", tokens=60, delay=0.05)
    rollout = rolling.start(evaluation={**SET, "concurrency": 2}, bake=0)
    rolling.until(rollout, {"evaluating"})
    with Users(rolling.url, clients=2, max_tokens=60) as users:
        rolling.until(rollout, {"retiring"})
        at_switch = users.asked
        versions.set("1", tokens=60, delay=0.05)
        assert rolling.until(rollout)["phase"] == "succeeded"
    assert users.wrong == []
    assert users.said["a"] > at_switch  # what was under way at the switch came from the old version, whole


def test_a_version_that_fails_its_evaluation_never_answers_anybody(versions: Versions, rolling: Rolling) -> None:
    versions.set("2", word="x")
    with Users(rolling.url) as users:
        told = rolling.until(rolling.start())
    assert told["phase"] == "refused"
    assert "pass rate 0 %, at least 100 % wanted" in told["reason"]
    assert told["evaluation"]["against"]["passed"] == 4
    assert len(told["evaluation"]["differences"]) == 4
    assert (users.wrong, set(users.said)) == ([], {"a"})


def test_a_version_that_does_not_start_is_given_up(versions: Versions, rolling: Rolling) -> None:
    versions.set("2", fault="exit_at_start")
    with Users(rolling.url) as users:
        told = rolling.until(rolling.start())
    assert told["phase"] == "failed"
    assert "does not start" in told["reason"]
    assert (users.wrong, set(users.said)) == ([], {"a"})


@pytest.mark.parametrize(
    ("fault", "why"),
    [({"fault": "refuse"}, "requests failed"), ({"fault": "die_before"}, "failed|does not answer")],
    ids=["errors", "dead"],
)
def test_a_version_that_fails_users_is_taken_back(
    versions: Versions, rolling: Rolling, fault: dict[str, str], why: str
) -> None:
    rollout = rolling.start(bake=60)
    with Users(rolling.url) as users:
        rolling.until(rollout, {"baking"})
        versions.set("2", **fault)
        told = rolling.until(rollout)
        wrong = len(users.wrong)
        before, limit = users.said["a"], time.monotonic() + 20
        while users.said["a"] == before and time.monotonic() < limit:
            time.sleep(0.1)
    assert told["phase"] == "rolled_back"
    assert re.search(why, told["reason"]), told["reason"]
    assert len(users.wrong) <= wrong + 4  # whoever was at the bad version then; nobody later
    assert users.said["a"] > before


def test_a_version_that_is_slower_is_taken_back(versions: Versions, rolling: Rolling) -> None:
    with Users(rolling.url, clients=2) as users:
        while users.asked < 20:
            time.sleep(0.05)
        rollout = rolling.start(bake=60)
        rolling.until(rollout, {"baking"})
        versions.set("2", first_delay=0.4)
        told = rolling.until(rollout)
    assert told["phase"] == "rolled_back"
    assert "the first token takes" in told["reason"]
    assert users.wrong == []


def test_rollback_is_instant_while_the_old_version_is_warm(rolling: Rolling) -> None:
    rollout = rolling.start(bake=60)
    rolling.until(rollout, {"baking"})
    assert rolling.word() == "b"
    with Users(rolling.url) as users:
        answer = rolling.post(f"/{rollout}/rollback")
        assert (answer.status_code, answer.json()["phase"]) == (200, "rolled_back")
        assert rolling.word() == "a"
    assert users.wrong == []
    late = rolling.post(f"/{rollout}/rollback")
    assert late.status_code == 409


def test_promotion_by_hand(rolling: Rolling) -> None:
    rollout = rolling.start(promotion="manual")
    waiting = rolling.until(rollout, {"waiting"})
    assert "promote" in waiting["reason"]
    assert rolling.word() == "a"
    assert rolling.post(f"/{rollout}/promote").status_code == 200
    assert rolling.until(rollout)["phase"] == "succeeded"
    assert rolling.word() == "b"


@pytest.mark.parametrize("phase", ["evaluating", "waiting", "canary"])
def test_abort_leaves_everything_as_it_was(versions: Versions, rolling: Rolling, phase: str) -> None:
    versions.set("2", delay=0.05)
    rollout = rolling.start(promotion="manual" if phase == "waiting" else "auto", canary=0.5, canary_time=60)
    rolling.until(rollout, {phase})
    assert rolling.post(f"/{rollout}/abort").json()["phase"] == "aborted"
    assert rolling.word() == "a"
    assert rolling.post(f"/{rollout}/promote").status_code == 409
    again = rolling.until(rolling.start())
    assert again["phase"] == "succeeded"


def test_one_rollout_at_a_time_and_none_to_what_serves(rolling: Rolling) -> None:
    rollout = rolling.start(promotion="manual")
    refused = rolling.post(model="fake@2")
    assert (refused.status_code, refused.json()["code"]) == (409, "rollout_conflict")
    assert rollout in refused.json()["detail"]
    rolling.post(f"/{rollout}/abort")
    same = rolling.post(model="fake@1")
    assert same.status_code == 409
    assert rolling.post(model="fake@9").status_code == 404
    assert rolling.post(model="nobody@1").status_code == 404


def test_callers_of_a_canary_are_always_the_same_ones(versions: Versions) -> None:
    keys = [{"name": f"user{n}", "hash": hash_of(key), "scopes": ["inference"]} for n, key in enumerate(KEYS)]
    admin = {"name": "admin", "hash": hash_of("sk-stoker-" + "a" * 43), "scopes": ["admin", "inference"]}
    headers = {"Authorization": "Bearer sk-stoker-" + "a" * 43}
    with Stoker(versions.directory, {**versions.settings(), "keys": [admin, *keys]}) as server:
        url = f"{server.url}/admin/rollouts"
        order = {"model": "fake@2", "evaluation": SET, "canary": 0.5, "canary_time": 60}
        assert httpx.post(url, json=order).status_code == 401
        assert httpx.post(url, json=order, headers={"Authorization": f"Bearer {KEYS[0]}"}).status_code == 403
        rollout = httpx.post(url, json=order, headers=headers).json()["id"]
        while httpx.get(f"{url}/{rollout}", headers=headers).json()["phase"] != "canary":
            time.sleep(0.05)
        once = [ask(server.url, key=key) for key in KEYS]
        twice = [ask(server.url, key=key) for key in KEYS]
        assert once == twice
        assert set(once) == {"a", "b"}
        httpx.post(f"{url}/{rollout}/promote", headers=headers)
        assert {ask(server.url, key=key) for key in KEYS} == {"b"}


def test_stored_answers_of_one_version_are_never_given_for_another(versions: Versions) -> None:
    with Stoker(versions.directory, {**versions.settings(), "cache": {"policy": "all", "cut_off": True}}) as server:
        rolling = Rolling(server)
        assert [rolling.word(), rolling.word()] == ["a", "a"]
        rollout = rolling.start(bake=60)
        rolling.until(rollout, {"baking"})
        assert [rolling.word(), rolling.word()] == ["b", "b"]
        rolling.post(f"/{rollout}/rollback")
        assert rolling.word() == "a"


def test_a_dry_run_tells_and_does_nothing(rolling: Rolling) -> None:
    plan = rolling.post(model="fake@2", dry_run=True, canary=0.1).json()
    assert plan["fits"]
    assert plan["after"]["ref"] == "fake@2"
    assert any("10%" in step for step in plan["steps"])
    assert httpx.get(f"{rolling.url}/admin/rollouts").json()["data"] == []
