"""Grammars that hold an answer to its shape, as the text that llama.cpp hands to LLGuidance.

The engine says nothing when it cannot compile a grammar: it answers without one. So schemas are narrowed first to forms
that surely compile, and what comes back is looked at by its first character (`JsonStream`, `ToolCallParser`).
Source of the language: the LLGuidance project's `docs/syntax.md` (Lark with `%json`, lazy rules and `~` for "all but").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stoker.config import GenerationConfig
from stoker.engine.schema import bounded
from stoker.engine.schema_limits import Budget
from stoker.engine.shape import Shape
from stoker.errors import RequestError
from stoker.types import JsonObject, ResponseFormat, ToolSpec, ToolUse

OPENER: Final = "<tool_call>"
"""What an emulated tool call begins with; its form is `<tool_call>name({...})`."""
JOINER: Final = " and "
"""What stands between calls: a word that small models say only when there is more to do; a new line they always say."""

_SPECIAL_TOKEN: Final = re.compile(r"<[^<>\s\[\]]{1,60}>")
_HEADER: Final = "%llguidance {}\n"
# One line, with the separators that models have seen most: no white space to loop in.
_ONE_LINE: Final = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ANY_OBJECT: Final[JsonObject] = {"type": "object"}
MAX_GRAMMAR: Final = 1_000_000
"""Characters of one grammar; the engine compiles it anew for every request, at about 10 MB/s."""


@dataclass(frozen=True, slots=True)
class HeldJson:
    """How a JSON answer is held: its grammar, the characters that it can begin with, and its shape."""

    grammar: str
    opens: frozenset[str]
    shape: Shape


@dataclass(frozen=True, slots=True)
class HeldTools:
    """How tool calls are held: a grammar, None where tools hold nothing, and the shape of each function's arguments."""

    grammar: str | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def held_json(wanted: ResponseFormat, bounds: GenerationConfig) -> HeldJson:
    """What holds an answer that is JSON of the wanted schema, or any JSON object.

    Raises:
        RequestError: the schema cannot be held (see `schema.bounded`).
    """
    schema = _answer_schema(wanted, bounds)
    grammar = _checked(f"{_HEADER}start: {_json(schema)}\n", "response_format")
    return HeldJson(grammar, frozenset(_openings(schema, schema.get("$defs", {}))), Shape(schema))


def held_tools(
    use: ToolUse, bounds: GenerationConfig, wanted: ResponseFormat | None = None, end: str = ""
) -> HeldTools:
    """What holds an answer with emulated tool calls; nothing with choice `none` or without tools.

    `required` gives one call, or a list where `parallel` allows it; `named` exactly one of that function; `auto` either
    text (or JSON, where `wanted` is given too), or text and then calls.

    Args:
        use: the tools and what is allowed with them.
        bounds: for the arguments, and the number of calls.
        wanted: the shape of an answer without a call.
        end: the model's end-of-sequence token as `/props` writes it (`eos_token`). Under a grammar the engine lets a
            model end by its end-of-turn token alone; one that was trained to end by another cannot stop after its first
            call or sentence unless the grammar has that token too.

    Raises:
        RequestError: a schema cannot be held, or the named function is not among the tools.
    """
    tools = offered(use)
    if not tools:
        return HeldTools()
    more = bounds.parallel_tool_calls - 1 if use.parallel and use.choice != "named" else 0
    repeated = f' ("{JOINER}{OPENER}" call){{0,{more}}}' if more else ""
    budget = Budget()
    schemas = {tool.name: _arguments(tool, bounds, budget) for tool in tools}
    calls = [f'{json.dumps(f"{name}(")} {_json(schema)} ")"' for name, schema in schemas.items()]
    rules = [f"calls: call{repeated}", "call: " + "\n  | ".join(calls)]
    stop = f" {end}?" if _SPECIAL_TOKEN.fullmatch(end) else ""
    if use.choice != "auto":
        rules.insert(0, f'start: "{OPENER}" calls{stop}')
    elif wanted is not None:
        rules.insert(0, f'start: (answer | "{OPENER}" calls){stop}')
        rules.append(f"answer: {_json(_answer_schema(wanted, bounds))}")
    else:
        rules.insert(0, f"start: (TEXT | lead calls){stop}")
        rules.append(f"lead[lazy]: /(?s:.*){OPENER}/")
        rules.append(f"TEXT: ~/(?s:.*){OPENER}(?s:.*)/")
    grammar = _checked(_HEADER + "\n".join(rules) + "\n", "tools")
    return HeldTools(grammar, {name: Shape(schema) for name, schema in schemas.items()})


def offered(use: ToolUse) -> tuple[ToolSpec, ...]:
    """The tools that may be called under this choice.

    Raises:
        RequestError: the named function is not among the tools, or a name is there twice.
    """
    names = [tool.name for tool in use.tools]
    if len(set(names)) != len(names):
        raise RequestError("tools: every function's name must be there once", param="tools")
    if use.choice == "none":
        return ()
    if use.choice != "named":
        return use.tools
    chosen = tuple(tool for tool in use.tools if tool.name == use.named)
    if not chosen:
        raise RequestError(f"tool_choice: no tool is named {str(use.named)[:80]!r}", param="tool_choice")
    return chosen


def _answer_schema(wanted: ResponseFormat, bounds: GenerationConfig) -> dict[str, Any]:
    return bounded(_ANY_OBJECT if wanted.schema is None else wanted.schema, bounds, "response_format")


def _arguments(tool: ToolSpec, bounds: GenerationConfig, budget: Budget) -> dict[str, Any]:
    parameters = dict(tool.parameters)
    if not parameters.keys() & {"properties", "$ref", "anyOf", "allOf", "oneOf", "additionalProperties"}:
        parameters["properties"] = {}  # OpenAI: a function without parameters takes none
    if "$ref" not in parameters:
        parameters.setdefault("type", "object")
    try:
        return bounded(parameters, bounds, "tools", budget)
    except RequestError as error:
        raise RequestError(f"tool {tool.name!r}: {error.message}", param="tools") from None


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**_ONE_LINE, **schema})


def _checked(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR:
        raise RequestError(
            f"{param}: the schemas make a grammar over {MAX_GRAMMAR} characters; simplify them", param=param
        )
    return grammar


_FIRST: Final[Mapping[str, str]] = {
    "object": "{",
    "array": "[",
    "string": '"',
    "integer": "-0123456789",
    "number": "-0123456789",
    "boolean": "tf",
    "null": "n",
}


def _openings(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "".join(json.dumps(value)[0] for value in schema["enum"])
    if "anyOf" in schema:
        return "".join(_openings(option, definitions) for option in schema["anyOf"])
    if "$ref" in schema:
        return _openings(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return _FIRST[schema["type"]]
