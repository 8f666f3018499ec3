"""What else speaks in this process and is brought into the log: libraries, warnings, uncaught exceptions."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

import structlog

LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


class Bridge(logging.Handler):
    """Brings what is said through the standard library's logging into the log, with the logger's name as component."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it again through structlog; never raises."""
        level = max((known for known in LEVELS if known <= record.levelno), default=logging.DEBUG)
        log = structlog.get_logger(component=record.name)
        log.log(level, _message(record), exc_info=record.exc_info or None)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip()
    except Exception:  # noqa: BLE001 - a library's format and arguments do not fit: its mistake is no reason to fall silent
        return f"{record.msg} (logged with arguments that do not fit it)"


class Hooks:
    """Takes over the process's handlers of log records, warnings and uncaught exceptions, and gives them back."""

    def __init__(self) -> None:
        self._log = structlog.get_logger(component="process")
        root = logging.getLogger()
        self._handlers, self._level = root.handlers[:], root.level
        root.handlers[:] = [Bridge()]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)
        self._main, self._threads = sys.excepthook, threading.excepthook
        sys.excepthook = self._uncaught
        threading.excepthook = self._uncaught_in_thread

    def remove(self) -> None:
        """Put back what was there, unless somebody else has taken over since."""
        root = logging.getLogger()
        root.handlers[:] = self._handlers
        root.setLevel(self._level)
        logging.captureWarnings(capture=False)
        if sys.excepthook == self._uncaught:
            sys.excepthook = self._main
        if threading.excepthook == self._uncaught_in_thread:
            threading.excepthook = self._threads

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Of the main thread, whose end is the process's. An interrupt is the user's wish and no news."""
        if issubclass(kind, KeyboardInterrupt):
            self._main(kind, error, trace)
            return
        self._log.critical("uncaught exception", exc_info=(kind, error, trace))

    def _uncaught_in_thread(self, ended: threading.ExceptHookArgs) -> None:
        """Of another thread, which has ended by it. Python takes SystemExit there for an ordinary end."""
        if issubclass(ended.exc_type, SystemExit):
            return
        error = ended.exc_value or ended.exc_type()
        name = ended.thread.name if ended.thread else None
        self._log.critical("uncaught exception", thread=name, exc_info=(ended.exc_type, error, ended.exc_traceback))
