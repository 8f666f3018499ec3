"""A receiver of webhooks with switchable faults, on real sockets, with or without TLS, and names that mean what a test
says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_BODY = 16 * 1024 * 1024
KEY = b"an old secret of thirty-two byte"
CERTIFIED = "DNS:hooks.example,DNS:second.example,IP:127.0.0.1"


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes = b"", **headers: str) -> Act:
    """Answer in full; underscores in names of headers become hyphens."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = {"content-length": str(len(body)), **{name.replace("_", "-"): text for name, text in headers.items()}}
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body)
        await writer.drain()

    return act


def raw(data: bytes) -> Act:
    """Write bytes and close."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return act


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Say nothing until the other side leaves."""
    await reader.read()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break the connection off."""
    end = writer.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A good head, some of the body, and then nothing until the other side leaves."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc")
    await silence(reader, writer)


def endless(head: bytes, piece: bytes, written: list[int]) -> Act:
    """Write without end; `written` gets the number of bytes when the other side has left."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        writer.write(head)
        try:
            while True:
                writer.write(piece)
                await writer.drain()
                count += len(piece)
        except ConnectionError:
            written.append(count)

    return act


@dataclass
class HookServer:
    """Acts out `script`, one entry a request, then answers 200; `seen` is what arrived."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    script: deque[Act] = field(default_factory=deque)
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}"

    def at(self, name: str, path: str = "/hook") -> str:
        """A URL of this server by another name."""
        return f"{'http' if self.tls is None else 'https'}://{name}:{self.port}{path}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HookServer]:
        server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.seen.append(await _read(reader))
            act = self.script.popleft() if self.script else answer(200)
            await act(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.at_once -= 1
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _version = first.split(" ")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    assert length <= MAX_BODY
    return Seen(method, target, headers, await reader.readexactly(length))


@dataclass
class Names:
    """A lookup that gives prepared addresses, each name's in turn, the last one again and again."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        left = self.answers[host]
        return left.pop(0) if len(left) > 1 else left[0]


@dataclass(frozen=True)
class Certificate:
    """A self-made certificate, for `hooks.example`, `second.example` and 127.0.0.1."""

    file: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))
