"""Structured logs: one JSON object a line, or text for people on a terminal, through one configuration of structlog."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict

from stoker.config import LogConfig
from stoker.errors import ConfigError
from stoker.observability.audit import COMPONENT as AUDIT
from stoker.observability.forms import ConsoleForm, json_line
from stoker.observability.hooks import Hooks
from stoker.observability.sinks import Sink, Target
from stoker.observability.targets import FileTarget, StreamTarget

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LAST_WORDS_S: Final = 2.0
"""For the lines that are still to be written at the end, all places together; one that takes none loses them."""

Form = Callable[[EventDict], bytes]


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `component=name`; configuration applies even when it was made before `configure`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=name)
    return logger


class _Tee:
    """Where structlog takes finished events: each is rendered once in each form, and put into each sink.

    Args:
        stream: the sink that everybody has.
        console: its form; None for JSON.
        file: gets everything, as JSON.
        audit: gets administrators' acts, as JSON.
    """

    def __init__(self, stream: Sink, console: Form | None, file: Sink | None, audit: Sink | None) -> None:
        self._stream = stream
        self._console = console
        self._file = file
        self._audit = audit

    def write(self, event: EventDict) -> None:
        """Hand an event over."""
        line = json_line(event)
        self._stream.put(line if self._console is None else self._console(event))
        if self._file is not None:
            self._file.put(line)
        if self._audit is not None and event.get("component") == AUDIT:
            self._audit.put(line)

    debug = info = warning = error = critical = notset = write


class ProcessLog:
    """The log of this process: its sinks, and what it hooked into."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}
        self._hooks: Hooks | None = None
        self._former: dict[str, Any] = {}

    def configure(self, config: LogConfig, stream: TextIO | None = None) -> None:
        """Set up logging for the process, in place of an earlier setup.

        Args:
            config: what is written, and where.
            stream: where to write beside files; standard error by default.

        Raises:
            ConfigError: a file cannot be written.
        """
        out: TextIO | None = stream or sys.stderr  # which there is none of in a process that was started without
        terminal = out is not None and out.isatty()
        console: Form | None = None
        if config.format == "console" or (config.format == "auto" and terminal):
            console = ConsoleForm(colors=terminal)
        sinks = _open(config, out, console or json_line)
        self.shutdown()
        self._sinks = sinks
        self._former = structlog.get_config()
        structlog.configure(
            processors=_processors(),
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[config.level]),
            logger_factory=_factory(_Tee(sinks["stderr"], console, sinks.get("file"), sinks.get("audit"))),
            cache_logger_on_first_use=False,
        )
        self._hooks = Hooks()
        atexit.register(self.shutdown)

    def shutdown(self) -> None:
        """Write what is still to be written, in `LAST_WORDS_S` at most; give back what was hooked. May be repeated."""
        if self._hooks is None:
            return
        atexit.unregister(self.shutdown)
        self._hooks.remove()
        self._hooks = None
        for sink in self._sinks.values():
            sink.close()
        limit = time.monotonic() + LAST_WORDS_S
        for sink in self._sinks.values():
            sink.wait_closed(limit - time.monotonic())
        structlog.configure(**self._former)

    def dropped(self) -> Mapping[str, int]:
        """Lines that were lost so far, by sink: `stderr`, `file`, `audit`."""
        return {name: sink.dropped for name, sink in self._sinks.items()}

    def start_afresh(self) -> None:
        """In a forked child, which has none of the threads."""
        for sink in self._sinks.values():
            sink.start_afresh()


def _open(config: LogConfig, stream: TextIO | None, form: Form) -> dict[str, Sink]:
    if config.file is not None and config.file == config.audit_file:
        raise ConfigError(f"log.file and log.audit_file are both {config.file}; give each its own", param="log.file")
    with ExitStack() as opened:  # what was opened before one that cannot be
        targets: dict[str, tuple[Target, Form]] = {"stderr": (StreamTarget(stream), form)}
        opened.callback(targets["stderr"][0].close)
        if config.file is not None:
            size, keep = config.file_mib << 20, config.file_count
            file = _open_file("log.file", config.file, max_octets=size, keep=keep)
            opened.callback(file.close)
            targets["file"] = file, json_line
        if config.audit_file is not None:
            targets["audit"] = _open_file("log.audit_file", config.audit_file, durable=True), json_line
        opened.pop_all()
    return {name: _sink(name, target, form) for name, (target, form) in targets.items()}


def _open_file(key: str, path: Path, **options: Any) -> FileTarget:
    try:
        return FileTarget(path, **options)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "name a file in a directory that the server's user may write to, or leave it out"
        raise ConfigError(f"{key}: {path} cannot be written: {reason}; {remedy}", param=key) from None


def _sink(name: str, target: Target, form: Form) -> Sink:
    log = get_logger("log")

    def tell_gap(lost: int) -> bytes:
        said = {"component": "log", "sink": name, "lost": lost, "event": f"{lost} log lines were lost"}
        return form({**said, "level": "warning", "time": _now()})

    def on_failure(error: OSError) -> None:
        log.warning("log cannot be written, trying again", sink=name, reason=error.strerror or str(error))

    return Sink(name, target, tell_gap, on_failure)


def _factory(tee: _Tee) -> Callable[..., _Tee]:
    return lambda *_: tee


def _processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _with_exception,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _handed_on,
    ]


def _with_exception(logger: Any, method: str, event: EventDict) -> EventDict:
    """The traceback as text, whatever the exception's own code does."""
    if not event.get("exc_info"):
        event.pop("exc_info", None)
        return event
    try:
        return structlog.processors.format_exc_info(logger, method, event)
    except Exception as error:  # noqa: BLE001 - logging never raises
        event["exception"] = f"a traceback that cannot be shown: {type(error).__name__}"
        event.pop("exc_info", None)
        return event


def _handed_on(_logger: Any, _method: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    return (event,), {}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


_process: Final = ProcessLog()  # there is one: structlog, the hooks and standard error are the process's own
configure = _process.configure
shutdown = _process.shutdown
dropped = _process.dropped
os.register_at_fork(after_in_child=_process.start_afresh)
