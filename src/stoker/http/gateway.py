"""What routes share: the pipeline, the reader of wire forms, and who is asking."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from stoker.admission.addresses import Network, client_address, is_loopback
from stoker.admission.auth import Caller, KeyRing
from stoker.config import Scope, Settings
from stoker.http.middleware import Arriving, ClientGone, bounded_body
from stoker.http.parse import Reader
from stoker.observability.record import Observer, Record
from stoker.pipeline import Pipeline

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running service as routes see it."""

    settings: Settings
    pipeline: Pipeline
    reader: Reader
    arriving: Arriving
    keys: KeyRing
    proxies: Sequence[Network]
    observer: Observer

    def caller(self, request: Request, scope: Scope | None) -> Caller:
        """Who asks, before anything else of the request is read.

        Raises:
            Unauthorized: no key where one is needed, or one that is not known.
            Forbidden: it lacks the scope; None asks for no particular one.
        """
        peer = request.client.host if request.client else ""
        forwarded = request.headers.getlist("x-forwarded-for")
        address = client_address(peer, forwarded, self.proxies)
        local = is_loopback(peer) and not forwarded
        caller = self.keys.caller(request.headers, address, local=local)
        if scope is not None:
            caller.require(scope)
        return caller

    async def body(self, request: Request) -> bytes:
        """The request's body, bounded in size and time."""
        return await bounded_body(request, self.settings.limits.body_bytes, self.arriving, self.settings.timeouts.body)

    def record(self, request: Request, caller: Caller, ignored: Sequence[str] = ()) -> Record:
        """A fresh record of this request; whoever takes it writes it."""
        request.state.recorded = True
        observer = self.observer
        parent = request.headers.get("traceparent")
        state = None if parent is None else request.headers.get("tracestate")
        return Record(
            id=request.state.request_id,
            route=request.url.path,
            key=caller.key_name,
            address=observer.content.address(caller.address),
            ignored=tuple(ignored),
            observer=observer,
            trace=observer.tracer.begin(parent, state),
        )

    async def until_disconnect(
        self, request: Request, work: Coroutine[Any, Any, Result], record: Record | None = None
    ) -> Result:
        """The result of `work`, which is cancelled when the client leaves."""
        task = asyncio.ensure_future(work)
        leaving = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if record is not None:
                record.disconnected = True
            raise ClientGone("the client closed the connection")
        finally:
            for pending in (task, leaving):
                pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
