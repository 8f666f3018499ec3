"""The documentation is true where that can be checked: generated parts, links, commands, JSON, the systemd unit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from stoker.cli.main import app
from stoker.config import Settings
from stoker.errors import StokerError
from stoker.observability.live import FIGURES
from stoker.observability.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s|;&])stoker ([a-z-][^|;&#\n]*)")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The page's fenced blocks in one of the languages."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def all_blocks(*languages: str) -> list:
    """A test parameter for each block of every page."""
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, *languages))
    ]


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings offer, made as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list:
    """Every `stoker ...` command in a shell block or an indented one, with its continuation lines joined."""
    found = set()
    for page in PAGES:
        indented = re.findall(r"^ {4}(.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
        for text in [*blocks(page, "sh", "bash", "console"), *indented]:
            found |= {match.strip() for match in COMMAND.findall(text.replace("\\\n", " "))}
    return sorted(found)


def test_the_generated_parts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_is_on_the_page() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        inner = next((kind.model_fields for kind in kinds if hasattr(kind, "model_fields")), {})
        for key in inner or [name]:
            assert f"`{key}`" in text, f"{name}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if fragment and file.suffix == ".md":
            assert fragment in anchors(file), f"{page.name}: {target}"


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("line", commands())
def test_commands_have_verbs_and_flags_that_exist(line: str) -> None:
    words = shlex.split(line)
    command = typer.main.get_command(app)
    while words and (verbs := getattr(command, "commands", None)):
        word = words.pop(0)
        assert word in verbs, f"stoker {line}: no verb {word!r}"
        command = verbs[word]
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in flags, f"stoker {line}: no flag {word}"


@pytest.mark.parametrize("text", all_blocks("json"))
def test_json_is_json(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", all_blocks("yaml"))
def test_configuration_examples_are_valid(text: str) -> None:
    try:
        Settings(**{"default_model": None, **yaml.safe_load(text)})
    except (ValueError, StokerError) as error:
        pytest.fail(f"{error}\n{text}")


@pytest.mark.parametrize("text", all_blocks("yml"))
def test_other_programs_configuration_is_yaml(text: str) -> None:
    assert yaml.safe_load(text)


@pytest.mark.parametrize("text", all_blocks("promql"))
def test_queries_ask_for_series_that_there_are(text: str) -> None:
    known = {series.name for series in (*Metrics().families, *FIGURES)}
    asked = re.findall(r"\b(?:stoker|gen_ai_server)_\w+", text)
    assert asked
    for name in asked:
        assert name in known or re.sub("_(bucket|count|sum)$", "", name) in known, name


def test_queries_are_valid(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not here; apt-get install prometheus brings it")
    queries = [text for page in PAGES for text in blocks(page, "promql")]
    assert queries
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": rules}]}))
    done = subprocess.run([program, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", all_blocks("python"))
def test_python_is_python(text: str) -> None:
    compile(text, "example", "exec")


def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here; apt-get install systemd brings it")
    (unit,) = blocks(ROOT / "docs" / "operating.md", "ini")
    stand_in = tmp_path / "stoker"
    stand_in.write_text("#!/bin/sh\n")
    stand_in.chmod(0o755)
    file = tmp_path / "stoker.service"
    file.write_text(unit.replace("/opt/stoker/.venv/bin/stoker", str(stand_in)))
    done = subprocess.run([program, "verify", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stoker.service" not in done.stderr
