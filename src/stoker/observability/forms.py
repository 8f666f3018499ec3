"""The forms of a log line: JSON for programs, text for people. None ever raises, or lets a value end its line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict

_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys (control characters, and with them ANSI sequences), or what turns text around."""
_COLOURS: Final = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_DIM: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"


def json_line(event: EventDict) -> bytes:
    """One JSON object and a newline; what JSON has no form for is written as text."""
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except Exception:  # noqa: BLE001 - a value whose text cannot be had, or is not Unicode
        told = {_text(key): value if _has_json(value) else _text(value) for key, value in event.items()}
        return orjson.dumps(told, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _has_json(value: object) -> bool:
    try:
        orjson.dumps(value, default=str)
    except Exception:  # noqa: BLE001 - what the value's own code raises
        return False
    return True


def _text(value: object, form: Callable[[object], str] = str) -> str:
    """A value as text that can be encoded, whatever it is."""
    try:
        return form(value).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - what the value's own code raises
        return f"<{type(value).__name__}>"


def escape(text: str) -> str:
    """The text with everything that a terminal would obey written as an escape."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Shown:
    """A value that is shown by this text; the renderer asks for its `repr`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class ConsoleForm:
    """Lines for people: without what says nothing, requests in one compact line.

    Args:
        colors: whether the reader is a terminal.
    """

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=16, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, event: EventDict) -> bytes:
        """The event's line, with more lines, each indented, where it has a traceback."""
        try:
            clock = time.strftime("%H:%M:%S")
            told = self._request(clock, event) if event.get("event") == "request" else self._other(clock, event)
            return f"{told}\n".encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - better in the wrong form than not at all
            return f"{escape(json_line(event).decode().rstrip())}\n".encode()

    def _other(self, clock: str, event: EventDict) -> str:
        shown: EventDict = {"timestamp": clock}
        for key, value in event.items():
            if key in {"exception", "stack"}:
                shown[key] = _indented(str(value))
            elif key in {"event", "level"}:
                shown[key] = escape(str(value))
            elif value is not None and key not in {"component", "time"}:
                shown[escape(key)] = _showable(value)
        return str(self._render(None, "", shown))

    def _request(self, clock: str, event: EventDict) -> str:
        """A request's line, from the keys that its record writes."""
        said: dict[str, Any] = {key: value for key, value in event.items() if value is not None}
        status = said.get("status", 0)
        parts = [
            f"{self._in(_DIM, clock)} {self._in(_COLOURS.get(status // 100, ''), str(status))} {_word(said, 'route')}",
            _word(said, "model"),
            _cache(said),
            f" {said['tokens_in']}>{said['tokens_out']} tok" if said.get("tokens_in") else "",
            *(f" {name} {said[key]:.0f} ms" for name, key in _TIMES if said.get(key, -1) >= 0),
            *(f" {name}={escape(str(said[key]))}" for name, key in _DETAILS if key in said),
            self._in(_DIM, f" id={_word(said, 'request_id')}"),
        ]
        content = [f"\n  {key}: {_word(said, key)}" for key in ("prompt", "answer") if key in said]
        return " ".join(part for part in parts if part) + "".join(content)

    def _in(self, style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if self._colors and style else text


_TIMES: Final = (("queue", "queue_ms"), ("first", "ttft_ms"), ("total", "total_ms"))
_DETAILS: Final = (
    ("error", "error"),
    ("expert", "expert"),
    ("guard", "guard"),
    ("ignored", "ignored_fields"),
    ("key", "key"),
)


def _word(said: dict[str, Any], key: str) -> str:
    return escape(str(said.get(key, "")))


def _cache(said: dict[str, Any]) -> str:
    """How the cache served it; a request that never came so far says nothing of it."""
    age = f" ({said['cache_age_s']:.0f} s old)" if "cache_age_s" in said else ""
    return _word(said, "cache") + age if "model" in said else ""


def _showable(value: object) -> object:
    """A value that the renderer cannot show unsafely: a safe text as it is, others quoted."""
    if isinstance(value, str):
        return _Shown(repr(value)) if _UNSAFE.search(value) else value
    return _Shown(escape(_text(value, repr)))


def _indented(text: str) -> str:
    """Lines of a traceback, none of which can be taken for a log line of its own."""
    return "\n".join("  " + escape(line) for line in text.expandtabs(4).split("\n"))
