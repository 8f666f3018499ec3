"""A closed-loop load generator for any OpenAI-compatible chat server.

Each client sends a streaming request, reads it to its end, and sends the next one. Token counts are what the server
says in its usage chunk (`stream_options.include_usage`), because a chunk may hold several tokens or none. Prompts
differ from their first word on, so that no prefix cache flatters the figures, unless a shared prefix is wanted.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from yarl import URL

from stoker.cli.loadstats import Sample
from stoker.errors import OperatorError
from stoker.evaluation.streaming import TooLong, events

REFUSED_PAUSE = 0.1
"""Seconds a client waits after a failure, so that a dead server is not hammered."""
ROUTE = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they ask for.

    `base` ends in `/v1`; `socket` is the path of a Unix socket to use instead of the host in `base`. `timeout` is
    seconds for one request. `keep_alive` reuses connections; some servers, llama.cpp's among them, close idle ones
    under a client that is just sending, so the default is a fresh connection for each request.
    """

    base: str
    model: str = ""
    api_key: str = field(default="", repr=False)
    socket: str = ""
    max_tokens: int = 48
    ignore_eos: bool = False
    timeout: float = 300.0
    keep_alive: bool = False

    @property
    def place(self) -> str:
        """Where the server is, for people: without credentials."""
        return f"unix:{self.socket}" if self.socket else str(URL(self.base).with_user(None))

    def body(self, prompt: str) -> bytes:
        """The JSON of one request."""
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.model:
            request["model"] = self.model
        if self.ignore_eos:
            request["ignore_eos"] = True
        return orjson.dumps(request)


@dataclass(frozen=True, slots=True)
class Prompts:
    """An endless, repeatable supply of prompts: the same seed gives the same ones."""

    texts: Sequence[str]
    seed: int
    shared_prefix: bool = False

    def make(self, level: int, number: int) -> str:
        """Prompt `number` of a level: one of the texts, with its own mark before it (or after, to share a prefix)."""
        digest = hashlib.sha256(f"{self.seed}:{level}:{number}".encode()).hexdigest()
        text = self.texts[int(digest[:8], 16) % len(self.texts)]
        mark = f"Note {digest[8:16]}."
        return f"{text} {mark}" if self.shared_prefix else f"{mark} {text}"


def parse_address(address: str) -> tuple[str, str]:
    """What a user may write for a server, as (base URL ending in /v1, Unix socket path or "").

    Accepts a host with or without `/v1` or the full route, and `unix:/path/to.sock`.

    Raises:
        OperatorError: it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise OperatorError(f"{address}: a Unix socket is written unix:/path/to.sock")
        return "http://localhost/v1", path
    try:
        url = URL(address if "://" in address else f"http://{address}")
        known = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        known = False
    if not known:
        raise OperatorError(f"{address!r} is not a server's address; write one like http://127.0.0.1:8080")
    path = url.path.rstrip("/").removesuffix(ROUTE)
    if not path.endswith("/v1"):
        path += "/v1"
    return str(url.with_path(path).with_query(None).with_fragment(None)), ""


@asynccontextmanager
async def session_for(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session that speaks to the target, without a bound on connections of its own."""
    connector: aiohttp.BaseConnector
    if target.socket:
        connector = aiohttp.UnixConnector(target.socket, limit=0, force_close=not target.keep_alive)
    else:
        connector = aiohttp.TCPConnector(limit=0, force_close=not target.keep_alive)
    headers = {"Content-Type": "application/json"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield session


async def first_model(session: aiohttp.ClientSession, target: Target) -> str:
    """The name of the first model that the server lists; "" when it lists none, so that the request leaves it out."""
    try:
        async with session.get(f"{target.base}/models", timeout=aiohttp.ClientTimeout(total=10)) as response:
            listing = orjson.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
        return ""
    data = listing.get("data") if isinstance(listing, dict) else None
    first = data[0] if isinstance(data, list) and data else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else ""


class Answer:
    """What has arrived of one streamed answer; `accept` takes the events in order."""

    __slots__ = ("completion_tokens", "done", "error", "finished", "first", "last", "prompt_tokens")

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.finished = False
        self.done = False
        self.error: str | None = None

    def accept(self, data: bytes, now: float) -> None:
        """Take in one event that arrived at `now` (perf_counter seconds)."""
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.error = "bad answer: an event is not JSON"
            return
        if not isinstance(event, dict):
            self.error = "bad answer: an event is not an object"
            return
        if event.get("error"):
            self.error = f"error in the stream: {_code(event)}"
            return
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))
        for choice in _objects(event.get("choices")):
            delta = choice.get("delta")
            if isinstance(delta, dict) and any(
                delta.get(part) for part in ("content", "reasoning_content", "reasoning", "tool_calls")
            ):
                self.first = now if self.first is None else self.first
                self.last = now
            if choice.get("finish_reason"):
                self.finished = True

    def verdict(self) -> str | None:
        """None for a complete answer, else the kind of failure."""
        if self.error:
            return self.error
        if not self.finished and not self.done:
            return "cut off in mid-stream" if self.first is not None else "closed without an answer"
        return None


