"""Writes the tables of stoker/README.md from stoker/values.yaml: each key with its default and its comment.

`python deploy/helm/readme.py`; with `--check` it changes nothing, says what is stale and exits with 1. In values.yaml
a comment stands above its key, and `## Title` begins a table.
"""  # noqa: INP001 - a script for people, no package

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "stoker"
BEGIN, END = "<!-- values: written by deploy/helm/readme.py -->", "<!-- /values -->"
INDENT = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A value that can be set: where it stands, what it is when nothing is set, and what it means."""

    section: str
    key: str
    default: Any
    comment: str


def rows(text: str) -> Iterator[Row]:
    """Every value that values.yaml sets, in its order; one that has a comment is told as a whole."""
    values = yaml.safe_load(text)
    section, comment, path = "", [], []
    told: tuple[str, ...] | None = None
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif match := re.match(r"( *)([A-Za-z0-9_]+):", line):
            path = [*path[: len(match[1]) // INDENT], match[2]]
            if told is None or tuple(path[: len(told)]) != told:
                told = None
                default = _at(values, path)
                if comment or not isinstance(default, dict) or not default:
                    told = tuple(path)
                    yield Row(section, ".".join(path), default, " ".join(comment))
            comment = []
        elif not line.strip():
            comment = []


def tables(text: str) -> str:
    """The rows as Markdown, a table for each section."""
    parts: list[str] = []
    section = None
    for row in rows(text):
        if row.section != section:
            section = row.section
            parts += ["", f"### {section}", "", "| Key | Default | What it is |", "|---|---|---|"]
        shown = "" if row.default in ("", None) else f"`{json.dumps(row.default, ensure_ascii=False)}`"
        parts.append(f"| `{row.key}` | {shown} | {row.comment} |".replace("|  |", "| |"))
    return "\n".join(parts[1:])


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def written(readme: str, values: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(values)}\n\n{END}{after}"


def main() -> int:
    """Write or check; 1 when a check finds the page stale."""
    parser = argparse.ArgumentParser(description="Writes the chart's README from its values")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when the page is stale")
    check = parser.parse_args().check
    page = CHART / "README.md"
    now = page.read_text(encoding="utf-8")
    wanted = written(now, (CHART / "values.yaml").read_text(encoding="utf-8"))
    if now == wanted:
        return 0
    if not check:
        page.write_text(wanted, encoding="utf-8")
    sys.stdout.write(f"{page.name}: {'is stale; run python deploy/helm/readme.py' if check else 'written'}\n")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())
