"""What an upgrade would change, as unified differences of values and of manifests. Pure. Secret data is not shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

HIDDEN = "(not shown)"


def values_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The lines that differ between two sets of values."""
    return _diff(_written(before), _written(after), "values now", "values then")


def manifest_diff(before: str, after: str) -> list[str]:
    """The lines that differ between objects, which are put in one order by kind and name."""
    return _diff("".join(_objects(before)), "".join(_objects(after)), "objects now", "objects then")


def _objects(text: str) -> Iterator[str]:
    found = {}
    for thing in yaml.safe_load_all(text):
        if not isinstance(thing, dict):
            continue
        if thing.get("kind") == "Secret":
            thing |= {name: HIDDEN for name in ("data", "stringData") if name in thing}
        metadata = thing.get("metadata") or {}
        found[str(thing.get("kind")), str(metadata.get("name"))] = thing
    for (kind, name), thing in sorted(found.items()):
        yield f"# {kind} {name}\n{_written(thing)}"


def _written(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=True, default_flow_style=False, width=110)


def _diff(before: str, after: str, name: str, other: str) -> list[str]:
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), name, other, lineterm="", n=3))
