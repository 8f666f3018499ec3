"""The client of an engine against servers that answer wrongly in every way: each is an error with a name."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import pytest

from stoker.engine.client import EngineClient
from stoker.engine.wire import EngineCall
from stoker.errors import DeadlineExceeded, EngineDied, EngineError, StokerError

CALL = EngineCall("/v1/chat/completions", {}, b"{}")
WORD = b'data: {"choices": [{"delta": {"content": "word"}}]}'


@contextlib.asynccontextmanager
async def server_that_says(*parts: bytes, status: int = 200, pause: float = 0.0) -> AsyncGenerator[EngineClient]:
    """A client of a server that answers every request with these bytes and closes, or goes on saying nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 %d x\r\nconnection: close\r\n\r\n" % status)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = EngineClient.upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def text_of(client: EngineClient, seconds: float = 5.0) -> str:
    async with contextlib.aclosing(client.stream(CALL, time.monotonic() + seconds)) as chunks:
        return "".join([chunk.text async for chunk in chunks])


@pytest.mark.parametrize(
    "parts",
    [
        [WORD + b"\n\n" + WORD + b"\n\ndata: [DONE]\n\n"],
        [WORD + b"\r\n\r", b"\n" + WORD + b"\r\n\r\ndata: [DONE]\r\n\r\n"],
        [b"event: message\n" + WORD + b"\n\n: comment\n\n", b"event: message\r\n" + WORD + b"\n\ndata:[DONE]\n\n"],
        [bytes([byte]) for byte in WORD + b"\n\n"] + [WORD + b"\n\ndata: [DONE]\n\n"],
    ],
)
async def test_streams_in_every_dialect_of_server_sent_events(parts: list[bytes]) -> None:
    async with server_that_says(*parts) as client:
        assert await text_of(client) == "wordword"
        assert client.inflight == 0
        assert client.silence() == 0.0
        assert not client.doubted


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b"data: {", EngineError),
        (b"data: []", EngineError),
        (b"data: null", EngineError),
        (b'data: {"choices": [7]}', EngineError),
        (b'data: {"choices": {"a": 1}}', EngineError),
        (b'data: {"choices": [{"delta": "text"}]}', EngineError),
        (b'data: {"choices": [], "usage": [1]}', EngineError),
        (b"data: \xff\xfe", EngineError),
        (b'event: error\ndata: {"error": {"message": "broke", "code": 500}}', EngineError),
        (b"", EngineDied),
    ],
)
async def test_streams_of_nonsense(event: bytes, kind: type[StokerError]) -> None:
    async with server_that_says(event + b"\n\n") as client:
        with pytest.raises(kind):
            await text_of(client)
        assert client.inflight == 0


@pytest.mark.parametrize("answer", [b"{", b"[]", b"{}", b'{"data": 1}', b'{"data": [{}]}', b'{"data": [{"index": 0}]}'])
async def test_embeddings_of_nonsense(answer: bytes) -> None:
    async with server_that_says(answer) as client:
        with pytest.raises(EngineError):
            await client.embed("m", ["x"], time.monotonic() + 5)
        assert client.inflight == 0


@pytest.mark.parametrize("answer", [b"{", b"[]", b"{}", b'{"data": null}', b'{"data": {"a": 1}}', b'{"data": [1]}'])
async def test_lists_of_nonsense_are_no_defect_of_ours(answer: bytes) -> None:
    async with server_that_says(answer) as client:
        with contextlib.suppress(EngineError):
            assert await client.listed_models() == []


async def test_a_deadline_in_silence_leaves_a_doubt() -> None:
    async with server_that_says(pause=5) as client:
        with pytest.raises(DeadlineExceeded):
            await text_of(client, 0.1)
        assert client.doubted
        assert await client.computes(0.1) is False
        assert not client.doubted


async def test_a_deadline_of_the_past_is_told_at_once() -> None:
    async with server_that_says(WORD + b"\n\n", pause=5) as client:
        with pytest.raises(DeadlineExceeded):
            await text_of(client, -1)


async def test_nobody_there_is_a_death() -> None:
    async with server_that_says() as client:
        pass
    gone = EngineClient.upstream("http://127.0.0.1:9", None)
    with pytest.raises(EngineDied):
        await text_of(gone)
    assert await gone.computes(1.0) is None
    assert not await gone.healthy()
    await gone.close()
    assert client.inflight == 0
