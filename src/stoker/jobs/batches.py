"""Batches: files of requests, each of which becomes a job, and a file of their answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stoker.admission.auth import Caller
from stoker.config.jobs import JobsConfig
from stoker.errors import RequestError, StokerError
from stoker.jobs.batch_shelf import KEEP_S, Batch, Mark, Shelf, packed
from stoker.jobs.batch_work import BatchWork, Bounds
from stoker.jobs.desk import JobDesk
from stoker.jobs.files import FileStore
from stoker.jobs.ids import Ids
from stoker.observability.logging import get_logger
from stoker.observability.record import Observer
from stoker.store.jobs import State

WINDOW_S: Final = 86_400.0
"""OpenAI's one completion window, in seconds."""
AHEAD: Final = 1000
"""Queued jobs of one tenant's batches, so that its other jobs do not wait behind whole files."""
UNENDED: Final = 100
"""Batches of one tenant that have not ended."""
AT_ONCE: Final = 64
"""Batches that this process works on."""
FINISHING: Final = 4
LOOK_S: Final = 2.0
SWEEP_S: Final = 3600.0
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_UNMADE_S: Final = 60.0
_log = get_logger("batches")


class TooManyBatches(StokerError):
    """The caller has as many batches as may be under way."""

    status = 429
    code = "too_many_batches"
    type = "rate_limit_error"


class Conflict(RequestError):
    """It cannot be done as things stand."""

    status = 409
    code = "conflict"


@dataclass(frozen=True, slots=True)
class View:
    """A batch as its owner sees it: how many lines have an answer, or ended without; when it was told to end."""

    batch: Batch
    completed: int
    failed: int
    cancelling: float | None = None


