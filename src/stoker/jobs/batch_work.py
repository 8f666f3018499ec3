"""The work on one batch: reads its file through, hands its requests in as jobs, and writes what became of them.

Every step is written down before the next, so that another process can go on wherever this one stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Final

from stoker.errors import NotFound, StokerError
from stoker.jobs.batch_lines import (
    ENVELOPE_OCTETS,
    Fault,
    Line,
    LineTooLong,
    answered,
    digest,
    left_over,
    name_of,
    read_line,
    refused,
    split,
)
from stoker.jobs.batch_shelf import Batch, Shelf
from stoker.jobs.desk import JobDesk, Order
from stoker.jobs.files import FileStore
from stoker.jobs.writing import Writing
from stoker.observability.logging import get_logger
from stoker.observability.record import Observer, Record
from stoker.store.jobs import MAX_LISTED, Job
from stoker.store.protocols import StoreError

POLL_S: Final = 0.5
CHUNK: Final = 200
CHUNK_OCTETS: Final = 4 << 20
"""Requests that are handed in together, by number and by bytes."""
MAX_FAULTS: Final = 100
"""Faults of one file that are told."""
LONGEST_PAUSE_S: Final = 60.0
_FETCHED: Final = 16
_LINES_A_TURN: Final = 64
_log = get_logger("batches")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a batch may have: bytes in the body of a request, and requests."""

    body_octets: int
    requests: int


