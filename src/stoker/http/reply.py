"""An answer on its way to the client, streamed or whole, as a raw ASGI response.

It watches for the client's leaving from the first moment, which a relay does not notice by itself, and cancels the
generation then. The status line waits for the first chunk, so that an early failure still gets its proper status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stoker.admission.auth import Caller
from stoker.errors import EngineError, NotReady, StokerError
from stoker.http.envelope import retry_headers
from stoker.http.gathering import gathered
from stoker.http.render import Renderer
from stoker.observability.logging import get_logger
from stoker.observability.record import Record
from stoker.pipeline import Admitted, Pipeline
from stoker.types import Chunk, GenerationRequest

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
_log = get_logger("http")


class Reply(Response):
    """Runs requests through the pipeline and sends what comes.

    Args:
        pipeline: where the answers come from.
        requests: one, or several prompts of one call.
        caller: who asks.
        renderer: how the route shows answers.
        record: the request's log record; written when the reply ends.
        stream: whether to send events or one body.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        requests: Sequence[GenerationRequest],
        caller: Caller,
        renderer: Renderer,
        record: Record,
        *,
        stream: bool,
    ) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._requests = requests
        self._caller = caller
        self._renderer = renderer
        self._record = record
        self._stream = stream
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply; returns early, without an exception, when the client leaves."""
        watcher = asyncio.create_task(self._watch(receive, asyncio.current_task()))
        headers = Headers(scope=scope)
        if self._stream and scope.get("http_version") == "1.0":
            send = _Gathered(send)
        try:
            await self._send(send, headers)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._record.disconnected or task is None:
                self._record.status, self._record.error = NotReady.status, NotReady("the server stopped")
                raise
            task.uncancel()  # the cancellation was ours, and it has done its work
        except Exception:
            self._record.status, self._record.error = 500, StokerError("an unexpected error")
            raise
        finally:
            watcher.cancel()
            self._record.close()

    async def _send(self, send: Send, headers: Mapping[str, str]) -> None:
        """Admit the call and send its answers; an error before the first byte gets its own status."""
        try:
            async with self._pipeline.admitted(self._requests, self._caller, headers, self._record) as calls:
                if self._stream:
                    await self._send_stream(send, calls)
                else:
                    await self._send_whole(send, calls)
        except StokerError as error:
            self._record.error = error
            if self._begun:
                _log.warning("stream broken", request_id=self._record.id, error=error.code, detail=error.message)
                await _body(send, self._renderer.broken(error), more=False)
            else:
                await self._refuse(send, error)

    async def _watch(self, receive: Receive, task: asyncio.Task[None] | None) -> None:
        """Cancel the reply when the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            self._record.disconnected = True
            task.cancel()

    async def _send_stream(self, send: Send, calls: Sequence[Admitted]) -> None:
        for index, call in enumerate(calls):
            async with contextlib.aclosing(self._pipeline.answer(call, self._record)) as chunks:
                async for chunk in chunks:
                    event = self._renderer.event(index, chunk) if self._begun else await self._open(send, index, chunk)
                    if event:
                        await _body(send, event, more=True)
        if not self._begun:
            raise EngineError("the engine ended without an answer", retry_after=1)
        await _body(send, self._renderer.end(self._record.usage), more=False)

    async def _open(self, send: Send, index: int, chunk: Chunk) -> bytes:
        """Begin the stream with its status; the first bytes of its body."""
        self._begun = True
        headers = [*STREAM_HEADERS, *self._record.answer_headers()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        return self._renderer.begin(self._record.served()) + self._renderer.event(index, chunk)

    async def _send_whole(self, send: Send, calls: Sequence[Admitted]) -> None:
        answers = await gathered(self._pipeline, calls, self._record)
        body = self._renderer.whole(self._record.served(), answers, self._record.usage)
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length, *self._record.answer_headers()]
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _body(send, body, more=False)

    async def _refuse(self, send: Send, error: StokerError) -> None:
        """An error before the first byte: its own status, in the route's envelope."""
        self._record.status = error.status
        body, kind = self._renderer.refusal(error)
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *retry_headers(error)]
        headers += self._record.headers
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await _body(send, body, more=False)


class _Gathered:
    """Sends a stream in one piece: HTTP/1.0 knows no chunks, and without them an end cannot be told from a break."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Keep a part; with the last one, send all."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = b"".join(self._parts)
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
