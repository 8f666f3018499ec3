"""A narrowed schema accepts a part of what the caller's accepts, and everything in it ends."""

from __future__ import annotations

import enum
import json
import re
from typing import Any, Literal

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, HttpUrl

from stoker.config import GenerationConfig
from stoker.engine import schema as schema_module
from stoker.engine.schema import bounded
from stoker.errors import RequestError

BOUNDS = GenerationConfig(json_string_chars=40, json_array_items=4, json_object_properties=3)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    zip: str = Field(pattern=r"^\d{5}$")


class Person(BaseModel):
    """Someone."""

    name: str = Field(description="full name", min_length=1, max_length=30)
    age: int | None = None
    height: float = Field(gt=0, lt=3)
    colour: Colour = Colour.RED
    address: Address
    others: list[Address] = []
    tags: dict[str, int] = {}
    kind: Literal["a", "b"]
    pair: tuple[int, str]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


ZOD = {  # as zod-to-json-schema and zod 4's own export write them
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "mail": {
            "type": "string",
            "format": "email",
            "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@"
            r"([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        },
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        "record": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
        "shape": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"type": "string", "const": "circle"}, "r": {"type": "number"}},
                    "required": ["kind", "r"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {"kind": {"type": "string", "const": "square"}, "a": {"type": "number"}},
                    "required": ["kind", "a"],
                    "additionalProperties": False,
                },
            ]
        },
    },
    "required": ["mail", "count"],
    "additionalProperties": False,
}

