"""One spelling for JSON Schema: older drafts and OpenAPI's words become those of draft 2020-12, the rest is refused by
name.

An engine that cannot compile a schema answers without any shape and without a word, so nothing it does not know may
reach it: a keyword is understood, harmless, or an error here. Everything is shallow: subschemas are left as they are.
Source of the keywords: https://json-schema.org/draft/2020-12 (core and validation), older drafts' change lists,
OpenAPI 3.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from stoker.errors import RequestError

Form = dict[str, Any]

TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
KEYWORDS_OF: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset(
        {
            "properties",
            "required",
            "additionalProperties",
            "patternProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
        }
    ),
    "array": frozenset(["items", "prefixItems", "minItems", "maxItems"]),
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
}
_UNDERSTOOD: Final = frozenset({"$ref", "type", "enum", "anyOf", "allOf"}).union(*KEYWORDS_OF.values())
_LISTS: Final = frozenset({"required", "enum", "prefixItems", "anyOf", "allOf"})
_OBJECTS: Final = frozenset({"properties", "patternProperties"})
_REFUSED: Final[Mapping[str, str]] = {
    "not": "state what is allowed instead, as `enum` or `anyOf`",
    "if": "write the cases as `anyOf`",
    "then": "write the cases as `anyOf`",
    "else": "write the cases as `anyOf`",
    "dependentRequired": "write the cases as `anyOf`",
    "dependentSchemas": "write the cases as `anyOf`",
    "dependencies": "write the cases as `anyOf`",
    "contains": "describe every item with `items` or `prefixItems`",
    "minContains": "describe every item with `items` or `prefixItems`",
    "maxContains": "describe every item with `items` or `prefixItems`",
    "$dynamicRef": "use `$ref`",
    "$recursiveRef": "use `$ref`",
}
_LONGEST_PATTERN: Final = 512
_LOOKING_AROUND: Final = ("(?=", "(?!", "(?<=", "(?<!", "(?P=", "(?>")
_ESCAPE: Final = (
    r"\\(?:[pP](?:\{\^?[A-Za-z_=]{1,40}\}|[A-Z])|x[0-9A-Fa-f]{2}"
    r"|u(?![dD][89a-fA-F])[0-9A-Fa-f]{4}|[dDwWsSnrtfv]|[^\w\s])"
)
_TOKEN: Final = re.compile(
    rf"(?P<escape>{_ESCAPE})"
    rf"|(?P<class>\[(?!\^?\])\^?(?:{_ESCAPE}|(?!--|&&|~~|\|\|)[^\[\]\\])+\])"
    r"|(?P<open>\((?:\?:|\?P?<[A-Za-z_]\w{0,30}>)?)"
    r"|(?P<close>\))"
    r"|(?P<repeat>[*+?]|\{\d{1,4}(?:,\d{0,4})?\})"
    r"|(?P<anchor>[\^$])"
    r"|(?P<other>[^\\\[\](){}*+?^$])"
)
_PROPERTY: Final = re.compile(r"\\[pP](?:\{[^}]*\}|[A-Z])")
_ALTERNATIVE_START: Final = re.compile(r"(?<!\\)(?:\||\((?:\?:|\?P?<\w+>)?)\Z")
_QUANTIFIER: Final = re.compile(r"\{(\d{1,4})(?:,(\d{0,4}))?\}")
_REPEATS: Final = 1500  # LLGuidance gives up on larger automata, and no answer is that long


def modern(schema: Mapping[str, Any], where: str, param: str) -> Form:
    """The schema with annotations gone and each keyword in its draft 2020-12 spelling; `oneOf` is `anyOf`.

    Raises:
        RequestError: a keyword that no grammar can hold.
    """
    form: Form = {}
    for key, value in schema.items():
        if key in _REFUSED:
            raise RequestError(f"{where}: `{key}` cannot be held while generating; {_REFUSED[key]}", param=param)
        if key in _UNDERSTOOD:
            form[key] = value
    _items(schema, form)
    _exclusive(form, "exclusiveMinimum", "minimum")
    _exclusive(form, "exclusiveMaximum", "maximum")
    if "const" in schema:
        form["enum"] = [schema["const"]]
    if "oneOf" in schema and "anyOf" in schema:
        form["allOf"] = (
            [{"anyOf": schema["oneOf"]}, {"allOf": form["allOf"]}] if "allOf" in form else [{"anyOf": schema["oneOf"]}]
        )
    elif "oneOf" in schema:
        form["anyOf"] = schema["oneOf"]
    _check_shapes(form, where, param)
    if schema.get("nullable") is True:
        return {"anyOf": [form, {"type": "null"}]}
    return form


def _check_shapes(form: Form, where: str, param: str) -> None:
    for key, value in form.items():
        if (key in _LISTS and not isinstance(value, list)) or (key in _OBJECTS and not isinstance(value, Mapping)):
            wanted = "a list" if key in _LISTS else "an object of schemas"
            raise RequestError(f"{where}: `{key}` must be {wanted}", param=param)
    if not all(isinstance(name, str) for name in form.get("required", ())):
        raise RequestError(f"{where}: `required` must be a list of names", param=param)
    for key in ("anyOf", "allOf"):
        if key in form and not form[key]:
            raise RequestError(f"{where}: `{key}` must not be empty", param=param)


def _items(schema: Mapping[str, Any], form: Form) -> None:
    """Before 2020-12 a list of `items` was what `prefixItems` is now, and `additionalItems` what `items` is."""
    if isinstance(schema.get("items"), list):
        form["prefixItems"] = form.pop("items")
        if "additionalItems" in schema:
            form["items"] = schema["additionalItems"]


def _exclusive(form: Form, exclusive: str, inclusive: str) -> None:
    """In draft 4 and OpenAPI 3.0 `exclusiveMinimum` was a switch beside `minimum`."""
    switch = form.get(exclusive)
    if isinstance(switch, bool):
        del form[exclusive]
        if switch and inclusive in form:
            form[exclusive] = form.pop(inclusive)


def joined(forms: Iterable[Form], where: str, param: str) -> Form:
    """What satisfies all of the given modern forms (without `$ref`, `anyOf` and `allOf`).

    Raises:
        RequestError: two of them set one keyword in ways that cannot be joined.
    """
    both: Form = {}
    for form in forms:
        if "properties" in both or "properties" in form:
            _join_closed(both, form)
        for key, value in form.items():
            both[key] = value if key not in both else _join(key, both[key], value, where, param)
    return both


def _join_closed(one: Form, other: Form) -> None:
    """A closed object admits none of the properties that only its partner names."""
    for closed, open_ in ((one, other), (other, one)):
        if closed.get("additionalProperties") is False and "patternProperties" not in closed:
            known = closed.get("properties", {})
            foreign = dict.fromkeys((name for name in open_.get("properties", {}) if name not in known), False)
            if foreign:
                closed["properties"] = {**known, **foreign}


_TIGHTER_IS_MORE: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_TIGHTER_IS_LESS: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


def _join(key: str, one: Any, other: Any, where: str, param: str) -> Any:
    if one == other:
        return one
    try:
        if key in _TIGHTER_IS_MORE or key in _TIGHTER_IS_LESS:
            return max(one, other) if key in _TIGHTER_IS_MORE else min(one, other)
        joiner = _JOINERS.get(key)
        if joiner is not None:
            return joiner(one, other)
    except (TypeError, AttributeError):
        raise RequestError(f"{where}: `{key}` is not of the form that JSON Schema asks for", param=param) from None
    raise RequestError(f"{where}: two different `{key}` apply to one value; join them in one schema", param=param)


def _join_names(one: Any, other: Any) -> list[Any]:
    return list(dict.fromkeys([*one, *other]))


def _join_properties(one: Any, other: Any) -> Form:
    return {**one, **{name: _both(one[name], value) if name in one else value for name, value in other.items()}}


def _join_values(one: Any, other: Any) -> list[Any]:
    allowed = {literal(value) for value in other}
    return [value for value in one if literal(value) in allowed]


def _both(one: Any, other: Any) -> Any:
    if one is True:
        return other
    if other is True or one == other:
        return one
    return False if one is False or other is False else {"allOf": [one, other]}


def _join_types(one: Any, other: Any) -> list[str]:
    left, right = ({value} if isinstance(value, str) else set(value) for value in (one, other))
    both = left & right
    if "integer" in left | right and "number" in left | right:
        both.add("integer")
    return sorted(both)


_JOINERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "required": _join_names,
    "properties": _join_properties,
    "patternProperties": _join_properties,
    "items": _both,
    "additionalProperties": _both,
    "propertyNames": _both,
    "enum": _join_values,
    "type": _join_types,
}


def literal(value: Any) -> str:
    """A JSON value as text that is equal where the values are: 1.0 is 1, true is not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def type_of(value: Any) -> str:
    """The JSON Schema type of a JSON value; whole floats are integers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "array" if isinstance(value, list) else "object"


def pattern_problem(pattern: Any) -> str | None:
    """Why LLGuidance would not take this regular expression; None when it does.

    Its syntax is that of Rust's `regex` crate (https://docs.rs/regex), with anchors at the ends of alternatives only.
    """
    if not isinstance(pattern, str) or len(pattern) > _LONGEST_PATTERN:
        return f"must be a text of at most {_LONGEST_PATTERN} characters"
    if any(mark in pattern for mark in _LOOKING_AROUND):
        return "uses look-around, which no grammar can hold"
    if problem := _structure_problem(pattern):
        return problem
    if repeats(pattern) > _REPEATS:
        return "repeats more than a grammar can hold"
    try:
        # What the two languages share is checked by Python's own: ranges, counts, names of groups.
        re.compile(_PROPERTY.sub(r"\\w", pattern).replace("(?<", "(?P<"))
    except re.error as error:
        return f"is not valid: {error.msg}"
    return None


def _structure_problem(pattern: str) -> str | None:
    end = depth = 0
    for token in _TOKEN.finditer(pattern):
        if token.start() != end:
            break
        end = token.end()
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth < 0:
            return "closes a group that was not opened"
        if problem := _misplaced(token.lastgroup, token[0], pattern, token.start(), end):
            return problem
    if end != len(pattern):
        return f"has something at {pattern[end : end + 10]!r} that no grammar can hold"
    return "does not close a group" if depth else None


def _misplaced(kind: str | None, text: str, pattern: str, start: int, end: int) -> str | None:
    """A token that stands where Rust's syntax does not take it."""
    if kind == "repeat" and (start == 0 or _ALTERNATIVE_START.search(pattern, 0, start)):
        return f"repeats nothing at {text!r}"
    if kind == "anchor" and text == "^" and start and not _ALTERNATIVE_START.search(pattern, 0, start):
        return "has `^` in its middle"
    if kind == "anchor" and text == "$" and pattern[end : end + 1] not in {"", ")", "|"}:
        return "has `$` in its middle"
    return None


def repeats(pattern: str) -> int:
    """Characters that the repetitions of a pattern ask for, nested ones multiplied roughly: an upper estimate."""
    total = len(pattern)
    for match in _QUANTIFIER.finditer(pattern):
        times = int(match[2] or match[1])
        total += times
        if pattern[: match.start()].endswith(")"):
            group = pattern[: match.start()]
            inner = group[group.rfind("(") :] if group.count("(") == 1 else group
            total += times * sum(int(found[2] or found[1]) for found in _QUANTIFIER.finditer(inner))
    return total
