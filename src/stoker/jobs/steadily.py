"""Goes on with work on the job log while the log is away: it says so once, waits longer and longer, and tries again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from stoker.observability.logging import get_logger
from stoker.store.protocols import StoreError

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0

T = TypeVar("T")
_log = get_logger("jobs")


class Steadily:
    """Repeats one kind of work.

    Args:
        what: is done, for the log.
        first_pause_s: after the first failure, > 0; doubled at each further one.
        longest_pause_s: at most.
    """

    def __init__(
        self, what: str, first_pause_s: float = FIRST_PAUSE_S, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> None:
        self._what = what
        self._first_s = first_pause_s
        self._longest_s = longest_pause_s
        self._pause_s = first_pause_s
        self._failing = False

    async def once(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is tried again for as long as the store fails it."""
        while True:
            try:
                result = await work()
            except StoreError as error:
                await self._pause(error.message)
            else:
                self._note_success()
                return result

    async def forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` again and again until cancelled; not even a defect of ours ends it."""
        while True:
            try:
                await work()
            except StoreError as error:
                await self._pause(error.message)
            except Exception:  # noqa: BLE001 - a loop that ended would leave accepted jobs lying
                _log.exception("job_loop_failed", what=self._what)
                await self._pause("an unexpected error")
            else:
                self._note_success()

    async def _pause(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            _log.warning("job_store_away", what=self._what, reason=reason)
        pause = self._pause_s * (0.5 + random.random() / 2)  # noqa: S311 - spreads replicas, nothing secret
        self._pause_s = min(self._pause_s * 2, self._longest_s)
        await asyncio.sleep(pause)

    def _note_success(self) -> None:
        self._pause_s = self._first_s
        if self._failing:
            self._failing = False
            _log.info("job_store_back", what=self._what)


def report(task: asyncio.Task[Any]) -> None:
    """Say that a task which nobody awaits broke; for `add_done_callback`."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("job_task_broke", task=task.get_name(), exc_info=error)
