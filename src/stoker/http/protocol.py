"""The HTTP/1.1 protocol of every connection: uvicorn's, with bounds for clients that send or read too slowly.

A head has a size and a time in which it must be complete, and bytes that were written must be read. Without them a
client that never finishes its head takes memory without end, and one that reads nothing keeps its slot at an engine.
Source: RFC 9110 (5.4 limits of fields, 7.8 Upgrade), RFC 9112 (9.3.2 pipelining).
"""

from __future__ import annotations

import asyncio
import re
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stoker.config import TimeoutConfig
from stoker.errors import Overloaded, RequestError, StokerError
from stoker.http.envelope import PROBLEM_TYPE, problem, retry_headers

MAX_HEAD_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 128 * 1024
MAX_PIPELINED = 16  # requests that a client sends ahead of their answers; RFC 9112 leaves the number to us
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class BadHttp(RequestError):
    """What arrived is not HTTP."""

    code = "bad_http"


class HeadTooLarge(RequestError):
    """The request line and headers are larger than anybody needs."""

    status = 431
    code = "headers_too_large"


class HeadTimeout(RequestError):
    """The request line and headers did not arrive in time."""

    status = 408
    code = "request_timeout"


class Protocol(HttpToolsProtocol):
    """One client's connection.

    Args:
        timeouts: `body` bounds the time of a head too; `unread` that of written bytes.
        most: connections at once.
        options: uvicorn's own.
    """

    def __init__(self, *, timeouts: TimeoutConfig, most: int, **options: Any) -> None:
        super().__init__(**options)
        self._most = most
        self._timeouts = timeouts
        self._in_head = True
        self._between = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; it may idle as long as between two requests."""
        super().connection_made(transport)
        if (connection := transport.get_extra_info("socket")) is not None:
            # The system would take megabytes for a client that reads nothing, and we would not notice it for minutes.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > self._most:
            self._refuse(Overloaded(f"{self._most} connections are open already; try again later", retry_after=1))
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """A client went: tell the request that is being answered, which uvicorn does only for the latest one."""
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; a head that grows beyond its bound ends the connection."""
        if self._in_head or self._between:
            data = _without_upgrade(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"the request's head is larger than {MAX_HEAD_BYTES} bytes; send fewer headers"))
        elif self._head_timer is None:
            timeout = HeadTimeout(f"the request's head did not arrive within {self._timeouts.body:g} s")
            self._head_timer = self.loop.call_later(self._timeouts.body, self._refuse, timeout)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._between = True, False
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
        elif self.pipeline:
            # uvicorn stops reading when requests queue up, and would not see that the client leaves
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """A request is complete; what follows on the connection is a head again."""
        super().on_message_complete()
        self._between = True

    def pause_writing(self) -> None:
        """The client does not read: it has a while to begin again."""
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._timeouts.unread, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, as a problem of RFC 9457; nobody can say for which path it was meant."""
        del msg
        self._refuse(BadHttp("this is not a valid HTTP/1.1 request"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: StokerError) -> None:
        """Say why and close, unless an answer to an earlier request is being written."""
        answering = self._answering
        if answering is not None and not answering.response_started:
            answering.disconnected = True  # its body will never be complete: this is its answer
            answering.message_event.set()
        if answering is None or answering.disconnected or answering.response_complete:
            body = problem(error)
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-length: {len(body)}\r\n"
            more = b"".join(name + b": " + value + b"\r\n" for name, value in retry_headers(error))
            kind = more + b"content-type: " + PROBLEM_TYPE + b"\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + kind + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """The bytes with a head's `Upgrade` field renamed: we speak nothing else, and the parser would drop the body."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    renamed = _UPGRADE.sub(b"\r\nx-upgrade:", head)
    return data if renamed == head else renamed + data[len(head) :]
