"""Tables that are made by tests: what they note of a run is what they have held to be so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.probes import TABLE

ROOT = Path(__file__).resolve().parent.parent


def rows_of(*arguments: str) -> tuple[list[dict[str, str]], int]:
    """What the tests that pytest runs with these arguments noted, in their order, and pytest's exit status."""
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "told"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, TABLE: str(told)}, check=False)
        rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    return rows, ended.returncode
