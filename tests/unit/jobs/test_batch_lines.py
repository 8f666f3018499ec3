"""Lines of batches' files: however the file is cut into pieces, the same lines are read, and each fault is named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import RequestError
from stoker.jobs.batch_lines import (
    Fault,
    Line,
    LineTooLong,
    answered,
    left_over,
    name_of,
    read_line,
    refused,
    split,
)
from stoker.store.jobs import WORKER_LOST, Job

URL = "/query"
GOOD = {"custom_id": "a", "method": "POST", "url": URL, "body": {"text": "hi"}}


async def in_pieces(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def lines_of(pieces: Sequence[bytes], most: int = 100, offset: int = 0, number: int = 0) -> list:
    return [found async for found in split(in_pieces(pieces), most, offset, number)]


@given(st.lists(st.sampled_from([b"a", b"\n", b"bc", b" ", b"\r\n", b"\n\n"])), st.data())
async def test_how_a_file_comes_makes_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = await lines_of(pieces)
    expected = [(n, text) for n, text in enumerate(whole.split(b"\n"), 1) if text.strip()]
    assert [(number, text) for number, text, _ in found] == expected
    for position, (number, _, end) in enumerate(found):
        assert await lines_of([whole[end:]], offset=end, number=number) == found[position + 1 :]


@pytest.mark.parametrize(
    "pieces", [[b"ab\n" + b"x" * 101 + b"\n"], [b"ab\n", b"x" * 60, b"x" * 60], [b"\nx" * 1 + b"x" * 100]]
)
async def test_a_line_that_is_too_long_ends_the_reading(pieces: list[bytes]) -> None:
    with pytest.raises(LineTooLong) as caught:
        await lines_of(pieces)
    assert caught.value.number == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"custom_id": ""}, "invalid_custom_id"),
        ({"custom_id": None}, "invalid_custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id"),
        ({"method": "post"}, "invalid_method"),
        ({"url": "/v1/models"}, "mismatched_url"),
        ({"body": [1]}, "invalid_body"),
        ({"body": {"text": "x" * 200}}, "body_too_large"),
    ],
)
def test_lines_are_read_or_their_fault_is_named(changes: dict, code: str | None) -> None:
    found = read_line(7, json.dumps({**GOOD, **changes}).encode(), 99, URL, 200)
    if code is None:
        assert found == Line(7, "a", b'{"text":"hi"}', 99)
    else:
        assert isinstance(found, Fault)
        assert (found.code, found.line) == (code, 7)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"a"', b"\xff", b'{"custom_id": NaN}', b"[" * 2000])
def test_what_is_no_json_object_is_a_fault(text: bytes) -> None:
    found = read_line(1, text, 0, URL, 200)
    assert isinstance(found, Fault)
    assert found.code == "invalid_json_line"


def test_the_mark_that_some_editors_write_first_is_no_fault() -> None:
    text = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    assert isinstance(read_line(1, text, 0, URL, 200), Line)
    assert isinstance(read_line(2, text, 0, URL, 200), Fault)


def ended(state: str, **fields: object) -> Job:
    return Job("j1", "ann", URL, b"", custom_id="a", state=state, **fields)  # type: ignore[arg-type]


def test_answers() -> None:
    text, good = answered(ended("succeeded", result=b'{"n":1.0}'))
    assert good
    assert b'"body":{"n":1.0}' in text
    assert json.loads(text) == {
        "id": "batch_req_j1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "j1", "body": {"n": 1.0}},
        "error": None,
    }
    text, good = answered(ended("failed", error=b'{"code":"c","message":"m","type":"t","status":400,"param":"p"}'))
    assert not good
    assert json.loads(text)["response"] == {
        "status_code": 400,
        "request_id": "j1",
        "body": {"error": {"code": "c", "message": "m", "type": "t", "param": "p"}},
    }
    assert json.loads(answered(ended("failed", error=WORKER_LOST))[0])["response"]["status_code"] == 500
    for state, code in (("cancelled", "cancelled"), ("expired", "batch_expired")):
        text, good = answered(ended(state))
        assert (good, json.loads(text)["response"], json.loads(text)["error"]["code"]) == (False, None, code)


def test_lines_without_a_job() -> None:
    line = Line(3, "ä", b"{}", 9)
    text = refused("batch_1", line, RequestError("no", param="text"))
    assert name_of(text) == "ä"
    assert json.loads(text)["response"]["body"]["error"]["param"] == "text"
    assert json.loads(left_over("batch_1", line, "batch_expired"))["error"]["code"] == "batch_expired"