ACCEPTED: dict[str, dict[str, Any]] = {
    "pydantic": Person.model_json_schema(),
    "recursive": Tree.model_json_schema(),
    "zod": ZOD,
    "anything": {},
    "free object": {"type": "object"},
    "no arguments": {"type": "object", "properties": {}},
    "open object": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
    "untyped properties": {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "required but not named": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["b"]},
    "types": {"type": ["string", "null", "integer", "number"], "maxLength": 3},
    "nullable": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "string"}, {"type": "boolean"}]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "all of with reference": {
        "$defs": {"n": {"type": "integer", "minimum": 3}},
        "allOf": [{"$ref": "#/$defs/n"}],
        "maximum": 9,
    },
    "any of beside properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "two choices": {
        "anyOf": [{"minimum": 1}, {"minimum": 4}],
        "allOf": [{"anyOf": [{"type": "integer"}, {"type": "number"}]}],
    },
    "enum of all kinds": {"enum": ["a", 1, 1.5, None, True, {"a": [1]}, "a"]},
    "enum of a type": {"type": "string", "enum": ["a", 1]},
    "const": {"const": {"a": 1}},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
    "tuple and more": {
        "type": "array",
        "prefixItems": [{"type": "integer"}],
        "items": {"type": "string"},
        "minItems": 2,
    },
    "old tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "integer"}],
    },
    "pattern keys": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": {"type": "integer"}},
        "additionalProperties": False,
    },
    "named keys": {
        "type": "object",
        "propertyNames": {"enum": ["a", "b"]},
        "additionalProperties": {"type": "integer"},
    },
    "key pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{2}$"},
        "additionalProperties": {"type": "integer"},
    },
    "short keys": {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": {"type": "integer"}},
    "few properties": {
        "type": "object",
        "properties": {"a": {}, "b": {}, "c": {}},
        "required": ["b"],
        "maxProperties": 2,
    },
    "many properties": {
        "type": "object",
        "properties": {"a": {}, "b": {}, "c": {}},
        "required": ["b"],
        "minProperties": 2,
    },
    "counted object": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "minProperties": 1,
        "maxProperties": 2,
    },
    "string": {"type": "string", "minLength": 2},
    "pattern": {"type": "string", "pattern": "^[a-c]+$"},
    "long pattern": {"type": "string", "pattern": "^[a-c]{60}$"},
    "uuid": {"type": "string", "format": "uuid"},
    "unknown format": {"type": "string", "format": "markdown"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "bounded number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "thin number": {"type": "number", "minimum": 0.1, "maximum": 0.1000001},
    "tiny number": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e-12},
    "half steps": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.5},
    "time with its pattern": {"type": "string", "format": "time", "pattern": r"^[0-2][0-9]:[0-5][0-9]$"},
    "one number": {"type": "number", "minimum": 2.5, "maximum": 2.5},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 100},
    "fractional bounds": {"type": "integer", "minimum": 0.5, "maximum": 2.5},
    "extension": {"type": "integer", "x-order": 3, "example": 1, "deprecated": True},
    "pointer into properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}},
    },
    "recursion with null": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
    "closed with foreign": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
            {"type": "object", "properties": {"a": {}, "b": {"type": "integer"}}},
        ]
    },
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not": ({"not": {"type": "string"}}, "`not`"),
    "conditions": ({"type": "object", "if": {}, "then": {}}, "`if`"),
    "contains": ({"type": "array", "contains": {}}, "`contains`"),
    "deep": ({"type": "object", "properties": {"a": {"dependentRequired": {}}}}, "schema.a: `dependentRequired`"),
    "remote": ({"$ref": "http://127.0.0.1:1/schema"}, "not fetched"),
    "file": ({"$ref": "file:///etc/passwd"}, "not fetched"),
    "broken reference": ({"$ref": "#/$defs/none"}, "points at nothing"),
    "reference of another kind": ({"$ref": 5}, "not fetched"),
    "reference to itself": ({"$ref": "#"}, "nothing finite"),
    "circle": ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "nothing finite"),
    "endless": ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "nothing finite"),
    "absurd minItems": ({"type": "array", "minItems": 10**9}, "minItems"),
    "absurd minLength": ({"type": "string", "minLength": 10**9}, "minLength"),
    "negative": ({"type": "string", "maxLength": -1}, "maxLength"),
    "no multiple": (
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2, "multipleOf": 2},
        "nothing finite",
    ),
    "long step": ({"type": "number", "multipleOf": 0.12345678901}, "`multipleOf`"),
    "text for a number": ({"type": "integer", "minimum": "1"}, "minimum"),
    "unknown type": ({"type": "any"}, "`type`"),
    "empty type": ({"enum": []}, "nothing finite"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing finite"),
    "lengths": ({"type": "string", "minLength": 5, "maxLength": 3}, "nothing finite"),
    "false": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "nothing finite"),
    "look-ahead": ({"type": "string", "pattern": "^(?!a)b"}, "look-around"),
    "look-ahead in keys": ({"type": "object", "patternProperties": {"(?=a)": {}}}, "look-around"),
    "two patterns": ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}]}, "two different `pattern`"),
    "no schema": ({"type": "object", "properties": {"a": 5}}, "must be a JSON Schema"),
    "properties of another kind": ({"type": "object", "properties": [1]}, "`properties`"),
    "required of another kind": ({"type": "object", "required": "a"}, "`required`"),
    "any of nothing": ({"anyOf": []}, "anyOf"),
    "large numbers": ({"type": "integer", "minimum": 10**20}, "not exact"),
    "too few names": ({"type": "object", "properties": {"a": {}}, "minProperties": 3}, "minProperties"),
    "large enum": ({"enum": [f"v{i}" for i in range(50_000)]}, "enum"),
    "long enum": ({"enum": ["x" * 300_000]}, "characters"),
    "many properties": (
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
        "too large",
    ),
}


