"""Regular expressions that the grammar engine takes, and those it does not."""

from __future__ import annotations

import pytest

from stoker.engine.schema_forms import pattern_problem

# What LLGuidance itself said of each, with a `maxLength` of 4000.
TAKEN = [
    r".*", r"^a+$", r"foo", r"^(a|b)*$", r"^\d{3}-\d{4}$", r"^[^\s]+@[^\s]+$", r"^\w+$", r"^.{1,600}$", r"a{1,1000}",
    r"\u0041", r"\/", r"^[\w.-]+$", r"(?P<x>a)", r"(?<x>a)", r"a*?", r"^$", r"a|^b$", r"(^a)|b", r"^a$|^b$", r"\x41",
    r"[\-a]", r"\p{Letter}", r"^\p{L}+$", r"\p{Lu}\P{Lu}", r"(?:a|b)+", r"(?:)", r"()", r"a||b", r"\(*",
    r"[\]]", r"[a-]",
    r"^(?:[0-9a-zA-Z+/]{4})*(?:[0-9a-zA-Z+/]{2}==)?$", "é+", "[é-ü]{2}", r"[\x00-\x1f]", r"(a+)+", " ", "\n",
]  # fmt: skip
REFUSED = [
    r"\bfoo\b", r"\cA", r"^\Z", r"\0", r"(a)\1", r"[a&&b]", r"a{,3}", r"x^y", r"x$y", r"(a{100}){100}",
    r"((a{30}){30}){30}",
    r"[^]", r"[]", r"{a", r"\e", r"a)", r"(", r"[a-z", r"[z-a]", r"a{3,2}", r"(*)", r"[a-\d]", r"^(?=a)",
    r"(?<!a)b", r"(?>a)",
    r"\ud83d", r"(?P<x>a)(?P<x>b)", r"^([a-z]{60} ){30}$", "a" * 513, "a\\", None, 5,
]  # fmt: skip


@pytest.mark.parametrize("pattern", TAKEN)
def test_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: str(pattern)[:20])
def test_refused(pattern: object) -> None:
    assert pattern_problem(pattern)


def test_hostile_patterns_are_judged_quickly() -> None:
    for pattern in ("(" * 500, "[" * 500, "a?" * 250, "(a" * 250, "\\" * 500, "{1}" * 170, "((((a+)+)+)+)+" * 30):
        pattern_problem(pattern)
