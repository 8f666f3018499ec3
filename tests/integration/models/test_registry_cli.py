"""`stoker models` as a user types it."""

from __future__ import annotations

import json

import pytest
from model_server import gguf_bytes
from typer.testing import CliRunner

from stoker.cli.models import app
from stoker.errors import ModelFileError, SourceError


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Tiny-Q4_0.gguf").write_bytes(gguf_bytes(name="evil\x1b[31m[bold]"))

    def call(*arguments: str):
        return CliRunner().invoke(app, [*arguments, "--data-dir", str(data_dir)])

    return call


def test_the_life_of_a_model(run):
    assert "no models are stored yet" in run("list").stdout
    added = run("add", "Tiny-Q4_0.gguf")
    assert added.stdout.startswith("stored: tiny@1")
    assert added.stderr == ""
    assert run("add", "Tiny-Q4_0.gguf").stdout.startswith("already there: tiny@1")
    assert "tiny@1" in run("list").stdout
    shown = run("show", "tiny").stdout
    assert "llama" in shown
    assert "\x1b" not in shown
    assert run("verify").stdout == "tiny@1: ok\n"
    assert run("remove", "tiny@1").stdout.startswith("removed: tiny@1")
    assert json.loads(run("list", "--json").stdout) == []


def test_json(run, data_dir):
    added = json.loads(run("add", "Tiny-Q4_0.gguf", "--name", "chat", "--version", "2026-01", "--json").stdout)
    assert (added["name"], added["version"]) == ("chat", "2026-01")
    assert added["path"] == str(data_dir / "models" / "blobs" / added["digest"])
    assert json.loads(run("list", "--json").stdout) == [added] == [json.loads(run("show", "chat", "--json").stdout)]
    (verdict,) = json.loads(run("verify", "chat", "--json").stdout)
    assert (verdict["ok"], verdict["expected"]) == (True, added["digest"])


def test_damage_gives_exit_code_1(run, data_dir):
    run("add", "Tiny-Q4_0.gguf")
    (blob,) = (data_dir / "models" / "blobs").iterdir()
    blob.chmod(0o644)
    blob.write_bytes(b"GGUF")
    done = run("verify", "tiny")
    assert done.exit_code == 1
    assert "DAMAGED" in done.stdout


def test_errors_reach_the_main_program_as_they_are(run):
    assert isinstance(run("add", "missing.gguf").exception, SourceError)
    assert isinstance(run("add", "http://example.com/x.gguf").exception, SourceError)
    assert isinstance(run("show", "nothing").exception, ModelFileError)
