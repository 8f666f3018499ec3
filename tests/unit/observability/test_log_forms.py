"""The forms of a line: JSON for programs, text for people, and neither can be broken or forged by a value."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.observability.forms import ConsoleForm, json_line

PLAIN = ConsoleForm(colors=False)
COLOURED = ConsoleForm(colors=True)
REQUEST: dict[str, Any] = {
    "component": "request",
    "request_id": "db2f",
    "route": "/v1/chat/completions",
    "key": "ci",
    "model": "smollm2",
    "expert": None,
    "cache": "miss",
    "cache_age_s": None,
    "error": None,
    "queue_ms": 0.01,
    "ttft_ms": 35.2,
    "total_ms": 530.41,
    "tokens_in": 12,
    "tokens_out": 48,
    "status": 200,
    "event": "request",
    "level": "info",
    "time": "2026-01-02T03:04:05.678901Z",
}
ATTACKS = ["\x1b[2J\x1b[31mroot", "a\nb", "a\r\nb", "\x9b31m", "\x07", "\u202egnp", "\u2028", "\x00", "\ud800", "\x7f"]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def shown(event: dict[str, Any], form: ConsoleForm = PLAIN) -> str:
    return re.sub(r"^\S*\d\d:\d\d:\d\d", "HH:MM:SS", form(event).decode())


def test_json_has_every_key_and_keeps_what_is_none() -> None:
    line = json_line(REQUEST)
    assert line.endswith(b"}\n")
    assert json.loads(line) == REQUEST
    assert list(json.loads(line)) == list(REQUEST)


@pytest.mark.parametrize(
    "value", [*ATTACKS, 1 << 80, {1: 2}, {"a": {"b"}}, Unspeakable(), [Unspeakable()], b"\xff", 1.5]
)
def test_json_lines_are_one_line_whatever_is_in_them(value: Any) -> None:
    line = json_line({"event": "x", "n": 3, "none": None, "value": value})
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert told["event"] == "x"
    assert "value" in told
    assert (told["n"], told["none"]) == (3, None)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", [PLAIN, COLOURED])
def test_no_value_is_obeyed_by_a_terminal(attack: str, form: ConsoleForm) -> None:
    clean = form({"event": "x", "level": "info", "a": "v", "b": ["v"], "c": "v v"})
    lines = [
        form({"event": "x" + attack, "level": "info", "a": attack, "b": [attack, {"c": attack}], "c": f"{attack} v"}),
        form({**REQUEST, "route": "/" + attack, "model": attack, "key": attack, "request_id": attack, "cache": attack}),
        form({"event": "x", "level": "info", "key" + attack: 1, "engine": Unspeakable()}),
    ]
    for line in lines:
        assert line.endswith(b"\n")
        text = line.decode()[:-1]
        text = re.sub("\x1b\\[[0-9]{1,2}m", "", text)  # our own colours
        assert re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e]", text) is None
    assert clean.count(b"\n") == 1


def test_a_traceback_cannot_be_taken_for_lines_of_the_log() -> None:
    trace = "Traceback:\n  File x\nValueError: a\n14:03:07 [info] forged\x1b[1m"
    line = shown({"event": "failed", "level": "error", "exception": trace})
    head, *rest = line.rstrip("\n").split("\n")
    assert head == "HH:MM:SS [error    ] failed"
    assert rest == ["  Traceback:", "    File x", "  ValueError: a", "  14:03:07 [info] forged\\x1b[1m"]


def test_people_get_a_request_in_one_compact_line() -> None:
    told = "200 /v1/chat/completions smollm2 miss  12>48 tok  queue 0 ms  first 35 ms  total 530 ms  key=ci  id=db2f"
    assert shown(REQUEST) == f"HH:MM:SS {told}\n"


def test_people_see_the_content_that_they_asked_for_below_its_request() -> None:
    head, *rest = shown({**REQUEST, "prompt": "Hi\n\x1b[2Jthere", "answer": "Hello."}).splitlines()
    assert head == shown(REQUEST).rstrip()
    assert rest == ["  prompt: Hi\\n\\x1b[2Jthere", "  answer: Hello."]


def test_a_request_that_failed_says_so_and_leaves_out_what_never_was() -> None:
    refused = {"ttft_ms": -1, "queue_ms": -1, "tokens_in": 0, "tokens_out": 0, "model": None, "key": None}
    line = shown({**REQUEST, **refused, "status": 429, "error": "rate_limited", "total_ms": 1.4, "guard": "flag"})
    assert line == "HH:MM:SS 429 /v1/chat/completions  total 1 ms  error=rate_limited  guard=flag  id=db2f\n"


def test_a_stored_answer_tells_its_age() -> None:
    assert " smollm2 hit (61 s old) " in shown({**REQUEST, "cache": "hit", "cache_age_s": 60.9})


@pytest.mark.parametrize(("status", "colour"), [(200, 32), (304, 36), (404, 33), (499, 33), (500, 31)])
def test_the_colour_tells_the_kind_of_status(status: int, colour: int) -> None:
    assert f"\x1b[{colour}m{status}\x1b[0m" in shown({**REQUEST, "status": status}, COLOURED)
    assert "\x1b" not in shown({**REQUEST, "status": status})


def test_other_events_look_as_structlog_shows_them() -> None:
    event = {"component": "engine", "event": "engine ready", "level": "info", "pid": 7, "error": None, "time": "T"}
    assert shown({**event, "name": "a b"}) == "HH:MM:SS [info     ] engine ready     name='a b' pid=7\n"
    assert "\x1b[" in shown(event, COLOURED)


def test_an_event_without_what_a_request_has_is_shown_nevertheless() -> None:
    assert PLAIN({"event": "request", "status": "odd"}) == b'{"event":"request","status":"odd"}\n'


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=20) | st.integers() | st.none(), max_size=6))
def test_no_event_raises_or_ends_a_line_early(event: dict[str, Any]) -> None:
    for form in (json_line, PLAIN, COLOURED):
        line = form({**event, "event": event.get("event", "x")})
        assert line.endswith(b"\n")
        if not {"exception", "stack"} & set(event):
            assert line.count(b"\n") == 1
