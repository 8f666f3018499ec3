"""A tiny engine with switchable faults, in a real process: what reality does not do on demand.

It answers llama.cpp's streaming routes on a Unix socket and reads its behaviour from a JSON control file at every
request: `{"fault": ..., "tokens": 5, "delay": 0.01, "first_delay": 0.1, "times": 3, "word": "w"}`. Faults: `none`,
`die_before` (exit before the first token), `die_mid` (exit after two tokens), `wedge` (take the request and say
nothing), `wedge_mid` (comments, but no more tokens), `refuse` (HTTP 500), `no_metrics` (501 there), `truncate` (close
the stream without its end), `never_ready`, `exit_at_start`, `mute` (canaries get no token), `die_canary` (exit at one).
`times` bounds how often a fault strikes. Every request
is noted in `<control>.log`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from aiohttp import web


class Control:
    """The fault in force, from the control file; counts down `times` in a file beside it, which outlives a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wedged = False
        self.used = path.with_suffix(".used")

    def read(self) -> dict:
        """The file's settings, with the fault taken away once it has struck `times` times."""
        settings = json.loads(self.path.read_text()) if self.path.exists() else {}
        times = settings.get("times")
        if times is not None and self._struck() >= times:
            settings["fault"] = "none"
        return settings

    def strike(self) -> None:
        """Note that the fault has struck once more."""
        self.used.write_text(str(self._struck() + 1))

    def _struck(self) -> int:
        return int(self.used.read_text()) if self.used.exists() else 0

    def log(self, line: str) -> None:
        """Append a line to the request log."""
        with self.path.with_suffix(".log").open("a") as file:
            file.write(line + "\n")


def event(**content: object) -> bytes:
    """A server-sent event in llama.cpp's form."""
    return b"data: " + json.dumps({"object": "chat.completion.chunk", **content}).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    """Stream `tokens` words, or do what the fault says."""
    control: Control = request.app["control"]
    body = await request.json()
    settings = control.read()
    fault = settings.get("fault", "none")
    control.log(json.dumps({"path": request.path, "body": body, "pid": os.getpid()}))
    if fault != "none":
        control.strike()
    if fault == "refuse":
        return web.json_response(
            {"error": {"code": 500, "message": "fake failure", "type": "server_error"}}, status=500
        )
    if fault == "die_before":
        os._exit(9)
    control.wedged = control.wedged or fault in {"wedge", "wedge_mid"}
    if fault == "wedge":
        await asyncio.sleep(3600)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        await _tell(response, body, settings, fault)
        return response
    control.log(json.dumps({"gone": True}))
    return response


async def _tell(response: web.StreamResponse, body: dict, settings: dict, fault: str) -> None:
    tokens = min(settings.get("tokens", 5), body.get("max_tokens", 1000))
    await asyncio.sleep(settings.get("first_delay", 0))
    for index in range(tokens):
        await response.write(
            event(
                choices=[
                    {"index": 0, "delta": {"content": f"{settings.get('word', 'w')}{index} "}, "finish_reason": None}
                ]
            )
        )
        await asyncio.sleep(settings.get("delay", 0))
        if index == 1 and fault == "die_mid":
            os._exit(9)
        while index == 1 and fault == "wedge_mid":  # llama.cpp's server says this, too, while its engine is stuck
            await response.write(b":\n\n")
            await asyncio.sleep(0.1)
        if index == 1 and fault == "truncate":
            return
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    await response.write(event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    await response.write(event(choices=[], usage=usage))
    await response.write(b"data: [DONE]\n\n")


async def completion(request: web.Request) -> web.StreamResponse:
    """One token, as a canary wants it; noted apart from the requests, and no occasion for faults to count."""
    control: Control = request.app["control"]
    settings = control.read()
    fault = settings.get("fault", "none")
    control.log(json.dumps({"canary": True, "pid": os.getpid()}))
    if fault == "die_canary":
        os._exit(9)
    control.wedged = control.wedged or fault == "wedge"
    while control.wedged or fault == "mute":
        await asyncio.sleep(0.1)
    await asyncio.sleep(settings.get("canary_delay", 0))
    if fault == "refuse":
        return web.json_response({"error": {"code": 501, "message": "no completions here"}}, status=501)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(event(choices=[{"index": 0, "text": "1", "finish_reason": "length"}]))
    await response.write(b"data: [DONE]\n\n")
    return response


async def slots(request: web.Request) -> web.Response:
    """As many tokens in the first slot as the control file says."""
    tokens = request.app["control"].read().get("held", 0)
    return web.json_response([{"id": 0, "n_ctx": 512, "is_processing": tokens > 0, "n_prompt_tokens": tokens}])


async def embeddings(request: web.Request) -> web.Response:
    """A short vector for every input, made from its length, after `embed_delay` seconds."""
    body = await request.json()
    await asyncio.sleep(request.app["control"].read().get("embed_delay", 0))
    rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
    return web.json_response({"data": rows, "usage": {"prompt_tokens": len(rows)}})


async def health(request: web.Request) -> web.Response:
    """Ready, unless told never to be."""
    never = request.app["control"].read().get("fault") == "never_ready"
    return web.json_response({"status": "loading" if never else "ok"}, status=503 if never else 200)


async def metrics(request: web.Request) -> web.Response:
    """Figures, between two steps of work: none while it is stuck."""
    if request.app["control"].read().get("fault") == "no_metrics":
        raise web.HTTPNotImplemented
    while request.app["control"].wedged:
        await asyncio.sleep(0.1)
    return web.Response(text="# nothing\n")


async def props(_request: web.Request) -> web.Response:
    """A template without tools."""
    return web.json_response({"chat_template_caps": {"supports_tools": False}, "total_slots": 4})


def follow_parent() -> None:
    """End when standard input ends, as every engine child must."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Serve until the parent goes away."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--control", type=Path, required=True)
    options = parser.parse_args()
    control = Control(options.control)
    if control.read().get("fault") == "exit_at_start":
        control.strike()
        sys.exit("error: told to exit at start")
    threading.Thread(target=follow_parent, daemon=True).start()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app["control"] = control
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", completion)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/props", props)
    app.router.add_get("/slots", slots)
    web.run_app(app, path=options.socket, print=None, handle_signals=False)


if __name__ == "__main__":
    main()
