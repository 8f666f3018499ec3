"""One thread that writes to SQLite, and two that read, so that the event loop never waits for a disk.

Whatever has gathered while the last transaction was on its way to the disk goes into the next one: one fsync serves all
that wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

from stoker.store.protocols import StoreError
from stoker.store.sqlite_file import SqliteFile, is_environment, is_passing

MAX_WAITING: Final = 1024
"""Changes that wait for the disk at most; more than that wait for their turn in the event loop, within their time."""
_GROUP: Final = 256  # changes in one transaction
_READERS: Final = 2
_MAX_READING: Final = 64
_CLOSE_S: Final = 10.0

T = TypeVar("T")
S = TypeVar("S")
Rings = set[str]
Change = Callable[[sqlite3.Connection, Rings], T]
"""What one operation does within a transaction; it adds the topics of which there is news once that is committed."""
Together = Callable[[sqlite3.Connection, Rings, Sequence[S]], Sequence[Any]]
"""Does many operations of one kind at once: an answer for each, or the exception that its caller gets."""


class _Order:
    """One operation on its way through the writer's thread; `work` is None when nobody waits for it any more."""

    __slots__ = ("answer", "failure", "future", "operation", "together", "work")

    def __init__(self, operation: str, work: Any, future: asyncio.Future[Any], *, together: bool) -> None:
        self.operation = operation
        self.work = work
        self.future = future
        self.together = together
        self.answer: Any = None
        self.failure: Exception | None = None


class SqliteWriter(Generic[S]):
    """The threads that hold a database file open. Use it from one event loop, inside which it is made.

    Args:
        file: the database.
        timeout: seconds within which every operation ends, > 0; what then becomes of a change is not known.
        together: how operations of the kind that `gather` takes are done.
        on_rings: called in the event loop with the topics of which a commit brought news.
    """

    def __init__(
        self, file: SqliteFile, timeout: float, together: Together[S], on_rings: Callable[[Rings], None]
    ) -> None:
        self._file = file
        self._timeout = timeout
        self._together = together
        self._on_rings = on_rings
        self._loop = asyncio.get_running_loop()
        self._db: sqlite3.Connection | None = None
        self._inbox: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._reading = asyncio.Semaphore(_MAX_READING)
        self._readers = ThreadPoolExecutor(_READERS, "job-log-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._thread = threading.Thread(target=self._run, name="job-log-writer", daemon=True)
        self._closed = False

    async def start(self) -> None:
        """Open the file, making it if it is missing; raises StoreError."""
        self._db = await asyncio.to_thread(self._file.writer)
        self._thread.start()

    async def write(self, operation: str, change: Change[T]) -> T:
        """Do one change, durably; raises StoreError."""
        answer: T = await self._order(operation, change, together=False)
        return answer

    async def gather(self, operation: str, work: S) -> Any:
        """Do one piece of work together with others of its kind, durably; raises StoreError, or what that answers."""
        return await self._order(operation, work, together=True)

    async def read(self, operation: str, look: Callable[[sqlite3.Connection], T]) -> T:
        """See what is committed; raises StoreError."""
        if self._closed:
            raise self._shut(operation)
        try:
            async with asyncio.timeout(self._timeout), self._reading:
                return await self._loop.run_in_executor(self._readers, self._look, operation, look)
        except TimeoutError:
            raise self._late(operation) from None

    async def close(self) -> None:
        """Finish what is waiting, and close the file."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._end)

    async def _order(self, operation: str, work: Any, *, together: bool) -> Any:
        order = _Order(operation, work, self._loop.create_future(), together=together)
        try:
            async with asyncio.timeout(self._timeout):
                await self._room.acquire()  # given back when the thread is done with the order, late or not
                if self._closed:
                    self._room.release()
                    raise self._shut(operation)
                self._inbox.put(order)
                return await order.future
        except TimeoutError:
            raise self._late(operation) from None
        finally:
            order.work = None

    def _end(self) -> None:
        self._readers.shutdown(cancel_futures=True)
        for db in self._connections:
            db.close()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _look(self, operation: str, look: Callable[[sqlite3.Connection], T]) -> T:
        try:
            db = getattr(self._local, "db", None)
            if db is None:
                db = self._local.db = self._file.reader()
                self._connections.append(db)
            db.execute("BEGIN")
            try:
                return look(db)
            finally:
                db.execute("ROLLBACK")
        except sqlite3.Error as error:
            if is_environment(error) and not is_passing(error):
                self._local.db = None  # begin anew with the next look; this one is closed at the end
            raise self._file.error(operation, error) from error

    def _run(self) -> None:
        """The writer's thread."""
        open_ = True
        while open_:
            orders, open_ = self._next()
            wanted = [order for order in orders if order.work is not None]
            rings = self._commit(wanted) if wanted else set()
            with contextlib.suppress(RuntimeError):  # the event loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._deliver, orders, rings)
        if self._db is not None:
            self._db.close()

    def _next(self) -> tuple[list[_Order], bool]:
        """What has gathered, at least one order; False when the last has come."""
        orders: list[_Order] = []
        first = self._inbox.get()
        with contextlib.suppress(queue.Empty):
            while first is not None:
                orders.append(first)
                if len(orders) == _GROUP:
                    return orders, True
                first = self._inbox.get_nowait()
            return orders, False
        return orders, True

    def _commit(self, orders: Sequence[_Order]) -> Rings:
        """Do all in one transaction; when one of them spoils it, each in one of its own."""
        try:
            return self._attempt(orders)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, and the thread lives on
            self._roll_back(error)
            if len(orders) > 1 and not is_environment(error) and not isinstance(error, StoreError):
                return set().union(*(self._commit([order]) for order in orders))
            for order in orders:
                failure = self._file.error(order.operation, error) if isinstance(error, sqlite3.Error) else error
                order.answer, order.failure = None, failure
            return set()

    def _attempt(self, orders: Sequence[_Order]) -> Rings:
        db = self._db = self._db or self._file.writer()
        rings: Rings = set()
        db.execute("BEGIN IMMEDIATE")
        joined = [(order, work) for order in orders if order.together and (work := order.work) is not None]
        if joined:
            answers = self._together(db, rings, [work for _, work in joined])
            for (order, _), answer in zip(joined, answers, strict=True):
                order.answer, order.failure = (None, answer) if isinstance(answer, Exception) else (answer, None)
        for order in orders:
            change = order.work
            if not order.together and change is not None:
                order.answer = change(db, rings)
        db.execute("COMMIT")
        return rings

    def _roll_back(self, error: Exception) -> None:
        db = self._db
        try:
            if db is not None and db.in_transaction:
                db.execute("ROLLBACK")
            if not is_environment(error) or is_passing(error):
                return
        except sqlite3.Error:
            pass
        if db is not None:  # begin anew with the next change: the file may have been put in order by then
            self._db = None
            db.close()

    def _deliver(self, orders: Sequence[_Order], rings: Rings) -> None:
        for order in orders:
            self._room.release()
            if order.future.done():
                continue
            if order.failure is not None:
                order.future.set_exception(order.failure)
            else:
                order.future.set_result(order.answer)
        if rings:
            self._on_rings(rings)

    def _late(self, operation: str) -> StoreError:
        what = f"no end of it within {self._timeout:g} s; the disk or another program holds it up"
        return StoreError("timeout", f"the job log in {self._file.path} failed to {operation}: {what}")

    def _shut(self, operation: str) -> StoreError:
        return StoreError("down", f"the job log in {self._file.path} failed to {operation}: it is closed")
