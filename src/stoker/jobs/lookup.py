"""Addresses of names, looked up beside the event loop.

The system's resolver cannot be interrupted and may take half a minute. In asyncio's own pool of threads a few names of
slow servers would hold up everything else that goes there, and a thread of a pool delays the end of the process, so
each lookup has a thread of its own, and there are only so many at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a name and a port to addresses in text form, the best first; raises OSError when there is none."""

AT_ONCE: Final = 8


class SystemLookup:
    """Asks the system (`/etc/hosts`, DNS). Belongs to one event loop.

    Args:
        at_once: lookups under way; further ones wait.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = asyncio.Semaphore(at_once)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of `host`; OSError when it has none. Cancelled, it leaves its thread to end by itself."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def tell(found: Sequence[str] | OSError) -> None:
            self._free.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found = _addresses(host, port)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, found)

        try:
            threading.Thread(target=look_up, name="webhook-lookup", daemon=True).start()
        except RuntimeError as error:  # the system grants no more threads
            tell(OSError(str(error)))
        return await answer


def _addresses(host: str, port: int) -> Sequence[str] | OSError:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except ValueError as error:  # of Python's own IDNA, for labels that no DNS name has
        return OSError(str(error))
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