async def send(session: aiohttp.ClientSession, target: Target, prompt: str) -> Sample:
    """Send one streaming chat request and read it to its end; a failure is a sample too, never an exception."""
    answer = Answer()
    started = time.perf_counter()
    try:
        async with session.post(
            target.base + ROUTE,
            data=target.body(prompt),
            timeout=aiohttp.ClientTimeout(total=target.timeout),
        ) as response:
            if response.status != 200:  # noqa: PLR2004 - HTTP 200 OK
                answer.error = f"HTTP {response.status} {_refusal(await response.content.read(65536))}".strip()
            else:
                async for data in events(response.content):
                    answer.accept(data, time.perf_counter())
                    if answer.done or answer.error:
                        break
    except TimeoutError:
        answer.error = "timeout"
    except aiohttp.ClientPayloadError:
        answer.error = "cut off in mid-stream"
    except (aiohttp.ClientError, OSError) as error:
        answer.error = f"connection: {type(error).__name__}"
    except TooLong:
        answer.error = "bad answer: an event is too long"
    return Sample(
        started=started,
        ended=time.perf_counter(),
        first=answer.first,
        last=answer.last,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        error=answer.verdict(),
    )


async def run_level(
    session: aiohttp.ClientSession,
    target: Target,
    prompts: Prompts,
    clients: int,
    *,
    requests: int | None = None,
    duration: float | None = None,
    on_sample: Callable[[Sample], None] = lambda _sample: None,
) -> list[Sample]:
    """Keep `clients` requests going until `requests` have been sent, or for `duration` seconds (one of both is given).

    Requests that have begun when the time is over are read to their end. Returns every request's sample.
    """
    samples: list[Sample] = []
    sent = 0
    until = None if duration is None else time.perf_counter() + duration

    def more() -> bool:
        if until is not None:
            return time.perf_counter() < until
        return requests is not None and sent < requests

    async def client() -> None:
        nonlocal sent
        while more():
            number, sent = sent, sent + 1
            sample = await send(session, target, prompts.make(clients, number))
            samples.append(sample)
            on_sample(sample)
            if sample.error is not None:
                await asyncio.sleep(REFUSED_PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return samples


async def warm_up(session: aiohttp.ClientSession, target: Target, prompts: Prompts) -> None:
    """Send one request whose figures do not count, to load what the server loads late.

    Raises:
        OperatorError: the server cannot be reached, or refuses the request in a way that load will not change.
    """
    sample = await send(session, target, prompts.make(0, 0))
    if sample.error is None:
        return
    if sample.error.startswith("connection"):
        raise OperatorError(f"{target.place}: no server answers ({sample.error}); start it, or mend the address")
    if sample.error.startswith(("HTTP 4", "bad answer")) and not sample.error.startswith("HTTP 429"):
        raise OperatorError(f"{target.place}: the warm-up request failed: {sample.error}")


def requests_in(clients: int, requests: int | None, duration: float | None) -> int | None:
    """How many requests a level sends; None when time bounds it."""
    if duration is not None:
        return None
    return requests if requests is not None else max(8, 4 * clients)


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _code(body: dict[str, Any]) -> str:
    """The most telling short word of an error in OpenAI's envelope."""
    error = body.get("error")
    if not isinstance(error, dict):
        return str(error)[:60]
    return str(error.get("code") or error.get("type") or error.get("message") or "unknown")[:60]


def _refusal(raw: bytes) -> str:
    """What an error response says of itself, in a word; "" when it says nothing that can be read."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    return _code(body) if isinstance(body, dict) and body.get("error") else ""
