"""Fetches a file over HTTP so that a broken connection, a killed process or a slow night costs only the missing bytes.

A resumed request carries `Range` with `If-Range` (RFC 9110, sections 13.1.5 and 14): when the file at the source has
changed, the server answers with the whole new one and the old bytes are thrown away. The loop runs on an event loop of
its own inside a blocking call, so that the writing of files disturbs nobody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from yarl import URL

from stoker.errors import SourceError
from stoker.models.partial import CHUNK, Partial

MAX_REDIRECTS: Final = 8
MAX_ATTEMPTS: Final = 5
"""Attempts in a row that bring nothing new, before giving up."""
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
CONNECT_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 60.0
PROGRESS_BYTES: Final = 1 << 20
"""An attempt that brings this much, or more, counts as a fresh start of the attempts."""

RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
ADVICE: Final[Mapping[int, str]] = {
    401: "it needs a login",
    403: "access is denied; check the credentials, or whether a signed address has run out",
    404: "there is no such file; check the address",
    410: "the file has been taken away",
}
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to fetch from.

    `secret_headers` and the address's own user and password go to the origin of `url` only, never to where it
    redirects. With `insecure`, plain http is allowed to any host, not to this one alone.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    insecure: bool = False
    attempts: int = MAX_ATTEMPTS
    first_pause: float = FIRST_PAUSE


class _Retry(Exception):
    """The attempt failed in a way that the next one may not; `after` is what the server asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine by name or address."""
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def may_follow(here: URL, there: URL, *, insecure: bool) -> bool:
    """Whether a redirect is acceptable: never from https down to http, and http only where it was allowed anyway."""
    if there.scheme == "https":
        return there.host is not None
    if there.scheme != "http" or here.scheme == "https":
        return False
    return insecure or is_loopback(there.host)


def range_start(content_range: str) -> tuple[int, int | None] | None:
    """The first byte and the whole size that a `Content-Range` names (`*`: None); None when it is malformed."""
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None:
        return None
    return int(match[1]), None if match[3] == "*" else int(match[3])


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What `If-Range` may carry later: a strong ETag, else the date of last change, else nothing."""
    etag = headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return headers.get("Last-Modified")


def download(target: Target, partial: Partial) -> None:
    """Bring the rest of the file, resuming where `partial` stands.

    Raises:
        SourceError: the source refuses, is not there, or stays broken; what has arrived is kept for another try.
        ModelFileError: what arrives is not a GGUF file.
    """
    asyncio.run(_download(target, partial))


