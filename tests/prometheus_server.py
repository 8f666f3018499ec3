"""A real Prometheus with the rules of deploy/prometheus, and what dashboards and rules there are to ask it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.running import ROOT

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = ROOT / "deploy" / "prometheus" / "stoker.rules.yml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
STARTED_WITHIN_S = 30.0
SET_OPERATOR = re.compile(r"(?:and|or|unless)\b(?:\s+(?:on|ignoring)\s*\([^)]*\))?")
COMPARISON = re.compile(r"==|!=|<=|>=|<|>")


def find_program(name: str) -> str:
    """Where `prometheus` or `promtool` is; or a skipped test."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not here; on Debian and Ubuntu: apt-get install prometheus")
    return program


class PrometheusProcess:
    """A Prometheus in a directory of its own, which scrapes every second. Configuration and rules are deploy's.

    Args:
        directory: for its configuration, data and log.
        targets: addresses, as host:port, in place of those that deploy's configuration names.
    """

    def __init__(self, directory: Path, targets: Sequence[str]) -> None:
        self._program = find_program("prometheus")
        self._log_file = directory / "log"
        self._directory = directory
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.url = ""

    def __enter__(self) -> Self:
        flags = {
            "config.file": self._directory / "prometheus.yml",
            "storage.tsdb.path": self._directory / "data",
            "web.listen-address": "127.0.0.1:0",
        }
        with self._log_file.open("wb") as log:
            words = [f"--{name}={value}" for name, value in flags.items()]
            self._process = subprocess.Popen([self._program, *words], stdout=log, stderr=log)
        self.url = f"http://{self._wait_for_address()}"
        while httpx.get(f"{self.url}/-/ready").status_code != httpx.codes.OK:
            time.sleep(0.05)
        return self

    def __exit__(self, *details: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression has now; AssertionError where it is none."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", f"{answer.get('error')}\n{expr}"
        result = answer["data"]["result"]
        return result if answer["data"]["resultType"] == "vector" else [{"metric": {}, "value": result}]

    def number(self, expr: str) -> float:
        """The value of an expression that has one series."""
        (series,) = self.query(expr)
        return float(series["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """The rules that are loaded, with how each one's last evaluation went."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _wait_for_address(self) -> str:
        limit = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < limit and self._process.poll() is None:
            found = re.search(r'msg="Listening on" address=(\S+)', self._log_file.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"no Prometheus:\n{self._log_file.read_text()[-3000:]}")


def rules() -> list[dict[str, Any]]:
    """Every rule of deploy's file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """A dashboard's panels, without its rows."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def conditions(expr: str) -> Iterator[str]:
    """The conditions that a rule's expression joins with `and`, `or` and `unless`, each without its comparison.

    What is compared always has a value; whether it is over a threshold, only a fault decides.
    """
    expr = _unwrapped(expr.strip())
    pieces = _split(expr, SET_OPERATOR)
    if len(pieces) > 1:
        for piece in pieces:
            yield from conditions(piece)
        return
    compared = _split(expr, COMPARISON)
    yield _unwrapped(compared[0].strip())


def _split(expr: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of an expression between separators that stand outside of every bracket and string."""
    parts, depth, begin, at, quoted = [], 0, 0, 0, False
    while at < len(expr):
        letter = expr[at]
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        fresh = at == 0 or not (expr[at - 1].isalnum() or expr[at - 1] in "_:")
        found = separator.match(expr, at) if depth == 0 and not quoted else None
        if found and (fresh or not letter.isalpha()):
            parts.append(expr[begin:at])
            begin = at = found.end()
        else:
            at += 1
    return [*parts, expr[begin:]]


def _unwrapped(expr: str) -> str:
    """An expression without brackets around all of it."""
    while expr.startswith("(") and _closing(expr) == len(expr) - 1:
        expr = expr[1:-1].strip()
    return expr


def _closing(expr: str) -> int:
    """Where the bracket that is opened first is closed."""
    depth = 0
    for at, letter in enumerate(expr):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    return len(expr)
