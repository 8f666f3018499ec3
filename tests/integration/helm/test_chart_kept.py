"""What is written from something else is fresh, and every value is told of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.helm_chart import CHART
from tests.running import ROOT


@pytest.mark.parametrize("script", ["sync.py", "readme.py"])
def test_written_files_are_fresh(script: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "helm" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_value_has_a_line_that_explains_it() -> None:
    told = [line.split(" | ") for line in (CHART / "README.md").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in told if row[0].startswith("| `") and len(row) == 3]
    assert len(rows) > 100
    assert [row[0] for row in rows if len(row[2].strip(" |")) < 8] == []


def leaves(values: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """Keys of the values that the schema does not name."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for key, value in values.items():
        known = schema.get("properties", {})
        if key not in known and schema.get("additionalProperties") is False:
            yield key
        elif isinstance(value, dict) and key in known:
            yield from (f"{key}.{inner}" for inner in leaves(value, known[key], root))


def closed(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of a schema that has properties."""
    if isinstance(node, dict):
        if "properties" in node and isinstance(node["properties"], dict):
            yield node
        for inner in node.values():
            yield from closed(inner)


def test_the_schema_knows_every_value_and_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert list(leaves(values, schema, schema)) == []
    assert set(schema["properties"]) - {"global"} == set(values)
    assert all(part.get("additionalProperties") is False for part in closed(schema))


def test_the_chart_holds_no_secret_and_nothing_of_one_machine() -> None:
    for path in CHART.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "BEGIN PRIVATE KEY" not in text
            assert "/home/" not in text
            assert "/work/" not in text.replace("--work-dir=/work", "")