class Batches:
    """What callers may ask about batches, and the work on those that have not ended.

    Args:
        files: what they read and write; they are kept beside it.
        desk: takes their requests.
        config: bounds.
        body_octets: bytes that one request may have.
        observer: told of what is handed in.
    """

    def __init__(
        self, files: FileStore, desk: JobDesk, config: JobsConfig, *, body_octets: int, observer: Observer
    ) -> None:
        self.files = files
        self._desk = desk
        self._observer = observer
        self._bounds = Bounds(body_octets, config.batch_requests)
        self._ahead = min(AHEAD, max(1, config.per_key // 2), max(1, config.total // 4))
        self._shelf = Shelf(files)
        self._ids = Ids()
        self._works: dict[Mark, BatchWork | None] = {}
        self._unended: Counter[str] = Counter()
        self._finishing = asyncio.Semaphore(FINISHING)
        self._stirred = asyncio.Event()

    async def create(
        self,
        caller: Caller,
        endpoint: str,
        input_file_id: str,
        metadata: Mapping[str, str] | None = None,
        keep_s: float = KEEP_S,
    ) -> View:
        """A new batch, which is not lost once this returns.

        Args:
            caller: who asks.
            endpoint: the route that its lines ask.
            input_file_id: a file of the caller's.
            metadata: the caller's notes.
            keep_s: how long its results are kept.

        Raises:
            NotFound: there is no such file.
            RequestError: the file is none that a batch reads.
            TooManyBatches: others must end first.
        """
        tenant = caller.principal.tenant
        file = await self.files.get(tenant, input_file_id)
        if file.purpose != "batch":
            raise RequestError(
                f"input_file_id: the file's purpose is {file.purpose!r}, not 'batch'", param="input_file_id"
            )
        place = self.files.place_of(tenant).name
        if sum(mark.place == place for mark in await self._shelf.marks()) >= UNENDED:
            raise TooManyBatches(
                f"this caller has {UNENDED} batches under way; wait until one has ended", retry_after=60
            )
        now = time.time()
        batch = Batch(
            id=f"batch_{self._ids.next()}",
            tenant=tenant,
            asker=packed(caller),
            endpoint=endpoint,
            input_file_id=file.id,
            created=now,
            expires=now + WINDOW_S,
            keep_s=keep_s,
            metadata=metadata,
        )
        await self.files.keep_until(tenant, file, batch.expires + WINDOW_S)
        await self._shelf.add(batch)
        self._stirred.set()
        return View(batch, 0, 0)

    async def get(self, caller: Caller, batch_id: str) -> View:
        """The caller's batch; NotFound."""
        return await self._view(await self._shelf.get(caller.principal.tenant, batch_id))

    async def page(self, caller: Caller, after: str | None, limit: int) -> tuple[Sequence[View], bool]:
        """The caller's batches behind `after`, the newest first, and whether there are more."""
        batches, more = await self._shelf.page(caller.principal.tenant, after, limit)
        return [await self._view(batch) for batch in batches], more

    async def cancel(self, caller: Caller, batch_id: str) -> View:
        """Ask a batch to end; what has an answer until then is in its files. NotFound, Conflict."""
        batch = await self._shelf.get(caller.principal.tenant, batch_id)
        if batch.ended:
            raise Conflict(f"the batch {batch.id} is {batch.status} already")
        if await self._shelf.cancel_asked(batch) is None:
            await self._shelf.ask_cancel(batch)
        for mark, work in self._works.items():
            if mark.id == batch_id and work is not None:
                work.woken.set()
        return await self.get(caller, batch_id)

    async def delete_file(self, tenant: str, file_id: str) -> None:
        """Remove a file that no batch reads any more; NotFound, Conflict."""
        await self.files.get(tenant, file_id)
        place = self.files.place_of(tenant).name
        for mark in await self._shelf.marks():
            if mark.place == place:
                batch = await self._shelf.marked(mark)
                if batch is not None and not batch.ended and batch.input_file_id == file_id:
                    raise Conflict(f"the batch {batch.id} still reads this file; cancel it first, or wait for its end")
        await self.files.delete(tenant, file_id)

    async def run(self) -> None:
        """Work on batches until it is cancelled; whatever was under way is gone on with at the next start."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep_now_and_then())
            while True:
                self._stirred.clear()
                try:
                    await self._take_up(group)
                except StokerError as error:
                    _log.warning("batches cannot be looked at", error=error.code, reason=error.message)
                except Exception:  # noqa: BLE001 - one that is damaged must not end the others
                    _log.exception("batches cannot be looked at")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._stirred.wait()

    async def _take_up(self, group: asyncio.TaskGroup) -> None:
        """Begin work on batches that nobody works on."""
        marks = await self._shelf.marks()
        self._unended = Counter(mark.place for mark in marks)
        for mark in marks:
            if len(self._works) >= AT_ONCE:
                return
            if mark in self._works:
                continue
            handle = await self._shelf.hold(mark)
            if handle is not None:
                self._works[mark] = None
                group.create_task(self._take_to_end(mark, handle), name=mark.id)

    async def _take_to_end(self, mark: Mark, handle: int) -> None:
        """Work on a batch until it has ended, whatever happens meanwhile."""
        pause = _PAUSE_S
        try:
            while True:
                try:
                    await self._work_on(mark)
                except StokerError as error:
                    _log.warning("batch waits", batch=mark.id, error=error.code, reason=error.message)
                except Exception:  # noqa: BLE001 - nobody else would go on with it
                    _log.exception("batch failed unexpectedly, and is tried again", batch=mark.id)
                else:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        finally:
            os.close(handle)
            del self._works[mark]
            self._stirred.set()

    async def _work_on(self, mark: Mark) -> None:
        batch = await self._shelf.marked(mark)
        if batch is None:
            await self._drop_unmade(mark)
            return
        if batch.ended:  # and its process ended before it could remove the mark
            await self._shelf.end(batch)
            return
        work = BatchWork(
            batch,
            self._shelf,
            self.files,
            self._desk,
            observer=self._observer,
            bounds=self._bounds,
            ahead=lambda: max(1, self._ahead // max(1, self._unended[mark.place])),
            finishing=self._finishing,
        )
        self._works[mark] = work
        await work.run()

    async def _drop_unmade(self, mark: Mark) -> None:
        """A mark whose batch was never written; it may be about to be."""
        await asyncio.sleep(_UNMADE_S)
        if await self._shelf.marked(mark) is None:
            await self._shelf.forget(mark)

    async def _sweep_now_and_then(self) -> None:
        while True:
            try:
                await self.files.sweep()
                await self._shelf.sweep()
            except StokerError as error:
                _log.warning("files cannot be swept", error=error.code, reason=error.message)
            except Exception:  # noqa: BLE001 - nor the sweeping
                _log.exception("files cannot be swept")
            await asyncio.sleep(SWEEP_S)

    async def _view(self, batch: Batch) -> View:
        """The batch with how far it is."""
        if batch.ended or batch.status == "validating":
            cancelling = None if batch.ended else await self._shelf.cancel_asked(batch)
            return View(batch, batch.completed, batch.failed, cancelling)
        counts: Mapping[State, int] = await self._desk.batch_counts(batch.id)
        failed = sum(counts.get(state, 0) for state in _FAILED)
        asked = await self._shelf.cancel_asked(batch)
        return View(batch, counts.get("succeeded", 0), failed + batch.rejected, asked)


_FAILED: Final[tuple[State, ...]] = ("failed", "cancelled", "expired")
