"""Two versions that do not fit at once: the operator is told, and may accept a gap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rollouts import SET, Rolling, Users, Versions
from tests.running import Stoker

CELL_BYTES = 30 * 2 * 3 * 64 * 2
"""The KV cache of a token of SmolLM2-135M in f16: layers, keys and values, heads, their size, bytes."""


@pytest.fixture
def versions(tmp_path: Path, model_path: Path) -> Versions:
    return Versions(tmp_path, model_path)


@pytest.fixture
def server(versions: Versions) -> Iterator[Stoker]:
    """A server whose model takes two thirds of the memory by plan; its fake engines take next to nothing."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    slots = int(free * 0.62 / (CELL_BYTES * 8192))
    if not 1 <= slots <= 256:
        pytest.skip(f"{free / 2**30:.0f} GiB of free memory are too few or too many for this test")
    settings = versions.settings()
    settings["models"][0]["plan"] = {"slots": slots, "context": 8192, "cache_type": "f16", "prompt_cache_mib": 0}
    with Stoker(versions.directory, settings) as running:
        yield running


def test_the_operator_is_told_what_does_not_fit(server: Stoker) -> None:
    rolling = Rolling(server)
    plan = rolling.post(model="fake@2", dry_run=True).json()
    assert not plan["fits"]
    refused = rolling.post(model="fake@2", evaluation=SET)
    assert (refused.status_code, refused.json()["code"]) == (409, "does_not_fit")
    assert "MiB" in refused.json()["detail"]
    assert "--accept-gap" in refused.json()["detail"]


def test_a_gap_that_was_accepted(server: Stoker, versions: Versions) -> None:
    rolling = Rolling(server)
    with Users(rolling.url, clients=2) as users:
        told = rolling.until(rolling.start(accept_gap=True))
    assert told["phase"] == "succeeded"
    assert told["evaluation"]["against"]["passed"] == 4  # the old version was asked before it left
    assert users.wrong
    assert all("version of fake is being changed" in wrong or "is down" in wrong for wrong in users.wrong), users.wrong
    assert rolling.word() == "b"


def test_a_bad_version_after_a_gap_is_followed_by_the_old_one(server: Stoker, versions: Versions) -> None:
    rolling = Rolling(server)
    versions.set("2", word="x")
    told = rolling.until(rolling.start(accept_gap=True))
    assert told["phase"] == "refused"
    server_ready(server)
    assert rolling.word() == "a"


def test_a_rollback_after_a_gap_loads_the_old_version_again(server: Stoker) -> None:
    rolling = Rolling(server)
    rollout = rolling.start(accept_gap=True, bake=60)
    rolling.until(rollout, {"baking"})
    assert rolling.word() == "b"
    rolling.post(f"/{rollout}/rollback")
    assert rolling.until(rollout)["phase"] == "rolled_back"
    server_ready(server)
    assert rolling.word() == "a"


def server_ready(server: Stoker) -> None:
    """Return when it says that it is."""
    for _ in range(300):
        if server.health("/health/ready")[0] == 200:
            return

        time.sleep(0.1)
    raise AssertionError(server.health())
