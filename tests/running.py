"""Runs a real `stoker serve` in a process of its own, for tests that want the whole program."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import yaml

ROOT = Path(__file__).resolve().parent.parent
FAKE_ENGINE = ROOT / "tests" / "fake_engine.py"
READY_WITHIN_S = 90.0


class Stoker:
    """A `stoker serve` process with its own directory, configuration and log.

    Args:
        directory: an empty directory for the configuration, data and log.
        settings: the configuration file's content; port and data directory are added.
        wait: whether to wait for readiness.
        files: file descriptors that the process may have.
        piped: whether it writes into a pipe, whose other end `hang_up` closes.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        *,
        wait: bool = True,
        files: int | None = None,
        piped: bool = False,
    ) -> None:
        self.directory = directory
        self._files = files
        self._piped = piped
        self.log_file = directory / "log"
        self.url = ""
        self._wait = wait
        config = {"port": 0, "data_dir": str(directory / "data"), "log": {"format": "json", "level": "debug"}}
        (directory / "stoker.yaml").write_text(yaml.safe_dump({**config, **settings}))

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STOKER_")}
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoker", "serve", "--config", str(self.directory / "stoker.yaml")],
            stderr=subprocess.PIPE if self._piped else self.log_file.open("wb"),
            env={**environment, "TMPDIR": str(temporary)},
            cwd=self.directory,
        )
        if self._piped:
            self.log_file.touch()
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        if self._files is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (self._files, self._files))
        if self._wait:
            self.wait_ready()
        return self

    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        """Copy the pipe into the log, until it is hung up."""
        assert self.process.stderr is not None
        with self.log_file.open("wb", buffering=0) as log:
            while self._piped:
                if select.select([self.process.stderr], [], [], 0.05)[0]:
                    data = os.read(self.process.stderr.fileno(), 65536)
                    if not data:
                        break
                    log.write(data)
        self.process.stderr.close()

    def hang_up(self) -> None:
        """Close the reading end of its standard error, as a terminal does that is gone."""
        self._piped = False
        self._reader.join()

    @property
    def monitor_url(self) -> str:
        """Where metrics and health are, when the settings give them an address of their own."""
        return self._wait_for(r"metrics and health at (http://\S+)")

    @property
    def log(self) -> str:
        """Everything that the server wrote."""
        return self.log_file.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The JSON log lines of one event."""
        lines = (line for line in self.log.split("\n") if line.startswith("{") and line.endswith("}"))
        return [line for line in map(json.loads, lines) if line.get("event") == name]

    def wait_listening(self) -> str:
        """The URL, once the port is open."""
        return self._wait_for(r"(http://\S+)")

    def wait_ready(self) -> str:
        """The URL, once the server says that it is ready."""
        self.url = self._wait_for(r"ready after .* at (http://\S+)")
        return self.url

    def health(self, path: str = "/health") -> tuple[int, dict[str, Any]]:
        """Status and body of a health route."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def engine_pids(self) -> list[int]:
        """Process ids of the engines that are there now."""
        models = self.health()[1]["models"]
        return [engine["pid"] for model in models for engine in model["engines"] if engine["pid"]]

    def _wait_for(self, pattern: str) -> str:
        limit = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < limit:
            found = re.search(pattern, self.log)
            if found:
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no line like {pattern!r} (status {self.process.poll()}):\n{self.log[-3000:]}")


class FakeModel:
    """A model whose engine is the fake one: its part of the configuration, and the switch for its faults."""

    def __init__(self, directory: Path, model_path: Path, **model: Any) -> None:
        self.control = directory / "control.json"
        self.set()
        command = [sys.executable, str(FAKE_ENGINE), "--socket", "{socket}", "--control", str(self.control)]
        self.settings = {"name": "fake", "source": str(model_path), "command": command, **model}

    def set(self, fault: str = "none", **settings: Any) -> None:
        """Switch the fault, from the next request on."""
        self.control.with_suffix(".used").unlink(missing_ok=True)
        beside = self.control.with_suffix(".new")
        beside.write_text(json.dumps({"fault": fault, **settings}))
        beside.rename(self.control)

    def requests(self) -> list[dict[str, Any]]:
        """What the engine was asked, in order."""
        log = self.control.with_suffix(".log")
        lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
        return [line for line in lines if "path" in line]

    def departures(self) -> int:
        """How many clients the engine saw leave in mid-stream."""
        log = self.control.with_suffix(".log")
        return log.read_text().count('"gone"') if log.exists() else 0