def values(narrow: Any, definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema in the narrow forms, which makes this short."""
    if "$ref" in narrow:
        return st.deferred(lambda: values(definitions[narrow["$ref"].rpartition("/")[2]], definitions))
    if "enum" in narrow:
        return st.sampled_from(narrow["enum"])
    if "anyOf" in narrow:
        return st.one_of([values(option, definitions) for option in narrow["anyOf"]])
    return OF_TYPE[narrow["type"]](narrow, definitions)


def integers(narrow: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[int]:
    step = narrow.get("multipleOf", 1)
    return st.integers(-(-narrow["minimum"] // step), narrow["maximum"] // step).map(lambda n: int(n * step))


def texts(narrow: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[str]:
    least, most = narrow.get("minLength", 0), narrow["maxLength"]
    if "pattern" in narrow:
        return st.from_regex(re.compile(narrow["pattern"].replace("$", "\\Z"), re.ASCII)).filter(
            lambda text: least <= len(text) <= most
        )
    if narrow.get("format") == "uuid":
        return st.uuids().map(str)
    return st.text(st.characters(codec="utf-8"), min_size=least, max_size=min(most, 60))


def numbers(narrow: dict[str, Any], _: dict[str, Any]) -> st.SearchStrategy[float]:
    return st.sampled_from([narrow["minimum"], narrow["maximum"]]) | st.floats(narrow["minimum"], narrow["maximum"])


def arrays(narrow: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    prefix = narrow.get("prefixItems", [])
    head = st.tuples(*(values(item, definitions) for item in prefix)).map(list)
    least, most = narrow["minItems"] - len(prefix), min(narrow["maxItems"], 6) - len(prefix)
    if narrow["items"] is False or most <= 0:
        return head
    tail = st.lists(values(narrow["items"], definitions), min_size=max(0, least), max_size=most)
    return st.tuples(head, tail).map(lambda pair: pair[0] + pair[1])


def objects(narrow: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    assert narrow["additionalProperties"] is False
    if "patternProperties" in narrow:
        ((pattern, value),) = narrow["patternProperties"].items()
        keys = st.from_regex(pattern.replace("$", "\\Z"))
        least, most = narrow["minProperties"], min(narrow["maxProperties"], 4)
        return st.dictionaries(keys, values(value, definitions), min_size=least, max_size=most)
    each = {name: values(value, definitions) for name, value in narrow["properties"].items()}
    required = {name: each[name] for name in narrow["required"]}
    return st.fixed_dictionaries(required, optional={k: v for k, v in each.items() if k not in required})


OF_TYPE = {
    "string": texts,
    "integer": integers,
    "number": numbers,
    "array": arrays,
    "object": objects,
    "boolean": lambda *_: st.booleans(),
    "null": lambda *_: st.none(),
}


def ends(narrow: Any) -> None:
    """Fail unless a narrow schema is bounded everywhere."""
    if narrow is False or "$ref" in narrow or "enum" in narrow:
        return
    if "anyOf" in narrow:
        assert len(narrow["anyOf"]) > 1
        for option in narrow["anyOf"]:
            ends(option)
        return
    match narrow["type"]:
        case "string":
            assert narrow["maxLength"] <= 100_000
        case "integer":
            assert {"minimum", "maximum"} <= narrow.keys()
        case "number":
            assert "multipleOf" in narrow
            assert narrow["minimum"] <= narrow["maximum"]
        case "array":
            assert narrow["maxItems"] <= 10_000
            for item in [narrow["items"], *narrow.get("prefixItems", [])]:
                ends(item)
        case "object":
            assert narrow["additionalProperties"] is False
            assert "properties" in narrow or narrow["maxProperties"] <= 1000
            for value in [*narrow.get("properties", {}).values(), *narrow.get("patternProperties", {}).values()]:
                ends(value)


def refers_to(narrow: Any) -> set[str]:
    text = json.dumps(narrow)
    return {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}


@pytest.mark.parametrize("name", ACCEPTED)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_left_is_a_part_of_what_was_asked_for(name: str, data: st.DataObject) -> None:
    narrow = bounded(ACCEPTED[name], BOUNDS)
    value = data.draw(values(narrow, narrow.get("$defs", {})))
    validator = jsonschema_rs.validator_for(ACCEPTED[name])
    assert validator.is_valid(value), f"{value!r} is not valid"


@pytest.mark.parametrize("name", ACCEPTED)
def test_everything_ends(name: str) -> None:
    narrow = bounded(ACCEPTED[name], BOUNDS)
    definitions = narrow.get("$defs", {})
    for part in [{k: v for k, v in narrow.items() if k != "$defs"}, *definitions.values()]:
        ends(part)
    graph = {key: refers_to(part) for key, part in definitions.items()}
    assert set().union(*graph.values(), refers_to({k: v for k, v in narrow.items() if k != "$defs"})) <= graph.keys()
    finished: set[str] = set()
    while graph.keys() - finished:
        leaves = {key for key, targets in graph.items() if key not in finished and targets <= finished}
        assert leaves, f"definitions refer to each other in a circle: {graph.keys() - finished}"
        finished |= leaves


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_the_callers_mistake(name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(RequestError) as caught:
        bounded(schema, BOUNDS, "tools")
    assert words in caught.value.message
    assert caught.value.param == "tools"
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


NAMED = """
$ref type enum const anyOf oneOf allOf properties required additionalProperties patternProperties propertyNames
minProperties maxProperties items prefixItems additionalItems minItems maxItems minLength maxLength pattern format
minimum maximum exclusiveMinimum exclusiveMaximum multipleOf nullable $defs not title x-a
"""
KEYWORDS = st.sampled_from(NAMED.split())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(),
    st.sampled_from(
        [
            "string",
            "object",
            "array",
            "integer",
            "number",
            "null",
            "#",
            "#/$defs/a",
            "#/properties/a",
            "^a+$",
            "date",
            "",
        ]
    ),
)
SCHEMA_LIKE = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYWORDS, SCHEMA_LIKE, min_size=1, max_size=5))
def test_whatever_comes_is_narrowed_or_refused(schema: dict[str, Any]) -> None:
    try:
        narrow = bounded(schema, BOUNDS)
    except RequestError:
        return
    for part in [{k: v for k, v in narrow.items() if k != "$defs"}, *narrow.get("$defs", {}).values()]:
        ends(part)


def test_bounds_come_from_the_configuration_and_yield_to_the_schema() -> None:
    assert bounded({"type": "string"}, BOUNDS) == {"type": "string", "maxLength": 40}
    assert bounded({"type": "string", "maxLength": 900}, BOUNDS)["maxLength"] == 900
    assert bounded({"type": "string", "minLength": 90}, BOUNDS)["maxLength"] == 90
    assert bounded({"type": "string", "maxLength": 10**9}, BOUNDS)["maxLength"] == 100_000
    assert bounded({"type": "array", "items": {"type": "null"}}, BOUNDS)["maxItems"] == 4
    assert bounded({"type": "array", "items": {"type": "null"}, "minItems": 9}, BOUNDS)["maxItems"] == 9
    assert bounded({"type": "array", "items": {"type": "null"}, "maxItems": 50}, BOUNDS)["maxItems"] == 50
    assert bounded({"type": "object"}, BOUNDS)["maxProperties"] == 3


def test_recursion_is_unrolled_to_its_limit() -> None:
    narrow = bounded(Tree.model_json_schema(), BOUNDS)
    levels = [part for part in narrow["$defs"].values() if "children" in part["properties"]]
    assert len(levels) == schema_module.RECURSION
    assert sum(part["properties"]["children"]["maxItems"] == 0 for part in levels) == 1


def test_old_spellings_mean_the_same() -> None:
    old_number = {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 4, "exclusiveMaximum": False}
    assert bounded(old_number, BOUNDS) == {"type": "integer", "minimum": 2, "maximum": 4}
    assert bounded({"type": "string", "nullable": True}, BOUNDS)["anyOf"][1] == {"type": "null"}
    old = {"definitions": {"a": {"type": "boolean"}}, "$ref": "#/definitions/a"}
    assert bounded(old, BOUNDS) == {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "boolean"}}}


def test_the_callers_schema_is_not_changed() -> None:
    for schema in ACCEPTED.values():
        before = json.dumps(schema)
        bounded(schema, BOUNDS)
        assert json.dumps(schema) == before


def test_doubling_references_do_not_explode() -> None:
    doubled: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, 40):
        below = {"$ref": f"#/$defs/a{level - 1}"}
        doubled[f"a{level}"] = {"type": "object", "properties": {"l": below, "r": below}}
    narrow = bounded({"$defs": doubled, "$ref": "#/$defs/a20"}, BOUNDS)
    assert len(json.dumps(narrow)) < 10_000
    for level in range(1, 40):
        below = {"$ref": f"#/$defs/a{level - 1}"}
        doubled[f"a{level}"] = {"allOf": [below, below]}
    with pytest.raises(RequestError):
        bounded({"$defs": doubled, "$ref": "#/$defs/a39"}, BOUNDS)


def test_formats_that_the_engine_does_not_know_get_a_shape_of_ours() -> None:
    class Contact(BaseModel):
        url: HttpUrl

    narrow = bounded(Contact.model_json_schema(), BOUNDS)
    assert narrow["properties"]["url"]["pattern"].startswith("^https?://")
    assert "format" not in narrow["properties"]["url"]
