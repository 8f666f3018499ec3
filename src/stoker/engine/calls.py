"""Read emulated tool calls out of an answer's text while it streams.

The form is `<tool_call>name({...})`, held by `grammar.held_tools`; text may stand before the first call. Pieces
arrive cut anywhere, so the parser keeps back only what may be the beginning of a call. Small models, free to make
several calls, like to repeat one word for word: a call equal to an earlier one of the same answer is dropped, and the
answer counts as settled.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from stoker.engine.grammar import JOINER, OPENER, HeldJson
from stoker.engine.shape import Shape
from stoker.errors import RequestError
from stoker.types import Chunk, FinishReason, ToolCallDelta, ToolUse

_NAME: Final = re.compile(r"[^\s(){}<>\"]{1,256}")


@dataclass(slots=True)
class Read:
    """What became certain with a piece of text: text before any call, then pieces of calls."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


def new_id() -> str:
    """A tool call's id in OpenAI's form, unique."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolCallParser:
    """Incremental: any split of a text gives the same text and calls in sum.

    Args:
        must_call: the answer is held to begin with a call; other text means that the engine did not apply the grammar.
        make_id: gives each call its id.
    """

    def __init__(self, *, must_call: bool = False, make_id: Callable[[], str] = new_id) -> None:
        self._must_call = must_call
        self._make_id = make_id
        self._state: Literal["text", "name", "arguments", "after", "settled"] = "text"
        self._buffer = ""
        self._earlier: list[str] = []
        self._call = ""  # the call at hand, `name(` and its arguments so far
        self._name = ""
        self._emitted = 0  # characters of the arguments at hand that were given out; -1 before its first piece
        self._depth = 0
        self._in_string = self._escaped = False
        self._text: list[str] = []
        self._deltas: list[ToolCallDelta] = []

    @property
    def called(self) -> bool:
        """Whether at least one call was read to its end."""
        return bool(self._earlier)

    @property
    def settled(self) -> bool:
        """Whether the model began to repeat itself: what follows adds nothing, and the generation may be ended."""
        return self._state == "settled"

    @property
    def cut(self) -> bool:
        """Whether the text read so far ends within a call."""
        return self._state in {"name", "arguments"}

    def feed(self, text: str) -> Read:
        """Take the next piece of the answer's text.

        Raises:
            RequestError: a call had to come and something else did.
        """
        self._buffer += text
        steps = {
            "text": self._read_text,
            "name": self._read_name,
            "arguments": self._read_arguments,
            "after": self._read_after,
        }
        while self._state != "settled" and self._buffer and steps[self._state]():
            pass
        if self.settled:
            self._buffer = ""
        return self._taken()

    def finish(self) -> Read:
        """The text has ended: what was kept back as a possible beginning of a call was text after all."""
        if self._state == "text" and not self._must_call:
            self._text.append(self._buffer)
        elif self._state == "name" and not self._must_call:
            self._text.append(OPENER + self._buffer)
        elif self._state == "arguments":
            self._give_arguments()
        self._buffer = ""
        return self._taken()

    def _taken(self) -> Read:
        read = Read("".join(self._text), tuple(self._deltas))
        self._text, self._deltas = [], []
        return read

    def _read_text(self) -> bool:
        before, opener, rest = self._buffer.partition(OPENER)
        if self._must_call and not self.called and not (opener and not before) and not OPENER.startswith(self._buffer):
            raise RequestError(
                "the engine could not hold the answer to the tools' schemas; simplify their parameters", param="tools"
            )
        if opener:
            self._text.append(before)
            self._buffer, self._state = rest, "name"
            return True
        kept = _possible_opening(self._buffer)
        self._text.append(self._buffer[: len(self._buffer) - kept])
        self._buffer = self._buffer[len(self._buffer) - kept :]
        return False

    def _read_name(self) -> bool:
        name, parenthesis, rest = self._buffer.partition("(")
        if (name and not _NAME.fullmatch(name)) or (parenthesis and (not name or (rest and rest[0] != "{"))):
            self._text.append(OPENER)
            self._state = "text"
            return True
        if not rest:
            return False
        self._name, self._buffer, self._state = name, rest, "arguments"
        self._call, self._emitted, self._depth = f"{name}(", -1, 0
        return True

    def _read_arguments(self) -> bool:
        for position, character in enumerate(self._buffer):
            if self._closes(character):
                return self._end_call(position + 1)
        self._call += self._buffer
        self._buffer = ""
        if not any(earlier.startswith(self._call) for earlier in self._earlier):
            self._give_arguments()
        return False

    def _closes(self, character: str) -> bool:
        """Follow JSON's strings and brackets by one character; whether the outermost bracket closes with it."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    def _end_call(self, length: int) -> bool:
        self._call += self._buffer[:length]
        self._buffer = self._buffer[length:]
        if self._call in self._earlier:
            self._state = "settled"
            return False
        self._give_arguments()
        self._earlier.append(self._call)
        self._state = "after"
        return True

    def _give_arguments(self) -> None:
        arguments = self._call[len(self._name) + 1 :]
        index = len(self._earlier)
        if self._emitted < 0:
            self._deltas.append(ToolCallDelta(index, self._make_id(), self._name, arguments))
        elif arguments[self._emitted :]:
            self._deltas.append(ToolCallDelta(index, arguments=arguments[self._emitted :]))
        self._emitted = len(arguments)

    def _read_after(self) -> bool:
        rest = self._buffer.lstrip(") \t\r\n")
        for opening in (OPENER, JOINER.lstrip() + OPENER):
            if rest.startswith(opening):
                self._buffer, self._state = rest[len(opening) :], "name"
                return True
        self._buffer = rest
        if OPENER.startswith(rest) or (JOINER.lstrip() + OPENER).startswith(rest):
            return False
        self._state = "text"
        return True


