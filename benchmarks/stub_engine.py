"""An engine that computes nothing: canned answers in llama.cpp's wire form, as fast as Python can write them.

It stands behind Stoker in the benchmarks of the gateway itself, where a real engine's noise would hide a millisecond.
It speaks just enough HTTP/1.1 for that, over a Unix socket, a TCP port, or both.

    python benchmarks/stub_engine.py [--socket PATH] [--port N] [--token-ms 0] [--child] [MODEL]

A request's `max_tokens` says how many tokens it gets; `--token-ms` is the time of one step, in which every request
gets a token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import re
import signal
from collections.abc import Callable
from typing import cast

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nServer: stub\r\nContent-Type: %s\r\n"
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:\s*close", re.IGNORECASE)
MAX_TOKENS = re.compile(rb'"(?:max_tokens|max_completion_tokens|n_predict)"\s*:\s*(\d+)')
STREAM = re.compile(rb'"stream"\s*:\s*true')
COMMON = '"created":1700000000,"id":"chatcmpl-stub","model":"stub","system_fingerprint":"b0-stub"'
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def event(choices: str, more: str = "") -> bytes:
    """One event of a streamed chat answer, as an HTTP chunk."""
    line = f'data: {{"choices":[{choices}],{COMMON},"object":"chat.completion.chunk"{more}}}\n\n'.encode()
    return b"%x\r\n%s\r\n" % (len(line), line)


def delta(content: str, finish: str = "null") -> str:
    """One choice of an event."""
    return f'{{"finish_reason":{finish},"index":0,"delta":{content}}}'


START = event(delta('{"role":"assistant","content":null}'))
TOKEN = event(delta('{"content":" word"}'))
FINISH = event(delta("{}", '"length"'))
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@functools.cache
def ending(tokens: int) -> bytes:
    """The events after the last token: reason, usage with timings, and the end of the stream."""
    return FINISH + event("", f',"usage":{usage(tokens)},"timings":{timings(tokens)}') + DONE


def usage(tokens: int) -> str:
    """Token counts in OpenAI's form."""
    return (
        f'{{"completion_tokens":{tokens},"prompt_tokens":31,"total_tokens":{tokens + 31},'
        '"prompt_tokens_details":{"cached_tokens":0}}'
    )


def timings(tokens: int) -> str:
    """Timings in llama.cpp's form; the stub's work takes no time worth naming."""
    return (
        '{"cache_n":0,"prompt_n":31,"prompt_ms":1.0,"prompt_per_token_ms":0.03,"prompt_per_second":31000.0,'
        f'"predicted_n":{tokens},"predicted_ms":1.0,"predicted_per_token_ms":0.1,"predicted_per_second":10000.0}}'
    )


def document(tokens: int) -> bytes:
    """A whole chat answer for a client that did not ask for a stream."""
    text = " word" * tokens
    choice = f'{{"finish_reason":"length","index":0,"message":{{"role":"assistant","content":"{text}"}}}}'
    return f'{{"choices":[{choice}],{COMMON},"object":"chat.completion","usage":{usage(tokens)}}}'.encode()


def plain(body: bytes) -> bytes:
    """A JSON response."""
    return HEAD % b"application/json" + b"Content-Length: %d\r\n\r\n" % len(body) + body


def canned(slots: int, context: int, model: str) -> dict[bytes, bytes]:
    """Responses to what a supervisor asks an engine besides answers."""
    settings = {"n_ctx": context, "params": {}}
    props = {
        "default_generation_settings": settings,
        "total_slots": slots,
        "model_alias": model,
        "model_path": model,
        "modalities": {"vision": False, "audio": False, "video": False},
        "chat_template": CHAT_TEMPLATE,
        "chat_template_caps": {"supports_system_role": True, "supports_tools": False, "supports_tool_calls": False},
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "build_info": "stub",
    }
    idle = [{"id": number, "n_ctx": context, "is_processing": False} for number in range(slots)]
    listed = {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "stub"}]}
    documents = {
        b"/health": {"status": "ok"},
        b"/props": props,
        b"/slots": idle,
        b"/v1/models": listed,
        b"/tokenize": {"tokens": list(range(31))},
        b"/apply-template": {"prompt": "stub"},
    }
    return {path: plain(json.dumps(answer).encode()) for path, answer in documents.items()}


