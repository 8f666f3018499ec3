"""What an answer lacks of what is expected, in words. Pure, and bounded for any answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Final

from stoker.evaluation.asking import Reply
from stoker.evaluation.shapes import pattern_occurs, shape_problem
from stoker.evaluation.words import folded, occurs
from stoker.evaluation.written import Expect

REFUSES_WITHIN: Final = 400
"""Characters from the beginning in which an answer says that it refuses."""


def failures_of(expect: Expect, reply: Reply) -> tuple[str, ...]:
    """Everything that is expected and not there; a judge's opinion is asked for elsewhere."""
    failures = (*_words(expect, reply.text), *_form(expect, reply.text), *_length(expect, reply))
    if not failures and not reply.text.strip() and expect.exact != "":
        failures = ("the answer is empty",)
    if failures and reply.finish_reason == "length":
        failures = (*failures, "it was cut off at `max_tokens`")
    return failures


def is_refusal(text: str) -> bool:
    """Whether an answer begins with one of the phrases in `refusals.txt`, or has it near its beginning."""
    beginning = folded(text[:REFUSES_WITHIN])
    return any(occurs(phrase, beginning) for phrase in _refusals())


def _words(expect: Expect, answer: str) -> Iterator[str]:
    text = folded(answer)
    if expect.contains_any and not any(occurs(phrase, text) for phrase in expect.contains_any):
        yield f"none of {_quoted(expect.contains_any)} is in it"
    missing = tuple(phrase for phrase in expect.contains_all or () if not occurs(phrase, text))
    if missing:
        yield f"without {_quoted(missing)}"
    unwanted = tuple(phrase for phrase in expect.not_contains or () if occurs(phrase, text))
    if unwanted:
        yield f"{_quoted(unwanted)} is in it"


def _form(expect: Expect, answer: str) -> Iterator[str]:
    if expect.exact is not None and answer.strip() != expect.exact.strip():
        yield f"it is not {_quoted((expect.exact.strip(),))}"
    if expect.regex is not None and not pattern_occurs(expect.regex, answer):
        yield f"the pattern {expect.regex[:80]} does not occur"
    if expect.json_schema is not None:
        problem = shape_problem(answer, expect.json_schema)
        if problem is not None:
            yield f"JSON: {problem}"
    if expect.refusal is not None and is_refusal(answer) != expect.refusal:
        yield "it does not refuse" if expect.refusal else "it refuses"


def _length(expect: Expect, reply: Reply) -> Iterator[str]:
    if expect.max_chars is not None and len(reply.text) > expect.max_chars:
        yield f"{len(reply.text):,} characters, at most {expect.max_chars:,} are wanted"
    if expect.max_tokens is None:
        return
    if reply.tokens is None:
        yield "the server did not say how many tokens it has"
    elif reply.tokens > expect.max_tokens:
        yield f"{reply.tokens:,} tokens, at most {expect.max_tokens:,} are wanted"


def _quoted(phrases: tuple[str, ...]) -> str:
    shown = ", ".join(f"{phrase[:60]!r}" for phrase in phrases[:5])
    return shown if len(phrases) <= 5 else f"{shown} and {len(phrases) - 5} more"  # noqa: PLR2004 - a line's worth


@cache
def _refusals() -> tuple[str, ...]:
    text = resources.files("stoker.evaluation").joinpath("refusals.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
