"""A web server with switchable faults, a hub of the Hugging Face kind on top of it, and the smallest GGUF files."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def gguf_bytes(*, seed: int = 0, elements: int = 4096, name: str = "Tiny") -> bytes:
    """A well-formed file with one tensor of random content: 4 bytes an element, and a small head."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def figure(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.name") + struct.pack("<I", 8) + text(name),
        figure("llama.block_count", 1),
        figure("llama.embedding_length", 64),
        figure("llama.context_length", 256),
        figure("llama.attention.head_count", 4),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, elements // 64, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    head += b"\0" * (-len(head) % 32)
    return head + random.Random(seed).randbytes(elements // 64 * 64 * 4)


@dataclass
class Served:
    """One file and how it is (mis)served."""

    content: bytes
    etag: str | None = None
    ranges: bool = True
    chunked: bool = False
    encoding: str | None = None
    auth: tuple[str, str] | None = None
    drops: deque[int] = field(default_factory=deque)
    """For each coming GET: the body stops after so many bytes and the connection is closed."""
    statuses: deque[int] = field(default_factory=deque)
    """For each coming GET, before the drops: answer with this status instead."""
    drip: tuple[int, float] | None = None
    """Send so many bytes at a time, then pause for so many seconds."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every answer."""


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


class ModelServer:
    """Serves `files` by path and follows `redirects` (path -> status and location); `seen` is what arrived."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.redirects: dict[str, tuple[int, str, dict[str, str]]] = {}
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        self.seen: list[Seen] = []
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def gets(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.partition("?")[0] == path]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def serve_on_hub(
    hub: ModelServer, cdn: ModelServer, content: bytes, *, repository: str, file: str, revision: str = "main"
) -> str:
    """Offer a file as the hub does: its own address says commit, size and digest, and redirects to the bytes elsewhere.

    Returns the commit.
    """
    commit = hashlib.sha1(content).hexdigest()
    digest = hashlib.sha256(content).hexdigest()
    cdn.files[f"/blob/{digest}"] = Served(content, etag='"cdn-etag"')
    for name in (revision, commit):
        hub.redirects[f"/{repository}/resolve/{name}/{file}"] = (
            302,
            f"{cdn.url}/blob/{digest}",
            {
                "X-Repo-Commit": commit,
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "ETag": f'"{commit}"',
            },
        )
    return commit


class _Handler(BaseHTTPRequestHandler):
    server_state: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state, path = self.server_state, self.path.partition("?")[0]
        state.seen.append(Seen(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        if path in state.redirects:
            status, location, extra = state.redirects[path]
            self._head(status, {"Location": location, "Content-Length": "0", **extra})
        elif path in state.refusals:
            status, extra = state.refusals[path]
            self._head(status, {"Content-Length": "0", **extra})
        elif path in state.files:
            self._file(state.files[path])
        else:
            self._head(404, {"Content-Length": "0"})

    def _file(self, served: Served) -> None:
        if served.auth is not None:
            wanted = "Basic " + base64.b64encode(":".join(served.auth).encode()).decode()
            if self.headers.get("Authorization") != wanted:
                self._head(401, {"Content-Length": "0"})
                return
        if served.statuses and (status := served.statuses.popleft()) != 200:
            self._head(status, {"Content-Length": "0", "Retry-After": "0"})
            return
        content, etag = served.content, served.etag  # one version for the whole answer
        start = self._start(served, etag)
        if start is not None and start >= len(content):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content[start or 0 :]
        headers = dict(served.headers)
        if etag is not None:
            headers["ETag"] = etag
        if served.encoding is not None:
            headers["Content-Encoding"] = served.encoding
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= {"Connection": "close"} if served.chunked else {"Content-Length": str(len(body))}
        self._head(200 if start is None else 206, headers)
        self._body(served, body)

    def _start(self, served: Served, etag: str | None) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match is None or not served.ranges or (condition is not None and condition != etag):
            return None
        return int(match[1])

    def _body(self, served: Served, body: bytes) -> None:
        end = served.drops.popleft() if served.drops else len(body)
        size, pause = served.drip or (1 << 16, 0.0)
        try:
            for offset in range(0, min(end, len(body)), size):
                self.wfile.write(body[offset : min(offset + size, end)])
                time.sleep(pause)
        except ConnectionError:
            self.close_connection = True
            return
        if served.chunked or end < len(body):
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
