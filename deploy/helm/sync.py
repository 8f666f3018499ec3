"""Writes what the chart holds of other places: rules, dashboards, and its schema. `python deploy/helm/sync.py`.

Helm reads only inside the chart. With `--check` it changes nothing, names what is stale and exits with 1.
"""  # noqa: INP001 - a script for people, no package

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHART = HERE / "stoker"
PREFIX = "settings_"
"""What the names of Stoker's own definitions begin with in the chart's schema."""
LEFT_OUT = frozenset({"title", "default"})


def files() -> dict[Path, str]:
    """What stands in which file."""
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=1) + "\n",
        CHART / "files" / "stoker.rules.yml": _text(ROOT / "deploy" / "prometheus" / "stoker.rules.yml"),
        **{
            CHART / "files" / "dashboards" / path.name: _text(path)
            for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
        },
    }


def schema() -> dict[str, Any]:
    """The schema of the values, in which `config` is checked by that of Stoker's settings."""
    values: dict[str, Any] = yaml.safe_load(_text(HERE / "values.schema.yaml"))
    settings = json.loads(_text(ROOT / "docs" / "stoker.schema.json"))
    definitions = {f"{PREFIX}{name}": _moved(spec) for name, spec in settings["$defs"].items()}
    # A model's further settings are those of its entry in `models`, of which the chart gives the name itself.
    definitions["settings_model"] = {**definitions[f"{PREFIX}ModelConfig"], "required": []}
    values["$defs"] |= {
        "settings": _moved({key: settings[key] for key in ("type", "additionalProperties", "properties")}),
        **definitions,
    }
    return values


def _moved(node: Any) -> Any:
    """A part of Stoker's schema with its references put right, and without what only other tools read."""
    if isinstance(node, list):
        return [_moved(one) for one in node]
    if not isinstance(node, dict):
        return node
    if "properties" in node:
        inner = {name: _moved(spec) for name, spec in node["properties"].items()}
        return {**_moved({key: value for key, value in node.items() if key != "properties"}), "properties": inner}
    moved = {key: _moved(value) for key, value in node.items() if key not in LEFT_OUT}
    if isinstance(reference := moved.get("$ref"), str):
        moved["$ref"] = reference.replace("#/$defs/", f"#/$defs/{PREFIX}")
    return moved


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def stale() -> Iterator[tuple[Path, str | None]]:
    """Files that are not as they should be, with what should stand there; None for what should not be there."""
    wanted = files()
    for path, text in wanted.items():
        if not path.exists() or _text(path) != text:
            yield path, text
    for path in (CHART / "files").rglob("*"):
        if path.is_file() and path not in wanted:
            yield path, None


def main() -> int:
    """Write or check; 1 when a check finds something stale."""
    parser = argparse.ArgumentParser(description="Writes what the chart holds of other places")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something is stale")
    check = parser.parse_args().check
    found = list(stale())
    for path, text in found:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True) if text is None else path.write_text(text, encoding="utf-8")
        sys.stdout.write(
            f"{path.relative_to(ROOT)}: {'stale; run python deploy/helm/sync.py' if check else 'written'}\n"
        )
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
