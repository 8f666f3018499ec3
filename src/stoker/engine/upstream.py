"""A server by URL in an engine's place: no child to own, only a watch on whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from stoker.engine.client import EngineClient
from stoker.engine.process import Engine, EngineState
from stoker.errors import StokerError

PROBE_INTERVAL_S = 2.0
FAILURES_UNTIL_AWAY = 2


class UpstreamEngine(Engine):
    """Watches an OpenAI-compatible server.

    Args:
        name: shown in logs and health.
        url: its base address, without `/v1`.
        key: its API key, or None.
        on_change: called after each change of state.
    """

    def __init__(self, name: str, url: str, key: str | None, on_change: Callable[[], None]) -> None:
        super().__init__(name, on_change)
        self._url = url
        self._key = key

    async def run(self) -> None:
        """Probe the server until `stop`; its state is `ready` while it answers, else `restarting`."""
        self.client = EngineClient.upstream(self._url, self._key)
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    await self.client.listed_models()
                    failures = 0
                    self._enter(EngineState.READY)
                except StokerError as error:
                    failures += 1
                    self.last_error = error.message
                    if failures >= FAILURES_UNTIL_AWAY:
                        self._enter(EngineState.RESTARTING)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), PROBE_INTERVAL_S)
        finally:
            await self.client.close()
            self._enter(EngineState.STOPPED)

    def note_broken(self) -> None:
        """A request's connection broke: no more requests until the next probe succeeds."""
        self._enter(EngineState.CHECKING)

    def _enter(self, state: EngineState) -> None:
        if state is not self.state:
            if state is EngineState.READY and not self.load_seconds:
                self.load_seconds = time.monotonic() - self._begun
            elif self.state is EngineState.READY:
                self._begun = time.monotonic()
            where = urlsplit(self._url).netloc.rpartition("@")[2]
            self._log.info("upstream", state=str(state), server=where, error=self.last_error)
            super()._enter(state)
