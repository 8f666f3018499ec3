"""Tools for templates that know none: the prompt, the history, and the grammar's text."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from stoker.config import GenerationConfig
from stoker.engine import tools
from stoker.errors import RequestError
from stoker.types import Message, ResponseFormat, ToolSpec, ToolUse

BOUNDS = GenerationConfig()
WEATHER = ToolSpec(
    "get_weather",
    "The weather   in a city.\n\nMore about it.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "its name"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "place": {"$ref": "#/$defs/Place"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
        "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}}}},
    },
)
CLOCK = ToolSpec("clock", "", {})


def call(identity: str, name: str, arguments: str) -> dict:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_signature_is_short_and_has_everything() -> None:
    assert tools.signature(WEATHER) == (
        'get_weather(city: string, unit?: "C"|"F", days?: integer[], place?: {lat: number}, note?: string|null)'
        " - The weather in a city.\n  city: its name"
    )
    assert tools.signature(CLOCK) == "clock()"


@pytest.mark.parametrize(
    ("caps", "mode", "wanted"),
    [
        ({"supports_tools": True, "supports_tool_calls": True}, "auto", False),
        ({"supports_tools": True, "supports_tool_calls": False}, "auto", True),
        ({"supports_tools": False}, "auto", True),
        ({}, "auto", True),
        ({}, "native", False),
        ({"supports_tools": True, "supports_tool_calls": True}, "emulated", True),
    ],
)
def test_who_makes_the_calls(caps: dict, mode: str, wanted: bool) -> None:
    assert tools.wants_emulation(caps, mode) is wanted


def test_a_conversation_without_tools_is_left_alone() -> None:
    messages: list[Message] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b", "name": "x"}]
    assert tools.emulate(messages, None) == messages
    assert tools.emulate(messages, ToolUse((WEATHER,), "none")) == messages


def test_definitions_follow_the_callers_system_prompt() -> None:
    messages: list[Message] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    shown = tools.emulate(messages, ToolUse((WEATHER, CLOCK), "required"))
    assert [message["role"] for message in shown] == ["system", "user"]
    system = shown[0]["content"] or ""
    assert system.startswith("Be kind.\n\n")
    assert "get_weather(city: string" in system
    assert "clock()" in system
    assert shown[1]["content"] == "Hello"


def test_auto_shows_an_exchange_and_reminds() -> None:
    shown = tools.emulate([{"role": "user", "content": "Rain?"}], ToolUse((WEATHER,), "auto"))
    assert [message["role"] for message in shown] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert (shown[-1]["content"] or "").endswith("\n\nFunctions: get_weather")
    example = shown[4]["content"] or ""
    parser = tools.ToolCallParser(make_id=lambda: "call_x")
    (delta,) = parser.feed(example).calls
    assert delta.name == "get_weather"
    assert json.loads(delta.arguments) == {"city": "some city"}


def test_named_shows_the_named_function_alone() -> None:
    shown = tools.emulate([{"role": "user", "content": "?"}], ToolUse((WEATHER, CLOCK), "named", "clock"))
    assert "get_weather" not in json.dumps(shown)
    assert "clock()" in (shown[0]["content"] or "")


@pytest.mark.parametrize("content", [None, ""])
def test_calls_and_results_become_plain_messages(content: str | None) -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [call("a", "get_weather", '{"city":"Zürich"}'), call("b", "clock", "")],
        },
        {"role": "tool", "tool_call_id": "b", "content": "12:00"},
        {"role": "tool", "tool_call_id": "a", "content": '{"rain": true}'},
        {"role": "tool", "tool_call_id": "unknown", "content": "x", "name": "other"},
        {"role": "user", "content": "And now?"},
    ]
    shown = tools.emulate(messages, ToolUse((WEATHER, CLOCK), "none"))
    assert shown == [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": '<tool_call>get_weather({"city": "Zürich"}) and <tool_call>clock({})'},
        {
            "role": "user",
            "content": 'Result of clock({}):\n12:00\n\nResult of get_weather({"city": "Zürich"}):\n{"rain": true}'
            "\n\nResult of other:\nx\n\nAnd now?",
        },
    ]
    assert tools.emulate(messages, None) == shown


def test_history_that_the_caller_broke_still_renders() -> None:
    messages: list[Message] = [
        {"role": "tool", "content": "lost"},
        {"role": "assistant", "content": "I try.", "tool_calls": [call("a", "f", '{"broken'), {"id": "b"}]},
    ]
    shown = tools.emulate(messages, None)
    assert shown[0]["content"] == "Result of the function:\nlost"
    assert (shown[1]["content"] or "").startswith('I try.\n<tool_call>f({"broken)')


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a": "\\ud800"}', "1" * 5000])
def test_no_earlier_arguments_do_more_than_look_strange(arguments: str) -> None:
    shown = tools.emulate([{"role": "assistant", "content": None, "tool_calls": [call("a", "f", arguments)]}], None)
    assert (shown[0]["content"] or "").encode().startswith(b"<tool_call>f(")


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_roles_alternate_for_templates_that_insist(choice: str) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": "two"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": None, "tool_calls": [call("1", "clock", "{}")]},
        {"role": "assistant", "content": "c"},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
        {"role": "user", "content": "e"},
    ]
    shown = tools.emulate(messages, ToolUse((CLOCK,), choice))  # type: ignore[arg-type]
    roles = [message["role"] for message in shown]
    assert roles[0] == "system"
    assert all(role == ("user", "assistant")[place % 2] for place, role in enumerate(roles[1:]))
    assert set(roles) <= {"system", "user", "assistant"}
    assert all(isinstance(message["content"], str) for message in shown)


def test_grammars_say_what_may_come() -> None:
    use = ToolUse((WEATHER, CLOCK), "auto")
    auto = grammar_of(use, BOUNDS) or ""
    assert auto.startswith("%llguidance {}\nstart: (TEXT | lead calls)\n")
    assert "{0,7}" in auto
    required = grammar_of(ToolUse((WEATHER, CLOCK), "required", parallel=False), BOUNDS) or ""
    assert 'start: "<tool_call>" calls\ncalls: call\n' in required
    named = grammar_of(ToolUse((WEATHER, CLOCK), "named", "clock"), BOUNDS) or ""
    assert "get_weather" not in named
    assert "{0," not in named
    assert grammar_of(ToolUse((WEATHER,), "none"), BOUNDS) is None
    assert grammar_of(ToolUse(()), BOUNDS) is None
    shaped = grammar_of(use, BOUNDS, ResponseFormat({"type": "integer"})) or ""
    assert 'start: (answer | "<tool_call>" calls)' in shaped
    assert '"type": "integer"' in shaped


@pytest.mark.parametrize(
    ("end", "written"), [("<|im_end|>", " <|im_end|>?"), ("</s>", " </s>?"), ("", ""), ("[EOS]", ""), ("<a b>", "")]
)
def test_a_model_may_end_as_it_was_trained_to(end: str, written: str) -> None:
    for choice in ("auto", "required"):
        grammar = grammar_of(ToolUse((CLOCK,), choice), BOUNDS, end=end) or ""  # type: ignore[arg-type]
        assert grammar.split("\n")[1].endswith(f"calls){written}" if choice == "auto" else f"calls{written}")


def test_a_function_without_parameters_takes_none() -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        grammar = grammar_of(ToolUse((ToolSpec("f", "", parameters),), "required"), BOUNDS) or ""
        assert '"properties": {}' in grammar
        assert "patternProperties" not in grammar


def test_names_that_need_quoting_are_quoted() -> None:
    grammar = grammar_of(ToolUse((ToolSpec('a"b\\', "", {}),), "required"), BOUNDS) or ""
    assert '"a\\"b\\\\("' in grammar


@pytest.mark.parametrize(
    ("use", "param"),
    [
        (ToolUse((CLOCK,), "named", "other"), "tool_choice"),
        (ToolUse((CLOCK, CLOCK), "auto"), "tools"),
        (ToolUse((ToolSpec("f", "", {"type": "object", "properties": {"a": {"not": {}}}}),)), "tools"),
        (ToolUse(tuple(ToolSpec(f"f{n}", "", {"enum": ["x" * 20_000]}) for n in range(60))), "tools"),
    ],
)
def test_mistakes_name_the_field(use: ToolUse, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        grammar_of(use, BOUNDS)
    assert caught.value.param == param


def test_a_tools_mistake_names_the_tool() -> None:
    broken = ToolSpec("lookup", "", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/x"}}})
    with pytest.raises(RequestError, match=r"'lookup'.*not fetched"):
        grammar_of(ToolUse((CLOCK, broken)), BOUNDS)


def test_an_answers_first_character_tells_whether_the_grammar_held() -> None:
    assert opens(ResponseFormat(None), BOUNDS) == {"{"}
    assert opens(ResponseFormat({"type": ["string", "null"]}), BOUNDS) == {'"', "n"}
    assert opens(ResponseFormat({"$defs": {"a": {"enum": [True, 5]}}, "$ref": "#/$defs/a"}), BOUNDS) == {"t", "5"}
    assert "-" in opens(ResponseFormat({"type": "array"}), BOUNDS) | opens(ResponseFormat({"type": "integer"}), BOUNDS)


def opens(wanted: ResponseFormat, bounds: GenerationConfig) -> frozenset[str]:
    return tools.held_json(wanted, bounds).opens


def test_the_tools_of_one_request_share_their_limits() -> None:
    parameters = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1500)}}
    many = tuple(ToolSpec(f"f{number}", "", parameters) for number in range(4))
    assert grammar_of(ToolUse(many[:2], "required"), BOUNDS)
    with pytest.raises(RequestError, match="too large"):
        grammar_of(ToolUse(many, "required"), BOUNDS)


@pytest.mark.parametrize("key", ["minLength", "maxItems", "minimum", "maximum", "multipleOf"])
def test_enormous_figures_in_schemas_are_mistakes_or_bounds(key: str) -> None:
    kind = {"minLength": "string", "maxItems": "array"}.get(key, "integer")
    with contextlib.suppress(RequestError):
        tools.held_json(ResponseFormat({"type": kind, key: 10**400}), BOUNDS)


def grammar_of(*arguments: Any, **options: Any) -> str | None:
    return tools.held_tools(*arguments, **options).grammar
