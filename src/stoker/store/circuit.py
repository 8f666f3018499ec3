"""When the shared store has failed, nobody asks it until a background probe finds it well: no request waits twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stoker.observability.logging import get_logger
from stoker.observability.notices import EVERY_S, Seldom
from stoker.store.protocols import StoreError

PAUSE_S = 1.0
"""Seconds between probes of a store that is down."""


class Circuit:
    """Knows whether the shared store may be asked, says when it fails and when it is back.

    Args:
        server: what the log calls the store.
        probe: raises StoreError while the store is of no use; bounded in time by itself.
        on_failure: called with the operation and a word for the reason (`timeout`, `connection`, `response`, `down`)
            each time an operation went on without the shared store, and each time a probe failed.
        pause_s: seconds between probes.
        notice_every_s: seconds between warnings while it stays down.
    """

    def __init__(
        self,
        server: str,
        probe: Callable[[], Awaitable[None]],
        on_failure: Callable[[str, str], None],
        pause_s: float = PAUSE_S,
        notice_every_s: float = EVERY_S,
    ) -> None:
        self._server = server
        self._probe = probe
        self._on_failure = on_failure
        self._pause_s = pause_s
        self._log = get_logger("store")
        self._notice = Seldom("store", notice_every_s)
        self._prober: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the store may be asked."""
        return self._prober is None

    def skipped(self, operation: str) -> None:
        """An operation went on without the store, which was not asked."""
        self._on_failure(operation, "down")

    def failed(self, operation: str, error: StoreError) -> None:
        """The store failed an operation: ask no more until a probe succeeds."""
        self._on_failure(operation, error.reason)
        self._notice.warning(
            "store_down",
            server=self._server,
            operation=operation,
            error=error.message,
            effect="limits are local, nothing is cached",
        )
        if self._prober is None:
            self._prober = asyncio.create_task(self._probe_until_well(), name="probe-store")

    async def close(self) -> None:
        """End the probing."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    async def _probe_until_well(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s)
            try:
                await self._probe()
            except StoreError as error:
                self.failed("probe", error)
            else:
                self._prober = None
                self._log.info("store_back", server=self._server)
                return
