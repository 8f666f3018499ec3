"""The command line against a running server with the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.running import Stoker


def stoker_cli(
    *arguments: str, given: str = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("STOKER_")}
    return subprocess.run(
        [sys.executable, "-m", "stoker", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**clean, **environment},
        check=False,
    )


def test_query(stoker: Stoker) -> None:
    streamed = stoker_cli("query", "What is the capital of Germany?", "--url", stoker.url)
    assert streamed.returncode == 0
    assert "Berlin" in streamed.stdout
    piped = stoker_cli("query", "-", "--json", "--max-tokens", "5", given="Say hi.", STOKER_URL=stoker.url)
    answer = json.loads(piped.stdout)
    assert answer["model"] == "smollm2"
    assert answer["usage"]["completion_tokens"] <= 5


def test_chat_goes_on_after_each_answer(stoker: Stoker) -> None:
    said = "What is the capital of Germany?\n\n/reset\nSay hi.\n"
    result = stoker_cli("chat", "--url", stoker.url, "--temperature", "0", given=said)
    assert result.returncode == 0
    assert "Berlin" in result.stdout
    assert len(result.stdout.strip().splitlines()) >= 2


def test_refusals_are_told_in_words(stoker: Stoker) -> None:
    unknown = stoker_cli("query", "x", "--model", "other", "--url", stoker.url)
    assert unknown.returncode == 1
    assert "smollm2" in unknown.stderr
    nobody = stoker_cli("query", "x", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "stoker serve" in nobody.stderr
    for result in (unknown, nobody):
        assert "Traceback" not in result.stderr


def test_bench_writes_its_table_and_plot(stoker: Stoker, tmp_path: Path) -> None:
    result = stoker_cli(
        *("bench", stoker.url, "--clients", "1,2", "--requests", "2", "--max-tokens", "4"),
        *("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.svg")),
    )
    assert result.returncode == 0, result.stderr
    assert "tok/s" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "out.svg").read_text().startswith("<svg")


def test_configuration_verbs(tmp_path: Path) -> None:
    assert stoker_cli("config", "init", cwd=tmp_path).returncode == 0
    assert yaml.safe_load((tmp_path / "stoker.yaml").read_text())["port"] == 8080
    again = stoker_cli("config", "init", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    shown = stoker_cli("config", "show", "--json", cwd=tmp_path, STOKER_PORT="9999")
    assert json.loads(shown.stdout)["port"] == 9999
    schema = json.loads(stoker_cli("config", "schema").stdout)
    assert schema["properties"]["port"]["maximum"] == 65535
    assert json.loads((tmp_path / "stoker.schema.json").read_text()) == schema


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["serve"], 2, "no model to serve"),
        (["serve", "./nothing.gguf"], 1, "nothing.gguf"),
        (["serve", "nothing"], 1, "nothing"),
        (["serve", "x", "--port", "70000"], 2, "port = 70000"),
        (["serve", "x", "--config", "nothing.yaml"], 2, "nothing.yaml"),
        (["serve", "x", "--host", "0.0.0.0"], 1, "--allow-public"),
        (["serve", "x", "--log-level", "loud"], 2, "loud"),
    ],
)
def test_mistakes_are_told_in_words(arguments: list[str], status: int, words: str, tmp_path: Path) -> None:
    result = stoker_cli(*arguments, cwd=tmp_path, STOKER_DATA_DIR=str(tmp_path / "data"))
    assert result.returncode == status, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use(stoker: Stoker, model_path: Path, tmp_path: Path) -> None:
    port = stoker.url.rsplit(":", 1)[1]
    result = stoker_cli("serve", str(model_path), "--port", port, "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert "in use" in result.stderr


def test_what_does_not_fit_is_refused_with_numbers(model_path: Path, tmp_path: Path) -> None:
    result = stoker_cli("serve", str(model_path), "--memory-mib", "70", "--port", "0", "--data-dir", str(tmp_path))
    assert result.returncode == 1
    for word in ("MiB", "needed", "granted"):
        assert word in result.stderr


def test_help_and_version() -> None:
    assert stoker_cli("--version").stdout.startswith("stoker ")
    for verb in ("serve", "query", "chat", "doctor", "bench", "models", "config"):
        assert verb in stoker_cli("--help").stdout
        assert stoker_cli(verb, "--help").returncode == 0
