"""Hands claimed jobs to their worker, or back to the queue when the worker was cancelled while it waited for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from stoker.store.jobs import Claimed
from stoker.store.protocols import StoreError


class Handover:
    """Claims on their way.

    Args:
        release: gives back a job (id, token), as `JobLog.release` does.
    """

    def __init__(self, release: Callable[[str, str], Awaitable[bool]]) -> None:
        self._release = release
        self._returning: set[asyncio.Task[None]] = set()

    async def hand(self, claiming: Coroutine[Any, Any, list[Claimed]]) -> list[Claimed]:
        """The claimed jobs; a cancelled caller's claim is not broken off, and what it brings is given back."""
        task = asyncio.ensure_future(claiming)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            back = asyncio.create_task(self._give_back(task), name="give-jobs-back")
            self._returning.add(back)
            back.add_done_callback(self._returning.discard)
            raise

    async def close(self) -> None:
        """Wait until all is given back."""
        while self._returning:
            await asyncio.gather(*self._returning, return_exceptions=True)

    async def _give_back(self, claiming: asyncio.Future[list[Claimed]]) -> None:
        with contextlib.suppress(StoreError):  # then their leases run out
            for claimed in await claiming:
                await self._release(claimed.job.id, claimed.token)
