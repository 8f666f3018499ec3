"""What the probes of a server say, over time: asked ten times a second from beside, as Kubernetes would."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

ANSWER_S = 1.0  # Kubernetes's default `timeoutSeconds`
PROBES = ("live", "ready", "startup")
TABLE = "STOKER_TEST_TABLE"
"""Names a file to which what was seen is added, a JSON line for each fault."""


class Watch:
    """Asks all probes, and the report, until its context ends; begins with a server that is ready, or `at_once`."""

    def __init__(self, url: str, *, at_once: bool = False) -> None:
        self.url = url
        self._at_once = at_once
        self.said: dict[str, list[tuple[float, int, str]]] = {probe: [] for probe in (*PROBES, "report")}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(probe,), daemon=True) for probe in self.said]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        if not self._at_once:
            self.wait_for("ready", lambda status, _: status == 200)
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)

    def _ask(self, probe: str) -> None:
        url = self.url + ("/health" if probe == "report" else f"/health/{probe}")
        while not self._over.wait(0.1):
            asked = time.monotonic()
            try:
                answer = httpx.get(url, timeout=ANSWER_S)
                status, text = answer.status_code, answer.text
            except httpx.HTTPError:
                status, text = 0, "no answer"
            self.said[probe].append((asked, status, text))

    def wait_for(
        self, probe: str, condition: Callable[[int, str], bool], since: float = 0.0, seconds: float = 40
    ) -> tuple[float, str]:
        """When the probe first said so after `since`, and its text."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            for asked, status, text in list(self.said[probe]):
                if asked >= since and condition(status, text):
                    return asked, text
            time.sleep(0.02)
        raise AssertionError(f"{probe} said only {[entry[1:] for entry in self.said[probe][-3:]]}")

    def always(self, probe: str, status: int, since: float) -> bool:
        """Whether a probe said nothing else after `since`."""
        return all(said == status for asked, said, _ in self.said[probe] if asked >= since)


def check_of(text: str, name: str) -> dict[str, str]:
    """A check in a report's text."""
    checks = json.loads(text)["checks"] if text.startswith("{") else ()
    return next((check for check in checks if check["name"] == name), {})


def note(fault: str, **told: str) -> None:
    """Show what the probes said of a fault, and keep it where a table is being made."""
    sys.stdout.write(f"{fault}: {told}\n")
    if os.environ.get(TABLE):
        with Path(os.environ[TABLE]).open("a") as file:
            file.write(json.dumps({"fault": fault, **told}) + "\n")
