"""The only speaker of an engine's HTTP: streams chunks from it, and notices when it goes silent or away.

Every request has a connection of its own: llama.cpp's server closes kept connections under a client that has just sent
a request, and on a Unix socket a fresh one costs little.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson

from stoker.engine.wire import EngineCall, read_event, tokens_in, translate_error
from stoker.errors import DeadlineExceeded, EngineDied, EngineError, Overloaded
from stoker.types import Chunk, Usage

PROBE_TIMEOUT_S = 2.0
COUNT_TIMEOUT_S = 5.0  # a megabyte of text takes half a second
MAX_EVENT_BYTES = 8 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024


class EngineClient:
    """Speaks to one engine, a child on a Unix socket or a server by URL.

    Not safe to share between event loops. `inflight` counts the requests that are there now; `last_end` is when one
    left last and `last_sign` when the engine last said something (`time.monotonic()`); `doubted` says that one has left
    without a sign of life from the engine since it came.
    """

    def __init__(
        self, base: str, connector: aiohttp.BaseConnector, headers: Mapping[str, str], *, remote: bool = False
    ) -> None:
        self._remote = remote
        self.inflight = 0
        self.doubted = False
        self.last_token_at: float | None = None
        self._base = base
        self._readers = 0
        self._embedding = 0
        self._tells_figures = True
        self._last_activity = self.last_sign = self.last_end = time.monotonic()
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=PROBE_TIMEOUT_S * 2),
            headers={"Content-Type": "application/json", **headers},
        )

    @classmethod
    def local(cls, socket: Path) -> Self:
        """A client of the child that listens on `socket`."""
        return cls("http://engine", aiohttp.UnixConnector(str(socket), force_close=True, limit=0), {})

    @classmethod
    def upstream(cls, url: str, key: str | None) -> Self:
        """A client of the OpenAI-compatible server at `url` (without `/v1`)."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = url.rstrip("/").removesuffix("/v1")
        return cls(base, aiohttp.TCPConnector(force_close=True, limit=0), headers, remote=True)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def silence(self) -> float:
        """Seconds for which we have been waiting for the engine without a sign of life; 0 when nobody waits for it.

        A request whose own client reads slowly does not wait for the engine, and says nothing about it. Nor do
        embeddings alone where the engine cannot be asked whether it computes: there deadlines end what hangs.
        """
        if not self._tells_figures and self._readers == self._embedding:
            return 0.0
        return time.monotonic() - self._last_activity if self._readers else 0.0

    async def healthy(self) -> bool:
        """Whether the engine says that it can take requests."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self._session.get(f"{self._base}/health") as response:
                return response.status == 200  # noqa: PLR2004 - HTTP OK
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return out_of_files(error)  # then nobody knows, and the benefit of the doubt is the engine's

    async def computes(self, patience: float) -> bool | None:
        """Whether the engine still computes: llama.cpp tells its figures between two steps of work, and only then.

        Embeddings come without any sign of life before their end, however long they take.

        Args:
            patience: seconds in which it must answer.

        Returns: False when it does not and says nothing else either, None when it cannot be asked.
        """
        self.doubted = False
        asked = time.monotonic()
        try:
            async with asyncio.timeout(patience), self._session.get(f"{self._base}/metrics") as response:
                await response.read()
        except TimeoutError:
            return False if self.last_sign < asked else None
        except (aiohttp.ClientError, OSError):
            return None
        self._tells_figures = response.status == 200  # noqa: PLR2004 - HTTP OK
        if not self._tells_figures:
            return None
        self._last_activity = time.monotonic()
        return True

    async def listed_models(self) -> Sequence[str]:
        """Names that the server offers under /v1/models; raises EngineError when it does not answer."""
        found = await self._get("/v1/models")
        listed = found.get("data")
        models = listed if isinstance(listed, list) else []
        return [str(model.get("id")) for model in models if isinstance(model, Mapping)]

    async def props(self) -> Mapping[str, Any]:
        """What llama.cpp's server says of itself under /props; raises EngineError when it does not answer."""
        return await self._get("/props")

    async def tokens_held(self) -> int | None:
        """Tokens in the KV cache of the requests that are being worked on; None when the engine does not tell."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self._session.get(f"{self._base}/slots") as response:
                slots = orjson.loads(await response.read()) if response.status == 200 else None  # noqa: PLR2004 - HTTP OK
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
            return None
        return tokens_in(slots)

    async def count_tokens(self, call: EngineCall) -> int | None:
        """Tokens of a call's prompt by the model's own template and tokenizer; None when the engine does not tell."""
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                prompt = call.body.get("prompt")
                if prompt is None:
                    asked = {key: call.body[key] for key in ("messages", "tools") if key in call.body}
                    prompt = (await self._post("/apply-template", asked)).get("prompt")
                if isinstance(prompt, list):
                    return len(prompt)
                body = {"content": prompt, "add_special": True, "parse_special": True}
                tokens = (await self._post("/tokenize", body)).get("tokens")
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError, EngineError):
            return None
        return len(tokens) if isinstance(tokens, list) else None

    async def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        async with self._session.post(self._base + path, data=orjson.dumps(body)) as response:
            answer = orjson.loads(await response.read())
        return answer if response.status == 200 and isinstance(answer, Mapping) else {}  # noqa: PLR2004 - HTTP OK

    async def stream(
        self, call: EngineCall, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Chunk]:
        """Send a call and yield its chunks; closing the generator cancels the generation.

        Args:
            call: from `wire.compose`.
            deadline: `time.monotonic()` instant, in seconds.
            headers: sent along, such as the trace's.

        Raises:
            EngineDied: the connection broke before the answer was complete.
            DeadlineExceeded: the deadline passed.
            StokerError: the engine refused or failed, translated.
        """
        with self._request("the answer was being generated"):
            self._begin_waiting()
            try:
                async with asyncio.timeout_at(deadline):
                    response = await self._session.post(self._base + call.path, data=call.encoded, headers=headers)
            finally:
                self._readers -= 1
            # One timer for the whole stream: one for each read would cost as much as the read.
            loop = asyncio.get_running_loop()
            expiry = loop.call_at(deadline, response.content.set_exception, TimeoutError())
            try:
                if response.status != 200:  # noqa: PLR2004 - HTTP OK
                    raise await self._refusal(response, call.path)
                async for chunk in self._events(response.content):
                    yield chunk
            finally:
                expiry.cancel()
                response.close()

    async def embed(self, model: str, inputs: Sequence[Any], deadline: float) -> tuple[list[list[float]], Usage]:
        """Vectors for `inputs`, in their order, and the tokens they cost; raises as `stream` does."""
        body = {"model": model, "input": list(inputs), "encoding_format": "float"}
        with self._request("embeddings were being computed"):
            self._begin_waiting()
            self._embedding += 1
            try:
                async with (
                    asyncio.timeout_at(deadline),
                    self._session.post(f"{self._base}/v1/embeddings", data=orjson.dumps(body)) as response,
                ):
                    if response.status != 200:  # noqa: PLR2004 - HTTP OK
                        raise await self._refusal(response, "/v1/embeddings")
                    answer = await response.read()
            finally:
                self._readers -= 1
                self._embedding -= 1
            self.last_sign = time.monotonic()
        return _vectors_of(answer)

    @contextlib.contextmanager
    def _request(self, doing: str) -> Iterator[None]:
        """Count a request while it is at the engine, and give what can break there its name."""
        self.inflight += 1
        began = time.monotonic()
        try:
            yield
        except aiohttp.ServerTimeoutError:
            raise EngineDied("the engine takes no connections") from None
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {doing}") from None
        except (aiohttp.ClientError, OSError) as error:
            if out_of_files(error):  # says nothing about the engine
                raise Overloaded("this server has too many connections open; try again later", retry_after=1) from None
            raise EngineDied(f"the connection to the engine broke ({type(error).__name__})") from None
        finally:
            self.inflight -= 1
            self.last_end = time.monotonic()
            self.doubted = self.doubted or self.last_sign < began

    async def _events(self, content: aiohttp.StreamReader) -> AsyncGenerator[Chunk]:
        """Chunks from a stream of server-sent events; EngineDied when it ends without its `[DONE]`."""
        rest = b""
        handed_out = True
        while True:
            self._begin_waiting(afresh=handed_out)
            try:
                data = await content.readany()
            finally:
                self._readers -= 1
            handed_out = False
            if not data:
                raise EngineDied("the engine closed the stream before its end")
            unread = rest + data
            if b"\r" in unread:  # some servers end lines as HTTP does; JSON itself never holds a bare one
                unread = unread.replace(b"\r\n", b"\n")
            *events, rest = unread.split(b"\n\n")
            if len(rest) > MAX_EVENT_BYTES:
                raise EngineError("the engine sent an event without an end")
            for event in events:
                payload = event.strip().rpartition(b"\n")[2]  # other servers name their events in a line before
                if not payload.startswith(b"data:"):
                    continue  # a comment that keeps the connection open; a wedged llama.cpp still sends them
                self._last_activity = self.last_sign = time.monotonic()
                payload = payload[5:].strip()
                if payload == b"[DONE]":
                    return
                chunk = _chunk_of(payload)
                if chunk is not None:
                    self.last_token_at = time.time()
                    handed_out = True
                    yield chunk

    async def _refusal(self, response: aiohttp.ClientResponse, path: str) -> Exception:
        raw = await response.content.read(MAX_ERROR_BYTES)
        self.last_sign = time.monotonic()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = {"error": raw[:200].decode("utf-8", "replace").strip()}
        pause = response.headers.get("Retry-After", "")  # a date, which HTTP allows too, is not worth reading
        if response.status == 404 and self._remote:  # noqa: PLR2004 - HTTP Not Found
            where = f"the upstream server does not offer {path}, or not this model"
            return EngineError(f"{where}; the operator must mend `upstream` or `upstream_model`")
        return translate_error(response.status, body, path, float(pause) if pause.isdecimal() else None)

    async def _get(self, path: str) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self._session.get(self._base + path) as response:
                if response.status != 200:  # noqa: PLR2004 - HTTP OK
                    raise await self._refusal(response, path)
                answer = orjson.loads(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError) as error:
            raise EngineError(f"{path} of the engine cannot be read: {error or type(error).__name__}") from None
        return answer if isinstance(answer, Mapping) else {}

    def _begin_waiting(self, *, afresh: bool = True) -> None:
        """Count a reader that waits for the engine; the clock of silence starts with the first one that does so afresh.

        One that goes on waiting after a mere comment does not: its wait began before.
        """
        if afresh and not self._readers:
            self._last_activity = time.monotonic()
        self._readers += 1


def out_of_files(error: BaseException) -> bool:
    """Whether this process, or the whole system, has no file descriptor left (errno EMFILE, ENFILE)."""
    return getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}


def _chunk_of(payload: bytes) -> Chunk | None:
    """The chunk in an event's JSON; EngineError when it has not the form of one."""
    try:
        return read_event(orjson.loads(payload))
    except (ValueError, TypeError, AttributeError, LookupError):
        raise EngineError("the engine sent an event that is no completion", retry_after=1) from None


def _vectors_of(raw: bytes) -> tuple[list[list[float]], Usage]:
    """The vectors, in the order of their inputs, and the prompt's tokens; EngineError when there are none."""
    try:
        answer = orjson.loads(raw)
        rows = sorted(answer["data"], key=lambda row: row["index"])
        tokens = (answer.get("usage") or {}).get("prompt_tokens") or 0
        return [row["embedding"] for row in rows], Usage(tokens)
    except (ValueError, TypeError, AttributeError, LookupError):
        raise EngineError("the engine's answer holds no embeddings", retry_after=1) from None
