"""A file that comes as `multipart/form-data` (RFC 7578): it goes to disk as it arrives, never whole in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from stoker.errors import RequestError, UnsupportedMediaType
from stoker.http.middleware import BodyTimeout, ClientGone
from stoker.jobs.writing import Writing

if TYPE_CHECKING:  # the library has the name for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

FORM: Final = b"multipart/form-data"
SLOWEST: Final = 64 * 1024
"""Bytes a second that a file must come with, on the whole; after the time that any body has."""
_MAX_PARTS: Final = 16
_MAX_FIELD_OCTETS: Final = 4096


@dataclass(slots=True)
class Form:
    """What came: the name that the file had, None when there was no file, and the other fields."""

    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


async def receive_form(request: Request, writing: Writing, patience_s: float) -> Form:
    """Write the part `file` of a form away, and return the rest of it.

    Args:
        request: with an unread body.
        writing: where the file goes.
        patience_s: seconds in which a body must arrive; a larger one has more, by its size.

    Raises:
        UnsupportedMediaType: it is no form, or compressed.
        RequestError: it is a broken form, or has too many fields.
        PayloadTooLarge, FilesFull: the file is too large.
        BodyTimeout: it came too slowly.
        ClientGone: the client left before its end.
    """
    reader = _Reader()
    try:
        parser = MultipartParser(_boundary(request), reader.callbacks)
        async for piece in _arriving(request, patience_s):
            parser.write(piece)
            for data in reader.take():
                await writing.write(data)
        parser.finalize()
    except FormParserError:
        raise RequestError("the body is no valid multipart form; a client library writes one that is") from None
    if not reader.complete:
        raise RequestError("the form ends before its last boundary; a client library writes one that does not")
    return reader.form


def _boundary(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMediaType(f"content-encoding {encoding[:64]!r}: send the body as it is, uncompressed")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != FORM:
        raise UnsupportedMediaType("files come as multipart/form-data, with the parts `purpose` and `file`")
    return options.get(b"boundary", b"")


async def _arriving(request: Request, patience_s: float) -> AsyncGenerator[bytes]:
    """The body, piece by piece, as long as it comes fast enough."""
    begun = time.monotonic()
    octets = 0
    pieces = aiter(request.stream())
    while True:
        left = begun + patience_s + octets / SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(left):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BodyTimeout(f"the file came too slowly: {octets} bytes in {time.monotonic() - begun:.0f} s") from None
        except ClientDisconnect:
            raise ClientGone("the client closed the connection before its file was complete") from None
        octets += len(piece)
        yield piece


class _Reader:
    """Takes what the parser finds; it calls back in the middle of its work, so nothing here waits."""

    def __init__(self) -> None:
        self.form = Form()
        self.complete = False
        self._parts = 0
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._name = ""
        self._is_file = False
        self._field = bytearray()
        self._file: list[bytes] = []

    @property
    def callbacks(self) -> MultipartCallbacks:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def take(self) -> list[bytes]:
        """What has come of the file since the last time."""
        taken, self._file = self._file, []
        return taken

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise RequestError(f"the form has more than {_MAX_PARTS} parts")
        self._disposition = b""
        self._field.clear()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == "file"
        if not self._is_file:
            return
        if self.form.filename is not None:
            raise RequestError("file: is there twice; send one file at a time", param="file")
        self.form.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.append(data[start:end])
            return
        if len(self._field) + end - start > _MAX_FIELD_OCTETS:
            raise RequestError(f"{self._name[:64]}: is longer than {_MAX_FIELD_OCTETS} bytes", param=self._name[:64])
        self._field += data[start:end]

    def _end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._field.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True
