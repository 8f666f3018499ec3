"""Tools for every model: where a chat template knows none, the prompt explains them and a grammar holds the calls.

The definitions become one line each in the system prompt, in the form of a function's signature, and earlier calls and
results become plain messages that any template renders. With `auto` a made-up exchange and a reminder under each
question let models of 135 million parameters choose between a call and text; docs/tools.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stoker.engine.calls import JsonStream, ToolCallParser, ToolStream
from stoker.engine.grammar import JOINER, OPENER, HeldJson, HeldTools, held_json, held_tools, offered
from stoker.types import Message, ToolSpec, ToolUse

__all__ = [
    "HeldJson",
    "HeldTools",
    "JsonStream",
    "ToolCallParser",
    "ToolStream",
    "emulate",
    "held_json",
    "held_tools",
    "signature",
    "wants_emulation",
]

_SIGNATURE_DEPTH: Final = 3
_LONGEST_DESCRIPTION: Final = 400
_LONGEST_HINT: Final = 160
_REMINDED: Final = 12  # names under each question; a model that is offered more is asked to look above
_ENUM_SHOWN: Final = 12


def wants_emulation(caps: Mapping[str, Any], mode: str) -> bool:
    """Whether Stoker makes the tool calls: said by hand, or because the chat template knows no tools.

    Args:
        caps: `chat_template_caps` of llama.cpp's `/props`; empty when the engine said nothing.
        mode: the model's `tools` setting: `auto`, `native` or `emulated`.
    """
    if mode != "auto":
        return mode == "emulated"
    return not (caps.get("supports_tools") and caps.get("supports_tool_calls"))


def emulate(messages: Sequence[Message], use: ToolUse | None) -> list[Message]:
    """The conversation in roles and texts that any chat template knows, with the tools explained in it.

    Neighbours of one role are joined, for templates that insist on alternation. A conversation without anything of
    tools comes back as it is.

    Raises:
        RequestError: the named function is not among the tools.
    """
    tools = offered(use) if use else ()
    if not tools and not any(
        message["role"] in {"tool", "function"} or message.get("tool_calls") for message in messages
    ):
        return list(messages)
    reminder = _reminder(tools) if use and use.choice == "auto" else ""
    plain = _plain(messages, reminder)
    system = [message for message in plain if message["role"] in {"system", "developer"}]
    if tools and use:
        system.append({"role": "system", "content": _instructions(tools, use)})
    shown = _example(tools[0], reminder) if reminder else []
    rest = [message for message in plain if message["role"] not in {"system", "developer"}]
    head: list[Message] = []
    if text := "\n\n".join(message.get("content") or "" for message in system):
        head.append({"role": "system", "content": text})
    return _joined([*head, *shown, *rest])


# The prompt


def _instructions(tools: Sequence[ToolSpec], use: ToolUse) -> str:
    lines = "\n".join(signature(tool) for tool in tools)
    form = f"{OPENER}{tools[0].name}({json.dumps(_example_arguments(tools[0]), ensure_ascii=False)})"
    if use.parallel and use.choice != "named":
        form += '\nJoin several calls with "and".'
    if use.choice == "auto":
        when = "If the user asks for something that a function does, answer only with a call, like:"
        return f"You have these functions:\n{lines}\n\n{when}\n{form}\nIf not, answer with plain text."
    return f"Answer with a function call, like:\n{form}\n\nFunctions:\n{lines}"


def _reminder(tools: Sequence[ToolSpec]) -> str:
    if not tools:
        return ""
    names = ", ".join(tool.name for tool in tools[:_REMINDED])
    return f"\n\nFunctions: {names}{', ...' if len(tools) > _REMINDED else ''}"


def _example(tool: ToolSpec, reminder: str) -> list[Message]:
    """A made-up exchange: text for a greeting, a call where one is asked for."""
    arguments = _example_arguments(tool)
    said = ", ".join(f"{name} {value}" for name, value in arguments.items())
    return [
        {"role": "user", "content": f"Hi{reminder}"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": f"Call {tool.name}{f' with {said}' if said else ''}.{reminder}"},
        {"role": "assistant", "content": _call_text(tool.name, arguments)},
    ]


def signature(tool: ToolSpec) -> str:
    """A tool in one line, such as `get_weather(city: string, unit?: "C"|"F") - Weather in a city.`; hints below it."""
    properties, required = _properties(tool)
    arguments = [
        f"{name}{'' if name in required else '?'}: {_type(schema, tool.parameters, _SIGNATURE_DEPTH)}"
        for name, schema in properties.items()
    ]
    described = _short(tool.description, _LONGEST_DESCRIPTION)
    lines = [f"{tool.name}({', '.join(arguments)}){f' - {described}' if described else ''}"]
    for name, schema in properties.items():
        if isinstance(schema, Mapping) and (hint := _short(schema.get("description"), _LONGEST_HINT)):
            lines.append(f"  {name}: {hint}")
    return "\n".join(lines)


def _properties(tool: ToolSpec) -> tuple[Mapping[str, Any], Sequence[str]]:
    schema = _followed(tool.parameters, tool.parameters)
    properties, required = schema.get("properties"), schema.get("required")
    return properties if isinstance(properties, Mapping) else {}, required if isinstance(required, list) else ()


def _followed(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A subschema, or what its reference into `$defs` points at; an empty one where that cannot be shown in short."""
    if not isinstance(schema, Mapping):
        return {}
    pointer = schema.get("$ref")
    if not isinstance(pointer, str):
        return schema
    section, _, name = pointer.removeprefix("#/").partition("/")
    found = root.get(section)
    target = found.get(name) if isinstance(found, Mapping) else None
    return target if isinstance(target, Mapping) else {}


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> str:
    """A subschema as a type that programmers write."""
    form = _followed(schema, root)
    if depth == 0 or not form:
        return "any"
    values = form.get("enum", [form["const"]] if "const" in form else None)
    if isinstance(values, list) and values:
        shown = "|".join(json.dumps(value, ensure_ascii=False) for value in values[:_ENUM_SHOWN])
        return shown if len(values) <= _ENUM_SHOWN else f"{shown}|..."
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := form.get(key), list) and options:
            return "|".join(dict.fromkeys(_type(option, root, depth - 1) for option in options))
    return _plain_type(form, root, depth)


