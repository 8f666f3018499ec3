"""Reads evaluation sets: YAML, JSON or JSONL from a file, a document from elsewhere, and the one that ships."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import orjson
import yaml
from pydantic import ValidationError

from stoker.config.loading import OneKeyLoader
from stoker.errors import OperatorError
from stoker.evaluation.written import Case, EvaluationSet, Expect, JudgeConfig, SetMessage, Thresholds

__all__ = [
    "BadSet",
    "Case",
    "EvaluationSet",
    "Expect",
    "JudgeConfig",
    "SetMessage",
    "Thresholds",
    "load_set",
    "parse_set",
    "smoke_set",
]

LARGEST_FILE: Final = 64 * 2**20
MOST_VALUES: Final = 1_000_000
"""Values in a document: YAML's aliases can make few bytes into many."""
DEEPEST: Final = 100
COMPLAINTS: Final = 10
"""Lines of one error; the rest is counted."""


class BadSet(OperatorError):
    """An evaluation set cannot be read, or is wrong; the message names the place and what is wrong there."""

    status = 400
    code = "bad_evaluation_set"
    type = "invalid_request_error"
    exit_code = 2


def load_set(path: Path) -> EvaluationSet:
    """The set in a file: `.jsonl` has a case on each line, `.json` and anything else (YAML) is one document.

    A first line of JSONL without `prompt` and `messages` holds what is not a case: `thresholds`, `name` and so on.

    Raises:
        BadSet: the file cannot be read, is too large, or is no evaluation set.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise BadSet(f"{path}: larger than {LARGEST_FILE // 2**20} MiB; cut the evaluation set into several")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadSet(f"{path}: cannot be read ({error.strerror}); name a YAML or JSONL file, or `smoke`") from None
    except UnicodeDecodeError as error:
        raise BadSet(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix == ".jsonl":
        return _parse(*_from_lines(text, str(path)), str(path), path.stem)
    return parse_set(_from_yaml(text, str(path)), str(path), path.stem)


def parse_set(document: Any, origin: str = "the evaluation set", name: str = "inline") -> EvaluationSet:
    """The set that a document of YAML or JSON values is.

    Args:
        document: a mapping with `cases`, or a list of cases alone.
        origin: where it comes from, for people.
        name: what it is called when it does not say.

    Raises:
        BadSet: it is no evaluation set.
    """
    return _parse({"cases": document} if isinstance(document, list) else document, (), origin, name)


def smoke_set() -> EvaluationSet:
    """The small set that ships with Stoker: easy questions, JSON and length, in a minute or two on a small host."""
    text = resources.files("stoker.evaluation").joinpath("smoke.yaml").read_text(encoding="utf-8")
    return parse_set(_from_yaml(text, "smoke.yaml"), "smoke.yaml", "smoke")


def _parse(document: Any, lines: Sequence[int], origin: str, name: str) -> EvaluationSet:
    if not isinstance(document, Mapping):
        raise BadSet(f"{origin}: must be a mapping with `cases:`, or a list of cases")
    try:
        plain = {"name": name[:128] or "set", **_Copier().copy(document, 0)}
        return EvaluationSet.model_validate(plain)
    except ValidationError as error:
        raise BadSet(f"{origin}: is no evaluation set:\n  {_explain(error, lines)}") from None
    except ValueError as error:
        raise BadSet(f"{origin}: {error}") from None


def _from_lines(text: str, origin: str) -> tuple[dict[str, Any], list[int]]:
    """The document that lines of JSON make, and the line of each case."""
    head: dict[str, Any] = {}
    cases: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON has no other line ends; strings may hold some
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadSet(f"{origin}, line {number}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadSet(f"{origin}, line {number}: is no JSON object")
        if not cases and not head and "cases" not in row and not row.keys() & {"prompt", "messages"}:
            head = row
            continue
        cases.append(row)
        lines.append(number)
    return {**head, "cases": cases}, lines


def _from_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=OneKeyLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadSet(f"{origin}: is not valid YAML: {error}") from None


class _Copier:
    """Copies a document into plain JSON values; raises ValueError for one that is too large or too deep."""

    def __init__(self) -> None:
        self._values = 0

    def copy(self, value: Any, depth: int) -> Any:
        """The value with texts as keys and for dates."""
        self._values += 1
        if self._values > MOST_VALUES or depth > DEEPEST:
            raise ValueError(f"has more than {MOST_VALUES:,} values or {DEEPEST} levels")
        if isinstance(value, Mapping):
            return {str(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"{value} is no number that JSON has")
            return value
        return str(value)


def _explain(error: ValidationError, lines: Sequence[int]) -> str:
    """Each complaint on a line of its own: where, what is wrong, and the value."""
    problems = error.errors(include_url=False)
    told = [_complaint(problem, lines) for problem in problems[:COMPLAINTS]]
    if len(problems) > COMPLAINTS:
        told.append(f"and {len(problems) - COMPLAINTS} more")
    return "\n  ".join(told)


def _complaint(problem: Any, lines: Sequence[int]) -> str:
    place, where = problem["loc"], ""
    if len(place) > 1 and place[0] == "cases" and isinstance(place[1], int):
        case = place[1]
        where = f"line {lines[case]}: " if lines else f"case {case + 1}: "
        place = place[2:]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if problem["type"] == "extra_forbidden":
        return f"{where}{key}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, dict | list) or value is None else f" = {str(value)[:80]!r}"
    return f"{where}{key}{shown}: {message}" if key else f"{where}{message}"
