"""A small aiohttp application served by a thread of its own, for commands that run event loops themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web


@contextmanager
def threaded(loop: asyncio.AbstractEventLoop, make: Callable[[], web.Application]) -> Iterator[str]:
    """The URL of an application that is made and served on a loop in a thread; the loop is closed in the end."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[str] = []

    async def serve() -> None:
        runner = web.AppRunner(make(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