def _plain_type(form: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
    kind = form.get("type", "object" if "properties" in form else "any")
    if kind == "array":
        return f"{_type(form.get('items'), root, depth - 1)}[]"
    if kind == "object" and isinstance(form.get("properties"), Mapping):
        inner = ", ".join(f"{name}: {_type(value, root, depth - 1)}" for name, value in form["properties"].items())
        return f"{{{inner}}}"
    return "|".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _example_arguments(tool: ToolSpec) -> dict[str, Any]:
    """Arguments to show the form with: the required ones."""
    properties, required = _properties(tool)
    return {
        name: _example_value(schema, name, tool.parameters, 2)
        for name, schema in properties.items()
        if name in required
    }


def _example_value(schema: Any, name: str, root: Mapping[str, Any], depth: int) -> Any:
    form = _followed(schema, root)
    for key in ("examples", "enum"):
        if isinstance(values := form.get(key), list) and values:
            return values[0]
    if "const" in form:
        return form["const"]
    if isinstance(options := form.get("anyOf"), list) and options and depth:
        return _example_value(options[0], name, root, depth - 1)
    kind = form.get("type")
    samples: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "null": None, "array": [], "object": {}}
    return samples.get(kind, f"some {name}") if isinstance(kind, str) else f"some {name}"


def _short(text: Any, longest: int) -> str:
    """A description's first paragraph on one line."""
    if not isinstance(text, str):
        return ""
    line = " ".join(text.strip().split("\n\n", 1)[0].split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


# The conversation


def _plain(messages: Sequence[Message], reminder: str) -> list[Message]:
    """Calls as the text they are made of, results as what the user reports."""
    plain: list[Message] = []
    made: dict[str, str] = {}
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "assistant" and message.get("tool_calls"):
            texts = []
            for call in message["tool_calls"]:
                texts.append(text := _past_call(call))
                made[str(call.get("id"))] = text.removeprefix(OPENER)
            plain.append({"role": "assistant", "content": "\n".join(filter(None, [content, JOINER.join(texts)]))})
        elif message["role"] in {"tool", "function"}:
            of = made.get(str(message.get("tool_call_id"))) or message.get("name") or "the function"
            plain.append({"role": "user", "content": f"Result of {of}:\n{content}"})
        elif message["role"] == "user":
            plain.append({**message, "content": f"{content}{reminder}"})
        else:
            plain.append({**message, "content": content})
    return plain


def _past_call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            text = _call_text(str(function.get("name")), json.loads(arguments))
            text.encode()  # an escaped lone surrogate is JSON, but no text
        except (ValueError, RecursionError):
            # What the caller says was called is shown as it is, were it broken.
            return f"{OPENER}{function.get('name')}({arguments})"
        return text
    return _call_text(str(function.get("name")), arguments)


def _call_text(name: str, arguments: Any) -> str:
    return f"{OPENER}{name}({json.dumps(arguments, ensure_ascii=False)})"


def _joined(messages: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            before = joined[-1].get("content") or ""
            joined[-1] = {**joined[-1], "content": f"{before}\n\n{message.get('content') or ''}"}
        else:
            joined.append(message)
    return joined
