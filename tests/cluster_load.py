"""Asks a server without a pause and looks at every answer, whether it is whole. It runs in a pod, with nothing of ours.

python3 cluster_load.py URL --clients 4 --tokens 32 [--kept] [--stream | --plain] [--pause 0.5]

A JSON line for each answer goes to standard output. It ends when its standard input does, after the answers that are
under way. A client that was failed waits 0.1 s, and asks no second time: the next request is another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp

LONGEST_S = 120.0
AFTER_FAILURE_S = 0.1


class Broken(Exception):
    """An answer that is not what was asked for, and how."""


@dataclass
class Told:
    """What became of one request.

    Times are seconds since the epoch. `version` is the beginning of the answering model's digest; `why` is empty when
    the answer was whole.
    """

    began: float
    ended: float = 0.0
    first: float = 0.0
    status: int = 0
    kept: bool = False
    streamed: bool = False
    version: str = ""
    why: str = ""


def request(number: int, tokens: int, *, streamed: bool) -> dict:
    """A question that no cache knows, whose answer has exactly so many tokens."""
    asked = {
        "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "cache": False,
        "stream": streamed,
    }
    return {**asked, "stream_options": {"include_usage": True}} if streamed else asked


def check_stream(text: str, tokens: int) -> str:
    """The version that answered; Broken unless every event of a stream is there, in its form and in its place."""
    events = text.split("\n\n")
    if events.pop() != "" or not events or events.pop() != "data: [DONE]":
        raise Broken(f"the stream ends with {text[-120:]!r}")
    chunks = []
    for event in events:
        if not event.startswith("data: "):
            raise Broken(f"an event is {event[:120]!r}")
        chunks.append(json.loads(event.removeprefix("data: ")))
    if error := next((chunk["error"] for chunk in chunks if "error" in chunk), None):
        raise Broken(f"error in the stream: {error}")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    if len({chunk["id"] for chunk in chunks}) != 1:
        raise Broken("events of several answers")
    if len(usage) != 1:
        raise Broken(f"{len(usage)} counts of tokens")
    _compare(ends, said, usage[0], tokens)
    return chunks[-1]["system_fingerprint"]


def check_plain(text: str, tokens: int) -> str:
    """The version that answered; Broken unless an answer in one piece is all there."""
    body = json.loads(text)
    choice = body["choices"][0]
    _compare([choice["finish_reason"]], choice["message"]["content"], body["usage"], tokens)
    return body["system_fingerprint"]


def _compare(ends: list[str], said: str, usage: dict, tokens: int) -> None:
    if ends != ["length"]:
        raise Broken(f"it ended with {ends}")
    if usage["completion_tokens"] != tokens or not said.strip():
        raise Broken(f"{usage['completion_tokens']} of {tokens} tokens: {said!r}")


async def ask(session: aiohttp.ClientSession, url: str, body: dict, told: Told) -> None:
    """Make one request and write down what became of it."""
    received: list[bytes] = []
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            told.status = answer.status
            async for piece in answer.content.iter_any():
                told.first = told.first or time.time()
                received.append(piece)
        text = b"".join(received).decode()
        if answer.status == 200:
            told.version = (check_stream if told.streamed else check_plain)(text, body["max_tokens"])
        else:
            told.why = f"{answer.status}: {text[:300]}"
    except Exception as error:
        told.why = f"{type(error).__name__}: {error}"[:400] or "?"
    told.ended = time.time()


async def client(options: argparse.Namespace, number: int, over: asyncio.Event) -> None:
    """One client, which has one connection if it keeps it, else one a request."""
    keeping = {"keepalive_timeout": 300} if options.kept else {"force_close": True}
    connector = aiohttp.TCPConnector(limit=1, **keeping)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=LONGEST_S, connect=10)
    ) as session:
        turn = 0
        while not over.is_set():
            turn += 1
            streamed = options.stream or (not options.plain and turn % 2 == 0)
            body = request(number * 1_000_000 + int(time.time() * 1000) % 1_000_000, options.tokens, streamed=streamed)
            told = Told(began=time.time(), kept=options.kept, streamed=streamed)
            await ask(session, options.url, body, told)
            sys.stdout.write(json.dumps(asdict(told)) + "\n")
            sys.stdout.flush()
            pause = max(options.pause, AFTER_FAILURE_S if told.why else 0.0)
            if pause:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), pause)


async def main() -> None:
    """Run all clients until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between an answer and the next request")
    parser.add_argument("--kept", action="store_true", help="keep connections, as most clients of people do")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    over = asyncio.Event()
    clients = [asyncio.create_task(client(options, number, over)) for number in range(options.clients)]
    reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([reading, *clients], return_when=asyncio.FIRST_COMPLETED)
    over.set()
    await asyncio.gather(*clients)


if __name__ == "__main__":
    asyncio.run(main())