async def _download(target: Target, partial: Partial) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    failures, furthest = 0, partial.size
    async with aiohttp.ClientSession(
        timeout=timeout, trust_env=True, auto_decompress=False, read_bufsize=CHUNK, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        while True:
            try:
                await _attempt(session, target, partial)
            except aiohttp.ClientConnectorCertificateError as error:
                raise SourceError(_gave_up(partial, error)) from None
            except (_Retry, aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                fresh = partial.size >= furthest + PROGRESS_BYTES
                furthest = max(furthest, partial.size)
                failures = 1 if fresh else failures + 1
                if failures >= target.attempts:
                    raise SourceError(_gave_up(partial, error)) from None
                pause = _pause(target, failures, error)
                partial.progress.note(f"{partial.label}: {_reason(error)}; trying again in {pause:.1f} s")
                await asyncio.sleep(pause)
            else:
                return


async def _attempt(session: aiohttp.ClientSession, target: Target, partial: Partial) -> None:
    """One request, its redirects and its body; ends when the file is complete."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "stoker", **target.headers}
    if partial.size and partial.validator is not None:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
    response = await _follow(session, target, headers, partial.label)
    async with response:
        if _begins(response, partial):
            async for data in response.content.iter_chunked(CHUNK):
                partial.write(data)
    if partial.total is not None and partial.size != partial.total:
        raise _Retry(f"the connection ended {partial.total - partial.size:,} bytes early")


async def _follow(
    session: aiohttp.ClientSession, target: Target, headers: Mapping[str, str], label: str
) -> aiohttp.ClientResponse:
    """The answer behind all redirects; secrets stay with the first origin."""
    first = URL(target.url)
    auth = aiohttp.BasicAuth(first.user, first.password or "") if first.user else None
    here = first.with_user(None)
    for _ in range(MAX_REDIRECTS + 1):
        at_home = here.origin() == first.with_user(None).origin()
        sent = {**headers, **(target.secret_headers if at_home else {})}
        response = await session.get(here, headers=sent, auth=auth if at_home else None, allow_redirects=False)
        if response.status not in REDIRECT_STATUSES:
            return response
        location = response.headers.get("Location", "")
        response.release()
        there = _next(here, location)
        if there is None or not may_follow(here, there, insecure=target.insecure):
            where = f"{there.scheme}://{there.host}" if there is not None and there.host else "nowhere"
            raise SourceError(
                f"{label}: redirects to {where}, which is not followed: only https, or http to this machine "
                "(--insecure-http allows plain http)"
            )
        here = there
    raise SourceError(f"{label}: redirects more than {MAX_REDIRECTS} times; check the address")


def _next(here: URL, location: str) -> URL | None:
    """The absolute address that a redirect names, without user and password; None when it is malformed."""
    try:
        return here.join(URL(location)).with_user(None) if location else None
    except ValueError:
        return None


def _begins(response: aiohttp.ClientResponse, partial: Partial) -> bool:
    """Set `partial` up for the body that follows; False when nothing is missing any more."""
    if response.status == 416:  # noqa: PLR2004 - Range Not Satisfiable: perhaps because all of it is here
        whole = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", "").strip())
        if whole is not None and int(whole[1]) == partial.size:
            partial.expect(partial.size)
            return False
        partial.restart(None)
        raise _Retry("the file has changed at the source")
    if response.status not in {200, 206}:
        _refuse(response, partial.label)
    if response.headers.get("Content-Encoding", "identity") not in {"identity", ""}:
        raise SourceError(f"{partial.label}: the server compresses the file although it was told not to; try a mirror")
    if response.status == 200:  # noqa: PLR2004 - the whole file, from its beginning
        if partial.size:
            partial.progress.note(f"{partial.label}: cannot resume, or has changed at the source; starting again")
        partial.restart(validator_of(response.headers))
        partial.expect(response.content_length)
        return True
    served = range_start(response.headers.get("Content-Range", ""))
    if served is None or served[0] != partial.size:
        partial.restart(None)
        raise _Retry("the server sent another part than the one asked for")
    partial.expect(served[1])
    return True


def _refuse(response: aiohttp.ClientResponse, label: str) -> None:
    """Raise what an error status calls for."""
    status = response.status
    if status in RETRY_STATUSES:
        after = response.headers.get("Retry-After", "")
        raise _Retry(f"the server answers {status}", float(after) if after.isdecimal() and len(after) < 6 else None)  # noqa: PLR2004 - five digits are a day
    raise SourceError(f"{label}: {ADVICE.get(status, 'the server does not give it out')} (HTTP {status})")


def _pause(target: Target, failures: int, error: BaseException) -> float:
    """Seconds to wait: doubled each time, with jitter, unless the server named its own."""
    asked = error.after if isinstance(error, _Retry) else None
    doubled = target.first_pause * 2 ** (failures - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter, no secret
    return min(LONGEST_PAUSE, doubled if asked is None else asked)


def _reason(error: BaseException) -> str:
    """What broke, in a few words without the address, which may hold secrets."""
    if isinstance(error, _Retry):
        return error.reason
    if isinstance(error, TimeoutError):
        return "the server went silent"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted (SSL_CERT_FILE names a bundle with your own authority)"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host's name is not known"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or type(error.os_error).__name__})"
    return f"the connection broke ({type(error).__name__})"


def _gave_up(partial: Partial, error: BaseException) -> str:
    kept = f"; {partial.size:,} bytes are kept, the same command resumes there" if partial.validator else ""
    return f"{partial.label}: {_reason(error)}; gave up{kept}"
