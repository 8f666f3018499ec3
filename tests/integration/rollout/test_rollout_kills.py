"""The server is killed in each phase of a rollout; the next one serves the version that was to serve, and goes on."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from tests.probes import note
from tests.rollouts import SET, Rolling, Versions, ask
from tests.running import Stoker

HOLD = {
    "loading": {"fault": "never_ready"},
    "warming": {"first_delay": 5},
    "evaluating": {"delay": 0.3},
    "waiting": {},
    "canary": {},
    "baking": {},
    "retiring": {},
}
"""How the new version behaves so that a phase lasts."""
SERVES = {"baking": "b", "retiring": "b"}


@pytest.fixture
def versions(tmp_path: Path, model_path: Path) -> Versions:
    return Versions(tmp_path, model_path)


def killed_in(phase: str, versions: Versions, bake: float = 0.2) -> str:
    """A server that was killed in a phase; the rollout's id."""
    versions.set("2", **HOLD[phase])
    order = {
        "promotion": "manual" if phase == "waiting" else "auto",
        "canary": 0.5 if phase == "canary" else 0.0,
        "canary_time": 3,
        "bake": bake,
    }
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        if phase == "retiring":
            keep_busy(versions, server.url)
        rollout = rolling.start(**order)
        rolling.until(rollout, {phase})
        server.process.kill()
        server.process.wait()
    versions.set("1")
    versions.set("2")
    return rollout


def keep_busy(versions: Versions, url: str) -> None:
    """Have the old version say something long."""
    versions.set("1", tokens=400, delay=0.05)

    def listen() -> None:
        with suppress(httpx.HTTPError, AssertionError):
            ask(url, max_tokens=400)

    threading.Thread(target=listen, daemon=True).start()


@pytest.mark.parametrize("phase", list(HOLD))
def test_a_rollout_goes_on_after_a_kill(versions: Versions, phase: str) -> None:
    rollout = killed_in(phase, versions, bake=3 if phase == "baking" else 0.2)
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        first = rolling.word()
        assert first in {SERVES.get(phase, "a"), "b"}
        if phase == "waiting":
            rolling.until(rollout, {"waiting"})
            assert rolling.word() == "a"
            rolling.post(f"/{rollout}/promote")
        told = rolling.until(rollout)
        assert told["phase"] == "succeeded", told
        assert rolling.word() == "b"
        assert rolling.get(rollout)["attempts"] == (1 if phase in SERVES else 2)
        assert len(httpx.get(f"{rolling.url}/admin/rollouts").json()["data"]) == 1
    with Stoker(versions.directory, versions.settings()) as server:
        assert Rolling(server).word() == "b"
    note(phase, serves="the new version" if first == "b" else "the old version", outcome=told["phase"])


def test_a_rollback_goes_on_after_a_kill(versions: Versions) -> None:
    rollout = killed_in("baking", versions, bake=120)
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        assert rolling.word() == "b"
        versions.set("2", fault="refuse")
        for _ in range(8):
            with suppress(AssertionError):
                rolling.word()
        rolling.until(rollout, {"rolled_back", "succeeded"})
        server.process.kill()
        server.process.wait()
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        assert rolling.get(rollout)["phase"] == "rolled_back"
        assert rolling.word() == "a"
    note("rolled back", serves="the old version", outcome="rolled back")


def test_a_new_version_that_does_not_load_again_is_taken_back(versions: Versions) -> None:
    rollout = killed_in("baking", versions, bake=1)
    versions.set("2", fault="exit_at_start")
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        told = rolling.until(rollout)
        assert told["phase"] == "rolled_back"
        assert rolling.word() == "a"
    note("baking; the new version does not load again", serves="the old version", outcome="rolled back")


def test_a_version_that_takes_the_server_down_is_not_tried_for_ever(versions: Versions) -> None:
    rollout = killed_in("loading", versions)
    for _ in range(2):
        versions.set("2", fault="never_ready")
        with Stoker(versions.directory, versions.settings()) as server:
            Rolling(server).until(rollout, {"loading"})
            server.process.kill()
            server.process.wait()
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        told = rolling.get(rollout)
        assert (told["phase"], rolling.word()) == ("failed", "a")
        assert "3 times" in told["reason"]
    note("loading, three times", serves="the old version", outcome="failed: not tried for ever")


def test_an_unpinned_model_stays_at_its_version_once_a_rollout_has_begun(versions: Versions) -> None:
    """Without that, a restart would serve the newest version, evaluated or not."""
    settings = versions.settings()
    settings["models"][0]["source"] = "fake@1"
    versions.set("2", word="x")
    with Stoker(versions.directory, settings) as server:
        rolling = Rolling(server)
        assert rolling.until(rolling.start())["phase"] == "refused"
    settings["models"][0]["source"] = "fake"
    pins = versions.directory / "data" / "rollouts" / "pins.json"
    document = json.loads(pins.read_text())
    document["fake"]["configured"] = "fake"
    pins.write_text(json.dumps(document))
    with Stoker(versions.directory, settings) as server:
        assert Rolling(server).word() == "a"


def test_what_the_operator_configures_anew_goes_before_a_pin(versions: Versions) -> None:
    settings = versions.settings()
    with Stoker(versions.directory, settings) as server:
        rolling = Rolling(server)
        assert rolling.until(rolling.start(evaluation=SET))["phase"] == "succeeded"
    settings["models"][0]["source"] = f"{versions.directory}/data/models/blobs/{versions.controls['1'].stem}"
    with Stoker(versions.directory, settings) as server:
        assert Rolling(server).word() == "a"


def test_pins_that_cannot_be_read_are_told_before_anything_is_served(versions: Versions) -> None:
    pins = versions.directory / "data" / "rollouts" / "pins.json"
    pins.parent.mkdir()
    pins.write_text("{")
    with pytest.raises(AssertionError, match=r"pins\.json.*restore it from a backup"):
        Stoker(versions.directory, versions.settings()).__enter__()
