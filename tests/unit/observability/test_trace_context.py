"""Trace context by the W3C's recommendation: what counts, what is ignored, what is passed on."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker.observability.trace_context import STATE_CHARS, TraceParent, format_parent, parse_parent, parse_state
from stoker.observability.tracing import Tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]")
VALID_KEY = r"([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
VALID_MEMBER = re.compile(VALID_KEY + r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 3),  # flags nobody knows yet are not passed on
        (f" \t00-{TRACE}-{SPAN}-01\t ", 1),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-holds", 1),
        (f"fe-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_a_valid_parent_is_read_and_passed_on_as_version_00(header: str, flags: int) -> None:
    parent = parse_parent(header)
    assert parent == TraceParent(TRACE, SPAN, flags)
    assert format_parent(parent) == f"00-{TRACE}-{SPAN}-{flags:02x}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"0A-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-what-the-future-holds",
        f"cc-{TRACE}-{SPAN}-01.what-the-future-holds",
        f"cc-{TRACE}-{SPAN}-0",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"\u0660\u0660-{TRACE}-{SPAN}-01",
        "00-" + "g" * 32 + f"-{SPAN}-01",
    ],
)
def test_any_other_parent_is_ignored(header: str | None) -> None:
    assert parse_parent(header) is None


@pytest.mark.parametrize(
    ("header", "passed_on"),
    [
        (None, ""),
        ("", ""),
        ("foo=1", "foo=1"),
        ("foo=1,bar=2", "foo=1,bar=2"),
        ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
        (",foo=1,,\t,bar=2,", "foo=1,bar=2"),
        ("foo=1,foo=2,bar=3", "foo=1,bar=3"),
        ("tenant1@vendor=x,1t@v=y", "tenant1@vendor=x,1t@v=y"),
        ("a*/-_9=!~ x", "a*/-_9=!~ x"),
        ("a" * 256 + "=1", "a" * 256 + "=1"),
        ("foo=" + "v" * 256, "foo=" + "v" * 256),
        ("t" * 241 + "@" + "v" * 14 + "=1", "t" * 241 + "@" + "v" * 14 + "=1"),
        (",".join(f"k{n}=1" for n in range(32)), ",".join(f"k{n}=1" for n in range(32))),
        # errors: the whole of it is nobody's
        (",".join(f"k{n}=1" for n in range(33)), ""),
        ("foo", ""),
        ("foo=", ""),
        ("=1", ""),
        ("foo =1", ""),
        ("foo=1=2", ""),
        ("Foo=1", ""),
        ("1foo=1", ""),
        ("foo@=1", ""),
        ("@foo=1", ""),
        ("a@b@c=1", ""),
        ("foo=1,b\x00r=2", ""),
        ("foo=\xe4", ""),
        ("foo=1\n", ""),
        ("a" * 257 + "=1", ""),
        ("foo=" + "v" * 257, ""),
        ("t" * 242 + "@v=1", ""),
        ("t@" + "v" * 15 + "=1", ""),
        ("," * 9000 + "foo=1", ""),
    ],
)
def test_state(header: str | None, passed_on: str) -> None:
    assert parse_state(header) == passed_on


def test_a_long_state_loses_large_members_first_and_then_the_last_ones() -> None:
    small = [f"small{n}=" + "v" * 92 for n in range(4)]  # 99 each
    large = ["large=" + "v" * 200, "larger=" + "v" * 180]
    assert parse_state(",".join([large[0], *small, large[1]])) == ",".join(small)
    assert parse_state(",".join([large[0], small[0], large[1]])) == ",".join([large[0], small[0], large[1]])
    assert parse_state(",".join([large[0], small[0], large[1], small[1]])) == ",".join([large[0], small[0], small[1]])
    many = [f"key{n:02}=" + "v" * 94 for n in range(8)]  # 100 each
    assert parse_state(",".join(many)) == ",".join(many[:5])
    exact = [*many[:4], "last=" + "v" * 103]
    assert len(parse_state(",".join(exact))) == STATE_CHARS


hostile = st.text(st.characters(codec="latin-1"), max_size=80)
pieces = st.sampled_from(
    ["00", "01", "ff", "cc", TRACE, SPAN, "0" * 32, "0" * 16, "-", "-", "-", "01", "03", "\n", " "]
)
parents = st.one_of(
    hostile,
    st.lists(pieces, max_size=10).map("".join),
    st.builds(
        "{}-{}-{}-{}{}".format, *[st.text("0123456789abcdefF", min_size=n, max_size=n) for n in (2, 32, 16, 2)], hostile
    ),
)
members = st.one_of(
    hostile,
    st.builds("{}={}".format, st.text("ab0@_-*/A", max_size=300), st.text("xy =,;\t", max_size=300)),
)
states = st.one_of(hostile, st.lists(members, max_size=40).map(",".join))


@given(parents, st.one_of(st.none(), states))
@example(f"00-{TRACE}-{SPAN}-01", "foo=1")
@example(f"00-{TRACE}-{SPAN}-01", ",".join(f"k{n}=" + "v" * 120 for n in range(32)))
def test_whatever_comes_what_is_passed_on_is_valid(traceparent: str, tracestate: str | None) -> None:
    trace = Tracer(None, 0).begin(traceparent, tracestate)
    if trace is None:
        return
    headers = trace.headers()
    assert VALID_PARENT.fullmatch(headers["traceparent"])
    assert trace.trace_id == headers["traceparent"].split("-")[1]
    if "tracestate" in headers:
        told = headers["tracestate"].split(",")
        assert len(headers["tracestate"]) <= STATE_CHARS
        assert len(told) <= 32
        assert all(VALID_MEMBER.fullmatch(member) for member in told)
        assert len({member.split("=")[0] for member in told}) == len(told)
