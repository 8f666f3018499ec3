"""Waiting for calls that cannot be interrupted, so that Ctrl-C ends a command at once, not after the network's limits.

Python's signals reach only its main thread, and only between its own instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread, current_thread, main_thread
from typing import Final, TypeVar

AHEAD: Final = 1
"""Pieces that wait between a source and who takes them."""
LOOK_SECONDS: Final = 0.1
GIVE_UP_SECONDS: Final = 5.0
"""How long somebody who was interrupted waits for others to end."""

_T = TypeVar("_T")


class Abandoned(Exception):
    """Whoever gave the pieces has given up."""


def started(call: Callable[[], _T]) -> Future[_T]:
    """Begin a call in a thread that nobody waits for at the end of the program."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the outcome is asked for
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    return outcome


def interruptible(call: Callable[[], _T]) -> _T:
    """The call's result; in the main thread a signal ends the waiting, and the call goes on unheard."""
    return started(call).result() if current_thread() is main_thread() else call()


def pumped(pieces: Iterable[bytes], take: Callable[[Iterator[bytes]], object]) -> None:
    """Give pieces, which are made in this thread, to `take`, which runs in another.

    An error of `pieces` passes through, after `take` has met an Abandoned in its place and has ended; so does an error
    of `take`, and then no more pieces are made.
    """
    waiting: Queue[bytes | None] = Queue(AHEAD)
    given_up = Event()

    def taken() -> Iterator[bytes]:
        while (piece := waiting.get()) is not None:
            if given_up.is_set():
                break
            yield piece
        if given_up.is_set():
            raise Abandoned

    outcome = started(lambda: take(taken()))
    try:
        for piece in pieces:
            if not _handed(waiting, piece, outcome):
                break
        else:
            _handed(waiting, None, outcome)
        outcome.result()
    except BaseException as error:
        given_up.set()
        with suppress(Empty):
            waiting.get_nowait()
        with suppress(Full):
            waiting.put_nowait(None)
        with suppress(BaseException):
            outcome.exception(None if isinstance(error, Exception) else GIVE_UP_SECONDS)
        raise


def _handed(waiting: Queue[bytes | None], piece: bytes | None, outcome: Future[object]) -> bool:
    """Whether there was somebody left to take the piece."""
    while not outcome.done():
        with suppress(Full):
            waiting.put(piece, timeout=LOOK_SECONDS)
            return True
    return False
