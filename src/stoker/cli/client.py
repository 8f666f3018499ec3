"""A running server's API as the verbs speak it: what passes is waited out, the rest is told in words."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Self, TypeVar

import aiohttp
import orjson
import typer

from stoker.errors import StokerError

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
"""Seconds of silence after which an answer is given up, beside those that the server was asked to wait."""
LONGEST_POLL_S: Final = 30.0
"""Seconds for which the server is asked to hold an answer back; it takes 60, and proxies often close after that."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
TOLD_EVERY_S: Final = 15.0
PASSING: Final = frozenset({408, 502, 503, 504})
"""Statuses after which the same request may succeed."""

INTERRUPTED: Final = 130

Remote = TypeVar("Remote", bound="Client")
T = TypeVar("T")


class Unreachable(StokerError):
    """No server answered; `there` when something took the connection, and broke it off."""

    status = 503
    code = "unreachable"

    def __init__(self, message: str, *, there: bool) -> None:
        super().__init__(message)
        self.there = there


class Refused(StokerError):
    """The server answered with an error: `status` is its own, `code` and `type` too where it said them, else empty.

    `final` when it said that the same request will not succeed later.
    """

    def __init__(self, message: str, answer: aiohttp.ClientResponse, said: Mapping[str, Any]) -> None:
        pause = retry_after_of(answer.headers.get("Retry-After"))
        super().__init__(message, param=said.get("param"), retry_after=pause)
        self.status = answer.status
        self.code = str(said.get("code") or "")
        self.type = str(said.get("type") or "")
        self.detail = str(said.get("message") or "")
        self.final = answer.headers.get("x-should-retry") == "false"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds for which a call is tried again without any answer that is of use: `outage` when the server is away or
    overloaded, `limits` when it is the caller who asked for too much (429).
    """

    outage: float = 60.0
    limits: float = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request of the API; `hold` is how long the server may keep its answer back, in seconds."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: tuple[tuple[str, str], ...] = ()
    hold: float = 0.0


class Client:
    """One server, for use in `async with`.

    Args:
        url: the server's base address.
        key: API key, if it wants one.
        patience: how long to try again.
        tell: is given a line of text when there is something to wait for; at most one in 15 s.

    Every call raises Unreachable or Refused when it failed for good, and when the patience ended. A server that was
    never there is not waited for: a mistyped address is likelier.
    """

    def __init__(self, url: str, key: str | None, patience: Patience, tell: Callable[[str], None]) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._patience = patience
        self._tell = tell
        self._told = self._good = -math.inf

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Who calls bounds how many calls there are at once; a limit here would only make them time out.
        self._session = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._session.close()

    def passes(self, ask: Ask, error: Unreachable | Refused) -> bool:  # noqa: ARG002 - for those who know their routes
        """Whether the same request may succeed later."""
        if isinstance(error, Unreachable):
            return error.there or self._good > -math.inf
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            return not error.final or error.code == "queue_full"
        return error.status in PASSING

    def remark(self, ask: Ask, status: int, code: str) -> str:  # noqa: ARG002 - for those who know their routes
        """What to do about a refusal, to stand behind the server's words; empty when those say enough."""
        return ""

    async def ask(self, ask: Ask) -> dict[str, Any]:
        """The answer to a request, tried again while that may help."""
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                answer = await self._once(ask)
            except (Unreachable, Refused) as error:
                rest = pause if error.retry_after is None else error.retry_after
                if not self.passes(ask, error):
                    raise
                if self._spent(error, began, rest):
                    error.message += f"; it may be tried again in {rest:g} s"
                    raise
                self._say(f"{error.message}; trying again in {rest:g} s")
                await asyncio.sleep(rest)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._good = time.monotonic()
                return answer

    def _spent(self, error: StokerError, began: float, rest: float) -> bool:
        limit = error.status == HTTPStatus.TOO_MANY_REQUESTS
        patience = self._patience.limits if limit else self._patience.outage
        return time.monotonic() + rest - max(began, self._good) > patience

    def _say(self, text: str) -> None:
        if time.monotonic() - self._told >= TOLD_EVERY_S:
            self._told = time.monotonic()
            self._tell(text)

    async def _once(self, ask: Ask) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S + ask.hold)
        try:
            async with self._session.request(
                ask.method, self.url + ask.path, data=ask.body, headers=ask.headers, params=ask.params, timeout=timeout
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(self.url, error) from None
        if response.ok:
            return self._understood(raw)
        raise self._refused(ask, response, raw)

    def _understood(self, raw: bytes) -> dict[str, Any]:
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise StokerError(f"{self.url} answered something that no Stoker says; is --url a Stoker server?")
        return answer

    def _refused(self, ask: Ask, response: aiohttp.ClientResponse, raw: bytes) -> Refused:
        said = error_in(raw)
        text = said.get("message") or raw[:300].decode("utf-8", "replace").strip() or response.reason or "no reason"
        message = f"the server answered {response.status}: {text}"
        if response.status == HTTPStatus.UNAUTHORIZED:
            wrong = "this API key is not known" if self._key else "an API key is needed"
            message += f"; {wrong} at {self.url}: give one with --key or STOKER_API_KEY (`stoker keys create NAME`)"
        elif remark := self.remark(ask, response.status, str(said.get("code") or "")):
            message += f"; {remark}"
        return Refused(message, response, said)


def call(client: Remote, what: Callable[[Remote], Awaitable[T]]) -> T:
    """What comes of something that is done with a server; an interrupt ends the program with status 130."""

    async def done() -> T:
        async with client:
            return await what(client)

    try:
        return asyncio.run(done())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def error_in(raw: bytes) -> dict[str, Any]:
    """Code, type and message of an error's body, an RFC 9457 problem or OpenAI's envelope; empty for anything else."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return dict(body["error"])
    if isinstance(body, dict) and isinstance(body.get("detail"), str):
        return {"code": body.get("code"), "message": body["detail"], "param": body.get("param")}
    return {}


def retry_after_of(header: str | None) -> float | None:
    """Seconds that a `Retry-After` asks for (RFC 9110: a number or a date); None when it is absent or nonsense."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def unreachable(url: str, error: Exception) -> Unreachable:
    """The error that says in words why there was no answer from a server."""
    said = str(error) or type(error).__name__
    message = f"no server answers at {url}: {said}; start one with `stoker serve`"
    return Unreachable(message, there=_broken_off(error))


def _broken_off(error: Exception) -> bool:
    """Whether a call failed after the connection was made."""
    cut = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.SocketTimeoutError)
    reset = isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)
    return reset or isinstance(error, cut)
