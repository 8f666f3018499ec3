"""A server with several versions of a model whose engines are fake, and users who keep on asking."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from stoker.models import sources
from stoker.models.registry import ModelRegistry
from tests.running import FAKE_ENGINE, Stoker
from tests.versions import bad_version, good_version

WITHIN_S = 60.0
ENDED = frozenset({"succeeded", "refused", "failed", "aborted", "rolled_back"})
SET = {
    "name": "words",
    "thresholds": {"pass_rate": 1.0},
    "cases": [{"prompt": f"say something {n}", "expect": {"regex": "^[ab]0 "}} for n in range(4)],
}
"""What versions 1 and 2 pass, as they are."""


class Versions:
    """Versions "1", "2", ... of the model `fake`: version 1 answers `a0 a1 ...`, version 2 `b0 b1 ...` and so on.

    Args:
        directory: an empty one.
        model: any model file; the engines do not read it.
        count: how many versions are stored.
    """

    def __init__(self, directory: Path, model: Path, count: int = 2) -> None:
        self.directory = directory
        registry = ModelRegistry(directory / "data")
        self.controls: dict[str, Path] = {}
        for number in range(1, count + 1):
            file = good_version(model, directory / "version.gguf", f"Version {number}")
            stored = registry.add(sources.parse(str(file)), name="fake", version=str(number))
            file.unlink()
            self.controls[str(number)] = stored.path.with_name(f"{stored.digest}.json")
        for version in self.controls:
            self.set(version)

    def set(self, version: str, **settings: Any) -> None:
        """Say how a version's engines behave from their next request on."""
        control = self.controls[version]
        control.with_suffix(".used").unlink(missing_ok=True)
        beside = control.with_suffix(".new")
        beside.write_text(json.dumps({"word": "abcdefgh"[int(version) - 1], "fault": "none", **settings}))
        beside.rename(control)

    def settings(self, **rollout: Any) -> dict[str, Any]:
        """The configuration of a server that starts with version 1."""
        command = [sys.executable, str(FAKE_ENGINE), "--socket", "{socket}", "--control", "{model}.json"]
        return {
            "models": [{"name": "fake", "source": "fake@1", "command": command, "plan": {"slots": 4, "context": 1024}}],
            "cache": {"policy": "off"},
            "restart": {"backoff": 0.05},
            "rollout": {"bake": 0.5, "min_requests": 5, **rollout},
        }


def real_versions(
    directory: Path, model: Path, *, good: Sequence[str], bad: str | None = None, **rollout: Any
) -> dict[str, Any]:
    """The configuration of a server with the first of several good versions of `smollm2`, and a bad one if wanted."""
    registry = ModelRegistry(directory / "data")
    for version in good:
        file = good_version(model, directory / "version.gguf", f"Version {version}")
        registry.add(sources.parse(str(file)), name="smollm2", version=version)
        file.unlink()
    if bad is not None:
        file = bad_version(directory / "version.gguf")
        registry.add(sources.parse(str(file)), name="smollm2", version=bad)
        file.unlink()
    plan = {"slots": 4, "context": 1024}
    return {
        "models": [{"name": "smollm2", "source": f"smollm2@{good[0]}", "plan": plan}],
        "cache": {"policy": "off"},
        "rollout": {"bake": 3, **rollout},
    }


class Rolling:
    """The rollouts of a server over HTTP."""

    def __init__(self, stoker: Stoker) -> None:
        self.url = stoker.url

    def post(self, path: str = "", **order: Any) -> httpx.Response:
        """Ask for something to be done."""
        return httpx.post(f"{self.url}/admin/rollouts{path}", json=order or None, timeout=60)

    def start(self, version: str = "2", **order: Any) -> str:
        """Begin one; its id."""
        answer = self.post(**{"model": f"fake@{version}", "evaluation": SET, **order})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def get(self, rollout: str) -> dict[str, Any]:
        """One as it stands."""
        return httpx.get(f"{self.url}/admin/rollouts/{rollout}", timeout=60).json()

    def until(self, rollout: str, phases: Collection[str] = ENDED, within_s: float = WITHIN_S) -> dict[str, Any]:
        """One when it is in one of the phases, or has ended."""
        limit = time.monotonic() + within_s
        while (found := self.get(rollout))["phase"] not in phases and not found["ended"]:
            assert time.monotonic() < limit, found
            time.sleep(0.02)
        assert found["phase"] in phases, found
        return found

    def word(self, key: str | None = None) -> str:
        """What the version that serves just now says first."""
        return ask(self.url, key=key)


def ask(url: str, text: str = "hello", key: str | None = None, max_tokens: int = 20) -> str:
    """The first letter of a streamed answer, which is whole; anything else is an AssertionError."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0, "stream": True}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]", answer.text
    parts = [json.loads(event) for event in events[:-1]]
    assert not any("error" in part for part in parts), answer.text
    said = "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])
    ends = [choice["finish_reason"] for part in parts for choice in part["choices"] if choice["finish_reason"]]
    assert ends, answer.text
    return said[:1]


class Users:
    """Clients who ask in streams, one after the other, for as long as the context lasts; each answer is checked."""

    def __init__(self, url: str, clients: int = 4, max_tokens: int = 20) -> None:
        self.url = url
        self.said: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.times: list[tuple[float, float]] = []
        """When each answer was there (monotonic), and the seconds that it took."""
        self._max_tokens = max_tokens
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def asked(self) -> int:
        """Answers so far, of whatever kind."""
        return sum(self.said.values()) + len(self.wrong)

    def _ask(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            began = time.monotonic()
            try:
                said = ask(self.url, f"user {number} asks {count}", max_tokens=self._max_tokens)
            except (AssertionError, httpx.HTTPError) as error:
                self.wrong.append(str(error)[:300])
                time.sleep(0.05)
            else:
                self.said[said] += 1
                self.times.append((time.monotonic(), time.monotonic() - began))
