"""Sends webhooks. Every connection goes to an address that was checked after the name was looked up.

aiohttp would look a name up by itself, after any check of ours, and a hostile name server answers differently each
time. So each hop's name is looked up here, once, and the connection gets nothing but the addresses that passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stoker import __version__
from stoker.errors import RequestError
from stoker.jobs.addresses import PARAM, address_of, read_url
from stoker.jobs.lookup import Lookup, SystemLookup
from stoker.jobs.signing import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from stoker.jobs.webhooks import MAX_ERROR_CHARS, Delivery, Outcome, WebhookPolicy, judge
from stoker.observability.logging import get_logger

AT_ONCE: Final = 32
AT_ONCE_PER_HOST: Final = 4
MAX_REDIRECTS: Final = 3
MAX_ADDRESSES: Final = 8
"""Addresses of one name that are tried."""
MAX_ANSWER_BYTES: Final = 64 * 1024
DRAIN_S: Final = 1.0
"""Seconds for the body of an answer whose status is known."""
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
KEEPS_METHOD: Final = frozenset({307, 308})
"""Redirects after which a POST is still a POST (RFC 9110, sections 15.4.8 and 15.4.9)."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The head of an answer."""

    status: int
    location: str | None
    retry_after: str | None


class _Stopped(Exception):
    """The attempt ends here, for a reason of ours."""

    def __init__(self, outcome: Outcome, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.status = status


class Sender:
    """Delivers messages to callbacks. Belongs to one event loop; holds nothing that needs closing.

    Args:
        policy: where to, and how long; its secrets sign.
        lookup: finds the addresses of names; the system's resolver by default.
        tls: how servers' certificates are checked; by the system's authorities by default.
        clock: seconds since 1970.
        at_once: attempts under way, in all.
        per_host: attempts under way to one host, so that a slow one does not take every place.
    """

    def __init__(
        self,
        policy: WebhookPolicy,
        *,
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        at_once: int = AT_ONCE,
        per_host: int = AT_ONCE_PER_HOST,
    ) -> None:
        self._policy = policy
        self._rules = policy.rules
        self._lookup = lookup or SystemLookup()
        self._tls = tls or ssl.create_default_context()
        self._clock = clock
        self._places = _Places(at_once, per_host)
        self._log = get_logger("webhooks")

    async def deliver(self, url: str, message_id: str, body: bytes) -> Delivery:
        """Make one attempt; it waits for its turn first, however long that takes, and may be cancelled at any time.

        Args:
            url: the callback.
            message_id: the same for each attempt at one message; letters, digits, `_` and `-`.
            body: JSON.

        Returns: what came of it; failures of the receiver or the network are results.

        Raises:
            ValueError: the policy has no secret, or the id is of another kind.
        """
        try:
            target = read_url(url, self._rules)
        except RequestError as error:
            return self._noted(message_id, None, Delivery("refused", None, error.message))
        async with self._places.take(target.raw_host or ""):
            begun = time.monotonic()
            headers = self._headers(message_id, body)
            delivery = await self._attempt(target, headers, body)
            delivery = replace(delivery, duration_s=time.monotonic() - begun)
        return self._noted(message_id, target.raw_host, delivery)

    def _headers(self, message_id: str, body: bytes) -> Mapping[str, str]:
        timestamp = int(self._clock())
        return {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"stoker/{__version__}",
            ID_HEADER: message_id,
            TIMESTAMP_HEADER: str(timestamp),
            SIGNATURE_HEADER: signature(self._policy.secrets, message_id, timestamp, body),
        }

    async def _attempt(self, target: URL, headers: Mapping[str, str], body: bytes) -> Delivery:
        deadline = asyncio.get_running_loop().time() + self._policy.timeout_s
        try:
            answer = await self._follow(target, headers, body, deadline)
        except _Stopped as stop:
            return Delivery(stop.outcome, stop.status, stop.reason)
        except TimeoutError:
            return Delivery("failed", None, f"no answer within {self._policy.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Delivery("failed", None, _explain(error)[:MAX_ERROR_CHARS])
        return judge(answer.status, answer.retry_after, self._clock())

    async def _follow(self, target: URL, headers: Mapping[str, str], body: bytes, deadline: float) -> _Answer:
        """The first answer that is no redirect; each hop is judged like the first URL."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._post(target, headers, body, deadline)
            if answer.status not in REDIRECTS:
                return answer
            target = self._next_hop(target, answer)
        raise _Stopped("failed", f"more than {MAX_REDIRECTS} redirects", answer.status)

    def _next_hop(self, here: URL, answer: _Answer) -> URL:
        status = answer.status
        if status not in KEEPS_METHOD:
            reason = (
                f"the receiver redirects with {status}, after which a POST is none any more; it must use 307 or 308"
            )
            raise _Stopped("failed", reason, status)
        if not answer.location:
            raise _Stopped("failed", "the receiver redirects without saying where to", status)
        try:
            there = read_url(_joined(here, answer.location), self._rules)
        except RequestError as error:
            reason = error.message.removeprefix(f"{PARAM}: ")
            raise _Stopped("refused", f"the receiver redirects, and {reason}", status) from None
        if here.scheme == "https" and there.scheme != "https":
            raise _Stopped("refused", "the receiver redirects from https to http", status)
        return there

    async def _post(self, target: URL, headers: Mapping[str, str], body: bytes, deadline: float) -> _Answer:
        async with asyncio.timeout_at(deadline):
            addresses = await self._permitted(target)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses), use_dns_cache=False, ssl=self._tls, force_close=True
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would connect in our stead, unchecked
            auto_decompress=False,
            read_bufsize=MAX_ANSWER_BYTES // 2,
        ) as session:
            async with asyncio.timeout_at(deadline):
                response = await session.post(target, data=io.BytesIO(body), headers=headers, allow_redirects=False)
            await _drain(response, deadline)
            return _Answer(response.status, response.headers.get("Location"), response.headers.get("Retry-After"))

    async def _permitted(self, target: URL) -> Sequence[str]:
        """The addresses to connect to, best first; raises _Stopped when the rules permit none."""
        host = target.raw_host or ""
        if address_of(host) is not None:
            return [host]  # judged with its URL
        try:
            found = await self._lookup(host, target.port or 0)
        except OSError as error:
            raise _Stopped("failed", f"{host} has no address: {error.strerror or 'the lookup failed'}") from None
        parsed = [(text, address_of(text)) for text in found]
        permitted = [text for text, address in parsed if address and self._rules.permits_address(host, address)]
        if not permitted:
            # Only the operator learns the addresses: they tell of a network that is not the caller's.
            self._log.warning("webhook_refused", host=host, addresses=list(found[:MAX_ADDRESSES]))
            raise _Stopped("refused", f"{host} has no public address; the operator may allow it in the configuration")
        return permitted[:MAX_ADDRESSES]

    def _noted(self, message_id: str, host: str | None, delivery: Delivery) -> Delivery:
        """Say it in the log, without the URL, whose path or query may hold a token."""
        say = self._log.info if delivery.outcome == "delivered" else self._log.warning
        say(
            "webhook",
            id=message_id,
            host=host,
            outcome=delivery.outcome,
            status=delivery.status,
            error=delivery.error,
            duration_s=round(delivery.duration_s, 3),
        )
        return delivery


class _Pinned(AbstractResolver):
    """Gives aiohttp the addresses that were checked, whatever it asks for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
            if family in {socket.AF_UNSPEC, socket.AF_INET6 if ":" in address else socket.AF_INET}
        ]

    async def close(self) -> None:
        """Nothing is held."""


class _Places:
    """How many attempts are under way, in all and to each host; hosts with none are forgotten."""

    def __init__(self, at_once: int, per_host: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._per_host = per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def take(self, host: str) -> AsyncIterator[None]:
        """Wait for a place. The host's comes first: who waits for a busy host must not hold a place of all."""
        own = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        self._users[host] = self._users.get(host, 0) + 1
        try:
            async with own, self._all:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._hosts[host]


async def _drain(response: aiohttp.ClientResponse, deadline: float) -> None:
    """Take the beginning of the answer's body, so that a receiver is not cut off while it writes; it is not kept.

    The status has been said by then: a body that is endless, slow or broken changes nothing.
    """
    left = MAX_ANSWER_BYTES
    until = min(deadline, asyncio.get_running_loop().time() + DRAIN_S)
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout_at(until):
            while left > 0 and (piece := await response.content.read(left)):
                left -= len(piece)


def _joined(here: URL, location: str) -> str:
    """A redirect's target as absolute text; empty when it is no URL. One that is absolute stays as it was written."""
    if _ABSOLUTE.match(location) is not None:
        return location
    try:
        return str(here.join(URL(location)))
    except ValueError:
        return ""


def _explain(error: Exception) -> str:
    """What went wrong, in words that hold neither URL nor anything that the receiver wrote."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it does not verify"
        return f"the receiver's certificate is not accepted: {reason}"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "no TLS connection: the receiver does not speak TLS, or none that is still safe"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno  # asyncio's own words would tell the address
        return f"no connection: {os.strerror(number) if number else 'it was not accepted'}"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | OSError):
        return "the connection broke before the answer"
    return "the answer is not HTTP"
