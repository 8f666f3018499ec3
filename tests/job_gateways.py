"""Whole gateways that share a store of jobs and are killed at random, and the account of what became of every job."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.running import FakeModel

ANSWER_S = 10.0
READY_S = 60.0
ENDED = {"succeeded", "failed", "cancelled", "expired"}


class Gateway:
    """A `stoker serve` on a port of its own that may be killed and started again at the same place.

    Args:
        directory: for its configuration and logs.
        port: where it listens.
        model: a model file; its engine is the fake one.
        settings: more of the configuration.
    """

    def __init__(self, directory: Path, port: int, model: Path, settings: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}"
        self._lives = 0
        fake = FakeModel(directory, model, plan={"slots": 4, "context": 1024})
        fake.set("none", tokens=5, delay=0.01)
        config = {
            "port": port,
            "data_dir": str(directory / "data"),
            "log": {"format": "json"},
            "models": [fake.settings],
            "cache": {"policy": "off"},
            "restart": {"backoff": 0.05, "backoff_max": 0.2},
            "jobs": {"lease": 1.0, "attempts": 50, "backoff": 0.05, "backoff_max": 0.2},
            **settings,
        }
        (directory / "stoker.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Start, and return once it is ready."""
        self._lives += 1
        environment = {key: value for key, value in os.environ.items() if not key.startswith("STOKER_")}
        with (self.directory / f"log.{self._lives}").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stoker", "serve", "--config", str(self.directory / "stoker.yaml")],
                stderr=log,
                env=environment,
                cwd=self.directory,
            )
        limit = time.monotonic() + READY_S
        while time.monotonic() < limit:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200:
                    return
            assert self.process.poll() is None, (self.directory / f"log.{self._lives}").read_text()[-2000:]
            time.sleep(0.02)
        raise AssertionError("the gateway did not get ready")

    def kill(self) -> None:
        """SIGKILL; its engine ends with it."""
        self.process.kill()
        self.process.wait()

    def kill_engine(self) -> None:
        """SIGKILL its engine, if there is one just now."""
        with contextlib.suppress(httpx.HTTPError, ProcessLookupError):
            for model in httpx.get(f"{self.url}/health", timeout=2).json()["models"]:
                for engine in model["engines"]:
                    if engine["pid"]:
                        os.kill(engine["pid"], signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def recorded(self) -> Counter[str]:
        """How often each job's success was recorded, by the logs of all lives."""
        ends: Counter[str] = Counter()
        for file in self.directory.glob("log.*"):
            for line in file.read_text(errors="replace").splitlines():
                if '"event":"job"' in line and '"ended":"succeeded"' in line:
                    ends[json.loads(line)["id"]] += 1
        return ends


class Submitter:
    """Hands in jobs one after another until it is told to stop, or has handed in `most`; knows which were accepted."""

    def __init__(self, urls: list[str], most: int | None = None, pause: float = 0.0) -> None:
        self._urls = urls
        self._most = most
        self._pause = pause
        self._over = threading.Event()
        self.accepted: dict[str, str] = {}
        self.twice: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set() and (self._most is None or len(self.accepted) < self._most):
            key = uuid.uuid4().hex
            job = self._submit(key)
            if job is None:
                return
            if job in self.accepted:
                self.twice.append(job)
            self.accepted[job] = key
            time.sleep(self._pause)

    def _submit(self, key: str) -> str | None:
        """The id of an accepted job. Where no answer came the same key is tried again: it may have been accepted."""
        body = {"text": f"job {key}", "max_tokens": 8}
        while not self._over.is_set():
            for url in random.sample(self._urls, len(self._urls)):
                with contextlib.suppress(httpx.HTTPError):
                    answer = httpx.post(f"{url}/jobs", json=body, headers={"Idempotency-Key": key}, timeout=ANSWER_S)
                    if answer.status_code == 202:
                        return answer.json()["id"]
            time.sleep(0.02)
        return None

    def stop(self) -> None:
        """Hand in no more."""
        self._over.set()
        self.thread.join(2 * ANSWER_S)


def faults(url: str, accepted: dict[str, str], gateways: list[Gateway], seconds: float = 120) -> list[str]:
    """What is wrong once every accepted job has had the time to end: lost, failed, or recorded twice."""
    wrong: list[str] = []
    limit = time.monotonic() + seconds
    with httpx.Client(timeout=30) as client:
        for job in accepted:
            while True:
                answer = client.get(f"{url}/jobs/{job}", params={"wait": 5})
                found = answer.json()
                if answer.status_code == 404:
                    wrong.append(f"{job} is lost")
                    break
                if found["state"] in ENDED:
                    if found["state"] != "succeeded" or found["result"]["text"] != "w0 w1 w2 w3 w4 ":
                        wrong.append(f"{job} {found['state']}: {found.get('error') or found.get('result')}")
                    break
                if time.monotonic() > limit:
                    wrong.append(f"{job} is still {found['state']}")
                    break
    ends: Counter[str] = Counter()
    for gateway in gateways:
        ends += gateway.recorded()
    wrong += [f"{job} was recorded {count} times" for job, count in ends.items() if count > 1]
    return wrong
