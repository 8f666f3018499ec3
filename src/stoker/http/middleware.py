"""What surrounds every route, as pure ASGI: request ids, the last word on errors, and bounded bodies."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker.errors import Overloaded, PayloadTooLarge, RequestError, StokerError, UnsupportedMediaType
from stoker.http.envelope import for_path, retry_headers
from stoker.observability.audit import audit
from stoker.observability.logging import get_logger
from stoker.observability.metrics import OPERATIONS
from stoker.observability.record import Observer

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
Endpoint = Callable[[Request], Awaitable[Response]]
ADMIN = "/admin"
REQUEST_ID_HEADER = "x-request-id"
_log = get_logger("http")


class ClientGone(StokerError):
    """The client left before its answer; nobody reads this error (499 is nginx's status for it)."""

    status = 499
    code = "client_closed_request"


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class RequestId:
    """Gives every response an `X-Request-Id`; a caller's own is kept when it is sane.

    Args:
        app: whose responses these are.
        leaving: whether the server stops. Then every response closes its connection (RFC 9112, 9.6), so that the
            client's next request reaches another replica.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tag the scope and the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                close = ((b"connection", b"close"),) if self._leaving() else ()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *close]
            await send(message)

        await self._app(scope, receive, tagged)


class Errors:
    """Renders every error that leaves a route: ours with their status, all others as a logged 500.

    Args:
        app: whose errors these are.
        observer: told of requests that were refused before they had a record.
    """

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and answer for what it raises."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientGone:
            return  # there is nobody to answer
        except StokerError as error:
            if not _state(scope).get("recorded"):
                self._tell_refusal(scope, error)
            if begun:
                raise
            await respond(scope, send, error)
        except Exception:
            request_id = _state(scope).get("request_id")
            _log.exception("unexpected error", request_id=request_id, path=scope["path"])
            if not _state(scope).get("recorded"):
                self._observer.metrics.requests.labels(_known_route(scope), "", "500", "bypass").inc()
            if begun:
                raise
            await respond(scope, send, StokerError(f"an unexpected error; it is logged under request id {request_id}"))

    def _tell_refusal(self, scope: Scope, error: StokerError) -> None:
        """The line, and the count, of a request that never came so far as to have a record."""
        peer = scope.get("client") or ("",)
        address = self._observer.content.address(peer[0])
        if scope["path"].startswith(ADMIN) and not _state(scope).get("audited"):
            audit(
                f"{scope['method']} {scope['path'][:200]}",
                key=None,
                address=address,
                outcome="refused",
                error=error.code,
            )
        _log.info(
            "refused",
            request_id=_state(scope).get("request_id"),
            route=scope["path"][:200],
            address=address,
            status=error.status,
            error=error.code,
            detail=error.message[:200],
        )
        self._observer.metrics.requests.labels(_known_route(scope), "", str(error.status), "bypass").inc()


class Shortcut:
    """Takes the routes that models are asked by straight to their endpoints.

    They parse their bodies and write their answers by themselves, so that the framework's routing, dependencies and
    exit stacks would only cost time: about a third of what a cached answer takes. The framework still describes them.

    Args:
        app: everything else.
        endpoints: by path, for POST.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the endpoint of this path, if it is one of them."""
        endpoint = self._endpoints.get(scope["path"]) if scope.get("method") == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _known_route(scope: Scope) -> str:
    """The path, if it is one that models are asked by: others are the caller's invention, and not for a label."""
    path: str = scope["path"]
    return path if path in OPERATIONS else "other"


async def respond(scope: Scope, send: Send, error: StokerError) -> None:
    """Send an error in the envelope that its path has."""
    body, kind = for_path(scope["path"], error)
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *retry_headers(error)]
    headers += error.headers
    if isinstance(error, (PayloadTooLarge, BodyTimeout)):
        headers.append((b"connection", b"close"))  # what is left of the body will not be read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


@dataclass(slots=True)
class Arriving:
    """Bytes of all bodies that are arriving now, `limit` at the most."""

    limit: int
    held: int = 0

    def take(self, octets: int) -> None:
        """Hold some more; Overloaded when that is too much."""
        if self.held + octets > self.limit:
            raise Overloaded("too many large requests are arriving at once; try again later", retry_after=1)
        self.held += octets


async def bounded_body(request: Request, limit: int, arriving: Arriving, seconds: float) -> bytes:
    """The request's body.

    Args:
        request: with an unread body.
        limit: most bytes that are taken.
        arriving: what all requests together hold.
        seconds: time in which it must arrive.

    Raises:
        PayloadTooLarge: by its announced or its real length.
        UnsupportedMediaType: it is compressed, which would get round the limit.
        Overloaded: all bodies together are too large.
        BodyTimeout: it came too slowly.
        ClientGone: the client left before its end.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMediaType(f"content-encoding {encoding[:64]!r}: send the body as it is, uncompressed")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise PayloadTooLarge(f"the body has {announced} bytes, and this server takes at most {limit}")
    parts: list[bytes] = []
    size = held = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise PayloadTooLarge(f"the body is longer than the {limit} bytes that this server takes")
                arriving.take(len(part))
                held += len(part)
                parts.append(part)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from None
    except ClientDisconnect:
        raise ClientGone("the client closed the connection before its request was complete") from None
    finally:
        arriving.held -= held
    return b"".join(parts)


def _state(scope: Scope) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state
