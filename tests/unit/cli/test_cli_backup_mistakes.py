"""Mistakes at the backup verbs are told in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.errors import OperatorError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOKER_DATA_DIR", str(tmp_path / "data"))
    for name in ("STOKER_CONFIG", "STOKER_BACKUP__REPOSITORY", "STOKER_BACKUP__KEY"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["backup", *arguments])


def words_of(result: Result) -> str:
    """What a person reads, wrapped as it may be."""
    error = result.exception
    told = error.message if isinstance(error, OperatorError) else result.output
    return " ".join(told.replace("│", " ").split())


VERBS = [
    "create",
    "list",
    "show latest",
    "verify",
    "restore latest x",
    "prune",
    "remove x",
    "pin x",
    "unpin x",
    "drill",
]


@pytest.mark.parametrize("verb", VERBS)
def test_no_repository_is_named(verb: str) -> None:
    result = run(*verb.split())
    assert isinstance(result.exception, OperatorError)
    assert result.exception.exit_code == 2
    for word in ("--repository", "STOKER_BACKUP__REPOSITORY"):
        assert word in words_of(result)


@pytest.mark.parametrize("verb", ["show latest", "show 2026", "verify", "restore latest x", "remove x", "pin x"])
def test_an_empty_repository(verb: str, tmp_path: Path) -> None:
    result = run(*verb.split(), "-r", str(tmp_path / "repository"))
    assert isinstance(result.exception, OperatorError)
    assert "backup create" in words_of(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--lock", "soon"], "no length of time"),
        (["create", "--rate", "0"], "rate"),
        (["create", "--tag", "two words"], "tag"),
        (["verify", "--sample", "200%"], "no share"),
        (["verify", "x", "--all"], "not both"),
        (["restore", "latest"], "TARGET"),
        (["restore", "latest", "x", "--only", "everything"], "there is models"),
        (["prune"], "--keep-last"),
        (["prune", "--keep-last", "0"], "keep-last"),
        (["create", "--key-file", "nowhere"], "cannot be read"),
        (["create", "--key-file", "empty"], "one line"),
        (["create", "--key-file", "binary"], "no text"),
        (["create", "--key-file", "lines"], "one line"),
        (["create", "--key-file", "short"], "too short"),
        (["create", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["drill", "--work-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(arguments: list[str], words: str, tmp_path: Path) -> None:
    for name, content in (("empty", b"\n"), ("binary", b"\xff\xfe"), ("lines", b"one\ntwo\n"), ("short", b"x\n")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data").mkdir(exist_ok=True)
    result = run(*arguments, "-r", str(tmp_path / "repository"))
    assert result.exit_code != 0
    assert isinstance(result.exception, (OperatorError, SystemExit))
    assert words in words_of(result)
    assert not (tmp_path / "repository" / "snapshots").exists()


@pytest.mark.parametrize("address", ["", "s3://", "s3:///x", "gopher://x/y", "https://bucket.s3.amazonaws.com/x"])
def test_addresses_that_are_none(address: str) -> None:
    result = run("list", "-r", address)
    assert isinstance(result.exception, OperatorError)
    assert result.exception.exit_code == 2


@pytest.mark.parametrize("verb", [verb.split()[0] for verb in VERBS])
def test_help_has_an_example(verb: str) -> None:
    assert f"stoker backup {verb}" in words_of(run(verb, "--help"))


def test_a_broken_configuration_does_not_stand_in_the_way_of_a_recovery(tmp_path: Path) -> None:
    (tmp_path / "stoker.yaml").write_text("modles: []\n")
    repository = str(tmp_path / "repository")
    passed = run("list", "-r", repository)
    assert passed.exit_code == 0
    assert "modles" in passed.stderr
    for verb in (["list"], ["list", "-r", repository, "--config", "stoker.yaml"], ["create", "-r", repository]):
        refused = run(*verb)
        assert isinstance(refused.exception, OperatorError)
        assert "modles" in words_of(refused)
