"""A host with models and a configuration, and the verbs of `stoker` run on it: in this process, or in one of theirs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.errors import OperatorError
from stoker.models.registry import ModelRegistry
from stoker.models.sources import parse

WITHIN_S = 150


class BackupHost:
    """A directory that stands for a host: its data, its `stoker.yaml`, and the repository that it names.

    Args:
        directory: an empty one.
        repository: `s3://...` or a directory.
        settings: more of the configuration file's content.
        environment: variables that programs get there, such as an S3 server's.
    """

    def __init__(
        self,
        directory: Path,
        repository: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.config = directory / "stoker.yaml"
        self.repository = repository
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
        self.environment = {**clean, "TMPDIR": str(directory / "tmp"), **(environment or {})}
        (directory / "tmp").mkdir(parents=True)
        self.configure(settings or {})

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the configuration file anew."""
        backup = {"repository": self.repository, **settings.get("backup", {})}
        known = {"data_dir": str(self.data_dir), **settings, "backup": backup}
        self.config.write_text(yaml.safe_dump(known))

    def add_model(self, path: Path, name: str, version: str | None = None) -> str:
        """Store a model, as `stoker models add` does; its digest."""
        return ModelRegistry(self.data_dir).add(parse(str(path)), name=name, version=version).digest

    def stoker(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there; it must end with that status, and never with a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "stoker", *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            cwd=self.directory,
            env={**self.environment, **environment},
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def backup(self, *arguments: str, status: int = 0) -> str:
        """`stoker backup ...` in this process: what it prints, with the error if it ends with one."""
        return self._run(arguments, status)[0]

    def answer(self, *arguments: str, status: int = 0) -> Any:
        """`stoker backup ... --json`: the document that it prints."""
        return json.loads(self._run((*arguments, "--json"), status)[1])

    def _run(self, arguments: tuple[str, ...], status: int) -> tuple[str, str]:
        patched = mock.patch.object(tempfile, "tempdir", str(self.directory / "tmp"))
        with patched, contextlib.chdir(self.directory):
            result = CliRunner().invoke(app, ["backup", *arguments], env=self.environment)
        error, told = result.exception, result.output
        if isinstance(error, OperatorError):
            told, ended = f"{told}{error.message}", error.exit_code
        else:
            assert error is None or isinstance(error, SystemExit), repr(error)
            ended = result.exit_code
        assert ended == status, f"{arguments}: {ended}\n{told}"
        return told, result.stdout

    def left(self) -> list[Path]:
        """What programs left in the directory for temporary files."""
        return sorted((self.directory / "tmp").iterdir())


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, at: int = -1) -> None:
    """Change one byte of a file, read-only or not."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)