def _possible_opening(text: str) -> int:
    """Length of the longest end of a text that an opener may begin with."""
    for length in range(min(len(OPENER) - 1, len(text)), 0, -1):
        if OPENER.startswith(text[-length:]):
            return length
    return 0


class ToolStream:
    """The same for a stream of chunks: text in, text and tool calls out, the finish reason put right."""

    def __init__(self, use: ToolUse | None = None, shapes: Mapping[str, Shape] = MappingProxyType({})) -> None:
        self._parser = ToolCallParser(must_call=use is not None and use.choice in {"required", "named"})
        self._shapes = shapes
        self._made: dict[int, tuple[str, str]] = {}

    @property
    def settled(self) -> bool:
        """As `ToolCallParser.settled`: the caller may stop reading and finish with `tool_calls`."""
        return self._parser.settled

    def feed(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """What the caller of the model sees of a chunk; nothing when its text is kept back.

        Raises:
            RequestError: a call had to come and something else did, or one came that its schema does not accept.
        """
        read = self._parser.feed(chunk.text)
        text, calls = read.text, read.calls
        finish = chunk.finish_reason
        if finish is not None:
            finish = self._finish(finish)
            rest = self._parser.finish()
            text, calls = text + rest.text, calls + rest.calls
        for delta in calls:
            name, arguments = self._made.get(delta.index, ("", ""))
            self._made[delta.index] = (delta.name or name, arguments + delta.arguments)
        if finish == "tool_calls":
            self._check()
        seen = replace(chunk, text=text, tool_calls=chunk.tool_calls + calls, finish_reason=finish)
        return (seen,) if seen != Chunk() else ()

    def _finish(self, reason: FinishReason) -> FinishReason:
        if self._parser.settled:
            return "tool_calls"
        if reason == "stop" and self._parser.cut:
            return "length"  # a stop string of the caller's came inside a call
        if reason == "stop" and self._parser.called:
            return "tool_calls"
        return reason

    def _check(self) -> None:
        """What came is what the grammar was to hold; where it is not, the engine did not apply it."""
        for name, arguments in self._made.values():
            shape = self._shapes.get(name)
            if shape is not None and (problem := shape.problem(arguments)):
                raise RequestError(
                    f"the engine could not hold a call of {name!r} to its schema ({problem}); simplify its parameters",
                    param="tools",
                )


class JsonStream:
    """A held JSON answer on its way out: one that begins as its shape cannot was generated without the grammar."""

    settled = False
    """A JSON answer ends by itself."""

    def __init__(self, held: HeldJson) -> None:
        self._held = held
        self._text: list[str] = []

    def feed(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """The chunk as it is.

        Raises:
            RequestError: the answer begins as its shape cannot, or ended by itself without having it.
        """
        if chunk.text and not self._text and chunk.text[0] not in self._held.opens:
            raise self._refusal("it begins with something else")
        self._text.append(chunk.text)
        if chunk.finish_reason == "stop" and (problem := self._held.shape.problem("".join(self._text))):
            raise self._refusal(problem)
        return (chunk,)

    @staticmethod
    def _refusal(problem: str) -> RequestError:
        return RequestError(
            f"the engine could not hold the answer to the schema ({problem}); simplify it", param="response_format"
        )
