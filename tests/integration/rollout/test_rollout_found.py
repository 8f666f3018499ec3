"""Rollouts between versions that are called the same."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from tests.rollouts import SET, Rolling, Users, Versions
from tests.running import Stoker
from tests.versions import good_version

from stoker.models import sources
from stoker.models.registry import ModelRegistry


def test_versions_of_two_models_may_be_called_the_same(tmp_path: Path, model_path: Path) -> None:
    """Both would have their engines at one socket, and each would be asked what was meant for the other."""
    versions = Versions(tmp_path, model_path, count=1)
    file = good_version(model_path, tmp_path / "other.gguf", "Another model")
    stored = ModelRegistry(tmp_path / "data").add(sources.parse(str(file)), name="other", version="1")
    stored.path.with_name(f"{stored.digest}.json").write_text(json.dumps({"word": "b", "fault": "none"}))
    versions.set("1")  # the registry has cleared away what it does not know
    with Stoker(versions.directory, versions.settings()) as server:
        rolling = Rolling(server)
        answer = rolling.post(model="other@1", serves="fake", evaluation=SET)
        assert answer.status_code == 202, answer.text
        rolling.until(answer.json()["id"], {"succeeded"})
        with Users(rolling.url, clients=2) as users:
            back = rolling.post(model="fake@1", serves="fake", evaluation=SET, promotion="manual").json()["id"]
            rolling.until(back, {"waiting"})
            assert [rolling.word() for _ in range(8)] == ["b"] * 8
            told = httpx.get(f"{rolling.url}/health").json()
            names = [engine["name"] for model in (*told["models"], *told["aside"]) for engine in model["engines"]]
            assert len(set(names)) == 2
            rolling.post(f"/{back}/promote")
            rolling.until(back, {"succeeded"})
            assert rolling.word() == "a"
        assert users.wrong == []