class BatchWork:
    """Takes one batch to its end.

    Args:
        batch: as it was written down last.
        shelf: where it is written down.
        files: what it reads and writes.
        desk: takes its requests as jobs.
        observer: told of each handing in.
        bounds: what it may have.
        ahead: how many of its jobs may be queued now; asked again and again.
        finishing: held while results are gathered, which takes memory.
    """

    def __init__(
        self,
        batch: Batch,
        shelf: Shelf,
        files: FileStore,
        desk: JobDesk,
        *,
        observer: Observer,
        bounds: Bounds,
        ahead: Callable[[], int],
        finishing: asyncio.Semaphore,
    ) -> None:
        self.batch = batch
        self.woken = asyncio.Event()
        self._shelf = shelf
        self._files = files
        self._desk = desk
        self._observer = observer
        self._bounds = bounds
        self._ahead = ahead
        self._finishing = finishing
        self._caller = batch.caller
        self._lines: AsyncGenerator[Line] | None = None
        self._next: list[Line] = []
        self._size = CHUNK

    async def run(self) -> None:
        """Go on from where the batch stands; raises StoreError, after which it can be called again."""
        try:
            if self.batch.status == "validating":
                await self._validate()
            if self.batch.status == "in_progress":
                await self._work()
            if self.batch.status == "finalizing":
                async with self._finishing:
                    await self._finish()
        except NotFound as error:  # the operator removed it: whoever owns a file cannot while it is read
            _log.warning("input of a batch is gone", batch=self.batch.id, reason=error.message)
            await self._cancel_jobs()
            await self._fail([Fault("input_file_gone", "the input file was removed")])
        finally:
            await self._stop_reading()

    async def _save(self, **changes: Any) -> None:
        """Write down what has changed."""
        status = changes.get("status", self.batch.status)
        turned = status != self.batch.status
        if turned:
            changes["moments"] = {**self.batch.moments, status: time.time()}
        batch = replace(self.batch, **changes)
        await (self._shelf.end(batch) if batch.ended else self._shelf.save(batch))
        self.batch = batch
        if turned:
            _log.info("batch", batch=batch.id, status=status, requests=batch.total, completed=batch.completed)

    async def _fail(self, faults: Sequence[Fault]) -> None:
        await self._save(status="failed", faults=[asdict(fault) for fault in faults])

    async def _validate(self) -> None:
        """Read the file through, line by line."""
        faults: list[Fault] = []
        names: set[bytes] = set()
        try:
            async with contextlib.aclosing(self._read(0, 0)) as lines:
                async for line in lines:
                    if isinstance(line, Fault):
                        faults.append(line)
                    elif (name := digest(line.custom_id)) in names:
                        faults.append(Fault("duplicate_custom_id", "is there before", line.number, "custom_id"))
                    else:
                        names.add(name)
                    if len(faults) >= MAX_FAULTS or len(names) > self._bounds.requests:
                        break
        except LineTooLong as error:
            faults.append(Fault("line_too_long", "is longer than a request may be", error.number))
        if len(names) > self._bounds.requests:
            faults.append(Fault("too_many_requests", f"a batch has at most {self._bounds.requests} requests; split it"))
        if not names and not faults:
            faults.append(Fault("empty_file", "the file has no requests"))
        if faults:
            await self._fail(faults)
        else:
            await self._save(status="in_progress", total=len(names))

    async def _work(self) -> None:
        """Hand requests in, a few at a time, until all have ended."""
        while True:
            counts = await self._desk.batch_counts(self.batch.id)
            queued = counts.get("queued", 0)
            live = queued + counts.get("running", 0)
            await self._look_for_end()
            pause = POLL_S
            if self.batch.ending != "completed":
                if not live:
                    break
                await self._cancel_jobs()
            elif self.batch.read < self.batch.total:
                room = self._ahead() - queued
                pause = await self._hand_in(room) if room > 0 else POLL_S
            elif not live:
                break
            await self._rest(pause)
        await self._save(status="finalizing", output_file_id=self._files.new_id(), error_file_id=self._files.new_id())

    async def _look_for_end(self) -> None:
        """Whether the owner or the clock ended the batch."""
        if self.batch.ending != "completed":
            return
        asked = await self._shelf.cancel_asked(self.batch)
        if asked is not None:
            await self._save(ending="cancelled", moments={**self.batch.moments, "cancelling": asked})
        elif time.time() >= self.batch.expires:
            await self._save(ending="expired")

    async def _rest(self, seconds: float) -> None:
        self.woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()

    async def _cancel_jobs(self) -> None:
        """Ask every job of the batch that has not ended to end."""
        cursor: str | None = None
        while True:
            page = await self._desk.page(
                self._caller, states=("queued", "running"), batch=self.batch.id, cursor=cursor, limit=MAX_LISTED
            )
            for job in page.jobs:
                if not job.cancelling:
                    with contextlib.suppress(NotFound):
                        await self._desk.cancel(job.id, self._caller)
            cursor = page.cursor
            if cursor is None:
                return

    async def _hand_in(self, room: int) -> float:
        """The next requests become jobs; in how many seconds to go on.

        How many they are is written down before: a process that takes over hands in the same ones, under the same key.
        """
        lines = await self._ahead_of(self.batch.pending or min(self._size, room))
        if not lines:
            await self._save(read=self.batch.total)
            return 0.0
        if not self.batch.pending:
            await self._save(pending=len(lines))
        try:
            await self._submit(lines)
        except StoreError:
            raise  # they may be kept nevertheless: they stay pending
        except StokerError as error:
            return await self._after_refusal(lines, error)
        self._size = min(CHUNK, max(self._size, len(lines)) * 2)
        await self._pass(lines)
        return 0.0

    async def _after_refusal(self, lines: Sequence[Line], error: StokerError) -> float:
        """Wait, try with fewer to find the one at fault, or let that one go."""
        server_error = 500
        if error.retry_after is not None or error.status >= server_error:
            await self._save(pending=0)
            return min(error.retry_after or 1.0, LONGEST_PAUSE_S)
        if len(lines) > 1:
            self._size = len(lines) // 2
            await self._save(pending=0)
            return 0.0
        octets = await self._shelf.reject(self.batch, refused(self.batch.id, lines[0], error))
        self._size = 2
        await self._pass(lines, rejected=self.batch.rejected + 1, rejects_octets=octets)
        return 0.0

    async def _pass(self, lines: Sequence[Line], **changes: Any) -> None:
        """These lines are seen to."""
        del self._next[: len(lines)]
        last = lines[-1]
        await self._save(read=self.batch.read + len(lines), offset=last.end, number=last.number, pending=0, **changes)

    async def _submit(self, lines: Sequence[Line]) -> None:
        batch, caller, observer = self.batch, self._caller, self._observer
        orders = [
            Order(batch.endpoint, line.body, expires_at=batch.expires, batch=batch.id, custom_id=line.custom_id)
            for line in lines
        ]
        key = f"{batch.id}:{lines[0].number}-{lines[-1].number}"
        address = observer.content.address(caller.address)
        trace = observer.tracer.begin(None, None)
        record = Record(key, "/v1/batches", address, key=caller.key_name, observer=observer, trace=trace)
        try:
            await self._desk.submit(orders, caller, {}, record, idempotency_key=key)
        except StokerError as error:
            record.error, record.status = error, error.status
            raise
        finally:
            record.close()

    async def _ahead_of(self, most: int) -> Sequence[Line]:
        """The next lines, at most so many, and so many bytes as go together."""
        if self._lines is None:
            self._lines = self._requests(self.batch.offset, self.batch.number)
        while len(self._next) < most and (line := await anext(self._lines, None)) is not None:
            self._next.append(line)
        octets = 0
        for count, line in enumerate(islice(self._next, most)):
            octets += len(line.body)
            if octets > CHUNK_OCTETS and not self.batch.pending:
                return self._next[: max(1, count)]
        return self._next[:most]

    async def _stop_reading(self) -> None:
        lines, self._lines, self._next = self._lines, None, []
        if lines is not None:
            await lines.aclose()

    async def _read(self, offset: int, number: int) -> AsyncGenerator[Line | Fault]:
        """The input file's lines from an offset on."""
        batch, bounds = self.batch, self._bounds
        pieces = self._files.pieces(batch.tenant, batch.input_file_id, offset)
        async with contextlib.aclosing(pieces):
            lines = split(pieces, bounds.body_octets + ENVELOPE_OCTETS, offset, number)
            count = 0
            async for found in lines:
                yield read_line(*found, batch.endpoint, bounds.body_octets)
                count += 1
                if not count % _LINES_A_TURN:
                    await asyncio.sleep(0)

    async def _requests(self, offset: int = 0, number: int = 0) -> AsyncGenerator[Line]:
        """The requests of a file that was found to be in order."""
        async with contextlib.aclosing(self._read(offset, number)) as lines:
            async for line in lines:
                if isinstance(line, Line):
                    yield line

    async def _finish(self) -> None:
        """Write one line for each request, in the order in which they came, into one of two files."""
        batch = self.batch
        if batch.output_file_id is None or batch.error_file_id is None:
            await self._save(output_file_id=self._files.new_id(), error_file_id=self._files.new_id())
            batch = self.batch
        async with (
            self._files.writing(batch.tenant, batch.output_file_id or "") as good,
            self._files.writing(batch.tenant, batch.error_file_id or "") as bad,
        ):
            completed, failed = await self._write_results(good, bad)
            output = await self._keep(good, "output")
            errors = await self._keep(bad, "error")
        await self._save(
            status=batch.ending, completed=completed, failed=failed, output_file_id=output, error_file_id=errors
        )

    async def _keep(self, writing: Writing, what: str) -> str | None:
        if not writing.octets:
            return None
        file = await self._files.keep(writing, f"{self.batch.id}_{what}.jsonl", "batch_output", self.batch.keep_s)
        return file.id

    async def _write_results(self, good: Writing, bad: Writing) -> tuple[int, int]:
        """How many lines went into each file."""
        jobs = await self._jobs()
        rejects = list(reversed(await self._shelf.rejects(self.batch)))
        ending = self.batch.ending
        code = "result_lost" if ending == "completed" else f"batch_{ending}"
        completed = failed = 0
        async with contextlib.aclosing(self._requests()) as lines:
            async for some in _in_groups(lines, _FETCHED):
                found = await asyncio.gather(*(self._ended(jobs.get(digest(line.custom_id))) for line in some))
                for line, job in zip(some, found, strict=True):
                    text, succeeded = left_over(self.batch.id, line, code), False
                    if job is not None:
                        text, succeeded = answered(job)
                    elif rejects and name_of(rejects[-1]) == line.custom_id:
                        text = rejects.pop()
                    await (good if succeeded else bad).write(text)
                    completed += succeeded
                    failed += not succeeded
        return completed, failed

    async def _jobs(self) -> dict[bytes, str]:
        """The ids of the batch's jobs, by stand-ins for their names."""
        found: dict[bytes, str] = {}
        cursor: str | None = None
        while True:
            page = await self._desk.page(
                self._caller, batch=self.batch.id, cursor=cursor, limit=MAX_LISTED, oldest_first=True
            )
            for job in page.jobs:
                found.setdefault(digest(job.custom_id or ""), job.id)
            cursor = page.cursor
            if cursor is None:
                return found

    async def _ended(self, job_id: str | None) -> Job | None:
        if job_id is None:
            return None
        try:
            return await self._desk.get(job_id, self._caller)
        except NotFound:
            return None


async def _in_groups(lines: AsyncGenerator[Line], most: int) -> AsyncGenerator[list[Line]]:
    group: list[Line] = []
    async for line in lines:
        group.append(line)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group
