"""Forms: however they are cut into pieces, the same file is written; what breaks off or is too slow is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from stoker.errors import RequestError, StokerError, UnsupportedMediaType
from stoker.http.middleware import BodyTimeout, ClientGone
from stoker.http.uploads import Form, receive_form

KIND = "multipart/form-data; boundary=bb"


class Sink:
    """Takes what is written."""

    def __init__(self) -> None:
        self.content = b""

    async def write(self, data: bytes) -> None:
        self.content += data


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--bb\r\nContent-Disposition: form-data; name="{name}"{named}\r\nContent-Type: text/plain\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--bb--\r\n"


async def receive(
    pieces: Sequence[bytes],
    kind: str = KIND,
    *,
    gone: bool = False,
    hang: bool = False,
    patience_s: float = 30.0,
    **headers: str,
) -> tuple[Form, bytes]:
    waiting = list(pieces)

    async def next_piece() -> dict[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or gone or hang}
        if hang:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, next_piece)
    sink: Any = Sink()
    return await receive_form(request, sink, patience_s), sink.content


@given(st.binary(max_size=300), st.data())
async def test_how_a_form_comes_makes_no_difference(content: bytes, data: st.DataObject) -> None:
    if b"--bb" in content:
        return
    whole = form(part("purpose", b"batch"), part("file", content, "ä.jsonl"), part("x", b"y"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found, written = await receive(pieces)
    assert written == content
    assert found == Form("ä.jsonl", {"purpose": "batch", "x": "y"})


async def test_a_form_without_a_file() -> None:
    assert await receive([form(part("purpose", b"batch"))]) == (Form(None, {"purpose": "batch"}), b"")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"nonsense"],
        [b""],
        [form(part("file", b"x", "a"))[:-8]],
        [part("file", b"x", "a"), b"--bb\r\n: :\r\n\r\n"],
        [form(part("file", b"x", "a"), part("file", b"y", "b"))],
        [form(part("a", b"x" * 4097))],
        [form(*(part(f"{n}", b"x") for n in range(17)))],
        [b"--bb\r\n" + b"x-header: a\r\n" * 1000],
        [b"--bb\r\nx-header: " + b"a" * 100_000],
    ],
)
async def test_broken_forms_are_refused(pieces: list[bytes]) -> None:
    with pytest.raises(RequestError):
        await receive(pieces)


@pytest.mark.parametrize("kind", ["application/json", "", "multipart/mixed; boundary=bb", "multipart"])
async def test_what_is_no_form_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        await receive([form()], kind)


@pytest.mark.parametrize("kind", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 5000}"])
async def test_a_form_without_a_sane_boundary_is_refused(kind: str) -> None:
    with pytest.raises(RequestError):
        await receive([form(part("file", b"x", "a"))], kind)


async def test_compressed_forms_are_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        await receive([form()], content_encoding="gzip")


@pytest.mark.parametrize(
    ("how", "error"), [({"gone": True}, ClientGone), ({"hang": True, "patience_s": 0.01}, BodyTimeout)]
)
async def test_a_file_that_does_not_come_to_its_end(how: dict[str, Any], error: type[StokerError]) -> None:
    with pytest.raises(error):
        await receive([part("file", b"x", "a")[:-2]], **how)
