"""Patterns and JSON Schemas of expectations: checked when a set is read, and bounded so that no answer makes them slow.

Both are jsonschema-rs's. Its plain regular expressions are Rust's, which take linear time whatever the pattern; schemas
with references into the network or recursion are refused, and so are those that grow without bound where references
are followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jsonschema_rs
import orjson

MOST_NODES: Final = 5000
"""JSON values in a schema, those behind references counted each time."""
DEEPEST: Final = 64
SEARCHED: Final = 10_000
"""Characters of an answer in which a pattern is looked for: the worst pattern that is taken needs 0.4 s for them."""
_OPTIONS: Final = jsonschema_rs.RegexOptions(size_limit=1_000_000, dfa_size_limit=2_000_000)
_MOVING: Final = frozenset({"$dynamicRef", "$recursiveRef"})


def pattern_occurs(pattern: str, text: str) -> bool:
    """Whether a pattern that passed `check_pattern` occurs in the first 10,000 characters of a text."""
    return bool(_pattern_validator(pattern).is_valid(text[:SEARCHED]))


def _pattern_validator(pattern: str) -> Any:
    try:
        return jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=_OPTIONS, offline=True)
    except jsonschema_rs.ValidationError:
        raise ValueError(
            "this pattern is not valid, too large, or has lookaround or backreferences, which Rust's syntax has not"
        ) from None


def _schema_validator(schema: Mapping[str, Any]) -> Any:
    _Weigher(schema).weigh(schema, (), 0)
    try:
        return jsonschema_rs.validator_for(dict(schema), pattern_options=_OPTIONS, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(f"this is no JSON Schema: {str(error).split(chr(10), 1)[0][:300]}") from None


def check_pattern(pattern: str) -> str:
    """The pattern, if it can be used; raises ValueError."""
    _pattern_validator(pattern)
    return pattern


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, if it can be used; raises ValueError."""
    _schema_validator(schema)
    return schema


def shape_problem(text: str, schema: Mapping[str, Any]) -> str | None:
    """Why a text is not JSON of a schema; None when it is. A Markdown fence around it is taken off."""
    try:
        value = orjson.loads(unfenced(text))
    except orjson.JSONDecodeError as error:
        return f"it is not JSON ({error})"
    try:
        _schema_validator(schema).validate(value)
    except jsonschema_rs.ValidationError as error:
        return str(error.message)[:300]
    except ValueError:
        return "its values lie too deep in one another"
    return None


def unfenced(text: str) -> str:
    """What stands between ``` lines, if a text is that and nothing else; else the text."""
    stripped = text.strip()
    first, newline, rest = stripped.partition("\n")
    if newline and first.startswith("```") and rest.endswith("```"):
        return rest.removesuffix("```")
    return stripped


class _Weigher:
    """Counts what a schema is when its references are followed; raises ValueError when that is too much."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = 0

    def weigh(self, value: Any, followed: tuple[str, ...], depth: int) -> None:
        """Count a value; `followed` are the references on the way to it."""
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > DEEPEST:
            raise ValueError(f"this schema is too large: more than {MOST_NODES} values or {DEEPEST} levels")
        if isinstance(value, list):
            for item in value:
                self.weigh(item, followed, depth + 1)
        if not isinstance(value, Mapping):
            return
        self._refuse(value, depth)
        for key, item in value.items():
            if key == "$ref" and isinstance(item, str):
                self._follow(item, followed, depth)
            elif not (depth == 0 and key in {"$defs", "definitions"}):  # counted where they are used
                self.weigh(item, followed, depth + 1)

    def _refuse(self, value: Mapping[str, Any], depth: int) -> None:
        moving = _MOVING & value.keys()
        if moving:
            raise ValueError(f"{min(moving)} is not taken; write the schema out")
        if depth and isinstance(value.get("$id"), str):
            raise ValueError("`$id` inside a schema is not taken; use `$ref: '#/$defs/...'`")

    def _follow(self, reference: str, followed: tuple[str, ...], depth: int) -> None:
        if reference in followed:
            raise ValueError(f"the schema is recursive at {reference!r}, which is not taken; write the levels out")
        self.weigh(self._find(reference), (*followed, reference), depth + 1)

    def _find(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise ValueError(f"{reference!r}: only references like '#/$defs/name' are followed")
        value: Any = self._root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(f"{reference!r} leads nowhere in the schema")
            value = value[key]
        return value