class Connection(asyncio.Protocol):
    """One client connection; requests on it are answered in turn."""

    def __init__(self, answers: dict[bytes, bytes], token_s: float) -> None:
        self.answers = answers
        self.token_s = token_s
        self.buffer = b""
        self.step = 0
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class does not derive from asyncio's

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self.transport = None
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.transport is not None and self.timer is None:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self.buffer[:head_end]
            length = LENGTH.search(head)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < end:
                return
            body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
            self.answer(head, body, self.transport)

    def answer(self, head: bytes, body: bytes, transport: asyncio.Transport) -> None:
        """Write the response to one request, at once or token by token."""
        path = head.split(b" ", 2)[1].split(b"?", 1)[0]
        close = CLOSE.search(head) is not None
        if path in self.answers:
            transport.write(self.answers[path])
            self.finish(close=close)
            return
        found = MAX_TOKENS.search(body)
        tokens = max(int(found[1]) if found else 1, 1)
        if not STREAM.search(body):
            transport.write(plain(document(tokens)))
            self.finish(close=close)
            return
        start = HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n" + START
        if self.token_s == 0:
            transport.write(start + TOKEN * tokens + ending(tokens))
            self.finish(close=close)
            return
        transport.write(start + TOKEN)
        self.pace(tokens, tokens - 1, close=close)

    def pace(self, tokens: int, left: int, *, close: bool) -> None:
        """Send the tokens that are left, one a step, then the ending.

        Steps are the same instants for all connections, as in an engine that computes its requests in one batch.
        """
        if self.transport is None:
            return
        if left == 0:
            self.timer = None
            self.transport.write(ending(tokens))
            self.finish(close=close)
            self.data_received(b"")
            return

        def send() -> None:
            if self.transport is not None:
                self.transport.write(TOKEN)
            self.pace(tokens, left - 1, close=close)

        loop = asyncio.get_running_loop()
        # Timers may fire a little early: never the same step twice.
        self.step = max(self.step, int(loop.time() / self.token_s)) + 1
        self.timer = loop.call_at(self.step * self.token_s, send)

    def finish(self, *, close: bool) -> None:
        """Close the connection when its client asked for that."""
        if close and self.transport is not None:
            self.transport.close()


def end_with_parent(stop: Callable[[], None]) -> None:
    """Standard input became readable: at its end, the parent is gone."""
    if not os.read(0, 4096):
        stop()


async def serve(arguments: argparse.Namespace) -> None:
    """Listen until SIGTERM or SIGINT."""
    answers = canned(arguments.slots, arguments.context, arguments.model)
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(answers, arguments.token_ms / 1000)

    if arguments.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(arguments.socket)  # noqa: PTH108 - one call, no path arithmetic
        await loop.create_unix_server(connection, arguments.socket, backlog=1024)
    if arguments.port is not None:
        await loop.create_server(connection, "127.0.0.1", arguments.port, backlog=1024)
    stopped = asyncio.Event()
    stop: Callable[[], None] = stopped.set
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if arguments.child:
        loop.add_reader(0, end_with_parent, stop)
    await stopped.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="An engine that computes nothing, for benchmarks of the gateway")
    parser.add_argument("model", nargs="?", default="stub")
    parser.add_argument("--socket", default="", help="Unix socket to listen on")
    parser.add_argument("--port", type=int, help="TCP port of 127.0.0.1 to listen on")
    parser.add_argument("--token-ms", type=float, default=0.0, help="time of a step; 0 sends all tokens in one write")
    parser.add_argument("--child", action="store_true", help="end when standard input does, as Stoker's engines do")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=8192)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
