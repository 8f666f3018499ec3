"""Structured logs: one JSON object a line, or coloured text on a terminal, through one configuration of structlog."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import orjson
import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `component=name`; configuration applies even when it was made before `configure`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=name)
    return logger


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Set up logging for the process.

    Args:
        level: least severe level that is written.
        style: `json` lines, `console` for people, `auto` by whether `stream` is a terminal.
        stream: where to write; standard error by default.
    """
    out = stream or sys.stderr
    console = style == "console" or (style == "auto" and out.isatty())
    structlog.configure(
        processors=_processors(console=console, colors=out.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)


class _Bridge(logging.Handler):
    """Brings what libraries say through the standard library's logging into the same stream and form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it again through structlog."""
        get_logger(record.name).log(record.levelno, record.getMessage().rstrip(), exc_info=record.exc_info)


def _processors(*, console: bool, colors: bool) -> list[structlog.typing.Processor]:
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    if console:
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        return [*shared, _shorten, stamp, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=16)]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    return [*shared, stamp, structlog.processors.JSONRenderer(serializer=_to_json)]


def _shorten(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For people: without what says nothing."""
    return {key: value for key, value in event.items() if value is not None and key != "component"}


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()
