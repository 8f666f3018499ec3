"""What is asked and answered, and asking any OpenAI-compatible server over HTTP. Others may ask in other ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol, Self

import aiohttp
import orjson
from yarl import URL

from stoker.errors import OperatorError
from stoker.evaluation.streaming import Heard, TooLong, events, refusal_in

CONNECT_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 8.0
ROUTE: Final = "/chat/completions"
_PASSING: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked: messages as on the wire, with an answer of at most `max_tokens`, in the schema if any."""

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    response_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: the answer, or as much of it as came.
        tokens: its length as the server counted it; None when it did not say.
        first_token_s: seconds until the first token; None when none came.
        total_s: seconds until the end.
        error: why there is no whole answer, in words; None when there is one.
        finish_reason: why the model ended: `stop`, `length` ...
    """

    text: str = ""
    tokens: int | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    error: str | None = None
    finish_reason: str | None = None


class Asker(Protocol):
    """Whoever can ask a model. A failure is a reply with an `error`; an exception counts as one, too."""

    async def ask(self, question: Question) -> Reply:
        """The model's answer."""
        ...


class NoServer(OperatorError):
    """Nothing that can be asked is at an address."""

    code = "no_server"


@dataclass(slots=True)
class HttpAsker:
    """Asks a server over HTTP, for use in `async with`.

    Args:
        url: its address, with or without `/v1`.
        model: the model's name there; "": the first that the server lists, once `settle` has been called.
        key: API key, if it wants one.
        timeout: seconds for one answer. A 429 or 503 is tried again within them, after what its `Retry-After` asks for.

    Answers are streamed, and stored ones are declined (`Cache-Control: no-store`): what is measured is the model.

    Raises:
        OperatorError: the address is none.
    """

    url: str
    model: str = ""
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    _base: str = field(init=False)
    _session: aiohttp.ClientSession = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._base = base_of(self.url)

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        # A fresh connection each time: some servers close idle ones under a client that is just sending.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._session.close()

    async def settle(self) -> None:
        """Make sure that a server is there, and take its first model where none was named.

        Raises:
            NoServer: none answers, or not as one that can be asked; the message says what to do.
        """
        try:
            async with self._session.get(
                f"{self._base}/models", timeout=aiohttp.ClientTimeout(total=CONNECT_S), allow_redirects=False
            ) as response:
                raw = await response.content.read(2**20)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            raise NoServer(f"no server answers at {self.url}: {said}; start one with `stoker serve`") from None
        if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise NoServer(f"{self.url} refuses: {refusal_in(response.status, raw)}; give an API key that it knows")
        if self.model:
            return
        self.model = _first_model(raw)
        if not self.model:
            raise NoServer(f"{self.url} lists no models (status {response.status}); name one, or another address")

    async def ask(self, question: Question) -> Reply:
        """The answer; it never raises but when it is cancelled."""
        limit, pause = time.monotonic() + self.timeout, FIRST_PAUSE_S
        body = self._body(question)
        while True:
            reply, wanted = await self._once(body, limit)
            if wanted is None:
                return reply
            rest = max(wanted, 0.05) if wanted > 0 else pause
            if time.monotonic() + rest >= limit:
                return reply
            await asyncio.sleep(rest)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _once(self, body: bytes, limit: float) -> tuple[Reply, float | None]:
        """A reply, and if it is one that passes the seconds to wait (0: it did not say)."""
        heard = Heard(time.perf_counter())
        timeout = aiohttp.ClientTimeout(total=max(0.1, limit - time.monotonic()), sock_connect=CONNECT_S)
        try:
            async with self._session.post(
                self._base + ROUTE, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != HTTPStatus.OK:
                    said = refusal_in(response.status, await response.content.read(65_536))
                    final = response.headers.get("x-should-retry") == "false"
                    passes = response.status in _PASSING and not final
                    return _reply(heard, said), _seconds(response.headers.get("Retry-After")) if passes else None
                async for data in events(response.content):
                    heard.accept(data, time.perf_counter())
                    if heard.done or heard.error:
                        break
        except TimeoutError:
            heard.error = f"no whole answer within {self.timeout:g} s"
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            heard.error = "the connection was cut"
        except (aiohttp.ClientError, OSError) as error:
            heard.error = f"no connection ({str(error) or type(error).__name__})"
        except TooLong as error:
            heard.error = str(error)
        return _reply(heard, heard.trouble()), None

    def _body(self, question: Question) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in question.messages],
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if question.response_schema is not None:
            shape = {"name": "answer", "schema": dict(question.response_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        return orjson.dumps(body)


def base_of(address: str) -> str:
    """The base URL, ending in `/v1`, of what a user may write for a server; raises OperatorError when it is none."""
    try:
        url = URL(address if "://" in address else f"http://{address}")
        known = url.scheme in {"http", "https"} and bool(url.host) and url.port is not None
    except ValueError:
        known = False
    if known and (url.user is not None or url.password is not None):
        raise OperatorError(
            f"the address of {url.host} has a name or password in it; give an API key by its own option"
        )
    if not known:
        raise OperatorError(f"{address!r} is not a server's address; write one like http://127.0.0.1:8080")
    path = url.path.rstrip("/").removesuffix(ROUTE)
    return str(url.with_path(path if path.endswith("/v1") else f"{path}/v1").with_query(None).with_fragment(None))


def _reply(heard: Heard, error: str | None) -> Reply:
    now = time.perf_counter()
    first = None if heard.first is None else heard.first - heard.began
    return Reply(heard.text, heard.tokens, first, now - heard.began, error, heard.finish_reason)


def _seconds(header: str | None) -> float:
    """What a `Retry-After` asks for; 0 for a date or nothing."""
    return min(float(header), 86_400.0) if header is not None and header.strip().isdecimal() else 0.0


def _first_model(raw: bytes) -> str:
    try:
        data = orjson.loads(raw)["data"]
        return str(data[0]["id"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""
