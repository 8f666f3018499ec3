"""What the verbs show on a terminal: tables, and the progress of long work (a bar for people, notes for pipes)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

RATE_OVER_S = 300.0  # a job may take a minute
PIPE_COLUMNS = 160  # where there is no terminal to fit into, tables are not squeezed


def output() -> Console:
    """Standard output for tables: as wide as the terminal, or wide enough for any of ours in a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def print_json(value: Any) -> None:
    """Write JSON on standard output, for people and programs."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


class RateColumn(ProgressColumn):
    """Steps in a second; empty until that is known."""

    def render(self, task: Task) -> Text:
        """The task's present rate."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


class Bar:
    """A progress bar with rate on standard error."""

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display = display
        self._task = task

    def update(self, done: int, total: int | None) -> None:
        """Move the bar to `done` of `total`."""
        self._display.update(self._task, completed=done, total=total, visible=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._display.console.print(Text(text))


class Notes:
    """Progress for logs and pipes: only what is worth a line."""

    def update(self, done: int, total: int | None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Print a line on standard error."""
        sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def watching(what: str) -> Iterator[Bar | Notes]:
    """A progress bar where standard error is a terminal; elsewhere only notes."""
    if not sys.stderr.isatty():
        yield Notes()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Bar(display, display.add_task(what, total=None, visible=False))


@contextlib.contextmanager
def counting(what: str, done: int, total: int) -> Iterator[Bar | Notes]:
    """A progress bar from `done` to `total` steps, with rate and time left; elsewhere only notes, as `watching`."""
    if not sys.stderr.isatty():
        yield Notes()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    display = Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=RATE_OVER_S)
    with display:
        yield Bar(display, display.add_task(what, total=total, completed=done))
