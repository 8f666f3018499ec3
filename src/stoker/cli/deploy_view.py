"""What the deploy verbs show: steps as lines, the release as facts, history as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import typer
from rich.table import Table
from rich.text import Text

from stoker.cli.words import printable, took, when
from stoker.rollout.cluster import Deploy, Slot

TOLD_EVERY_S: Final = 15.0
WORDS: Final[Mapping[str, str]] = {
    "loading": "the new slot is filled, and waited for",
    "baking": "it serves everybody; both are compared",
    "returning": "the old slot serves again",
}
LOOKED_BACK: Final = 500


class Lines:
    """A line on standard error for each step, and now and then for what is waited for."""

    def __init__(self) -> None:
        self._told = 0.0
        self._last = ""

    def step(self, deploy: Deploy, note: str) -> None:
        """A stage has begun."""
        self._write(f"{deploy.step.replace('_', ' '):<12}{note or WORDS.get(deploy.step, '')}".rstrip())

    def waiting(self, note: str) -> None:
        """What is waited for; the first time, and every 15 s."""
        if time.monotonic() - self._told >= TOLD_EVERY_S or (note[:6] != self._last and "ready" in note):
            self._last = note[:6]
            self._write(f"{'':<12}{note}")

    def note(self, text: str) -> None:
        """Something else."""
        for line in text.splitlines():
            self._write(f"{'':<12}{line}")

    def _write(self, text: str) -> None:
        self._told = time.monotonic()
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {printable(text)}\n")
        sys.stderr.flush()


def facts(deploy: Deploy | None, active: str, slots: Mapping[str, Slot], *, now: float) -> Table:
    """A release, a line for each fact."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rows: list[tuple[str, str]] = [("serves", active)]
    for name, slot in sorted(slots.items()):
        trouble = f"; {slot.trouble}" if slot.trouble else ""
        rows.append((name, f"{slot.ready} of {slot.wanted} pods ready{trouble}" if slot.wanted else "off"))
    if deploy is not None:
        rows += [
            ("deploy", deploy.id),
            ("of", deploy.title),
            ("from, to", f"{deploy.old}, {deploy.new}"),
            ("step", deploy.step.replace("_", " ")),
            ("baked until", when(deploy.bake_until) if deploy.bake_until and not deploy.ended else ""),
            ("why", deploy.note),
            (
                "last change",
                f"{when(deploy.updated)}, {took(max(now - deploy.updated, 0.0))} ago" if deploy.updated else "",
            ),
        ]
    for name, value in rows:
        if value:
            table.add_row(name, Text(printable(value)))
    return table


def documents(deploys: Sequence[Deploy]) -> list[dict[str, Any]]:
    """Deploys as JSON, the newest first, each as it was last."""
    latest = {deploy.id: deploy for deploy in deploys}
    return [deploy.saved() for deploy in sorted(latest.values(), key=lambda one: one.created, reverse=True)]


def table_of(deploys: Sequence[Mapping[str, Any]]) -> Table:
    """Deploys, a line each."""
    table = Table(
        "id", "of", "from", "to", "step", "began", "took", "why", box=None, header_style="bold", pad_edge=False
    )
    for one in deploys:
        span = took(max(one.get("updated", 0) - one["created"], 0)) if one["step"] not in WORDS else ""
        cells = (one["id"], one["title"], one["from"], one["to"], one["step"].replace("_", " "), when(one["created"]))
        table.add_row(*(Text(printable(cell)) for cell in (*cells, span, one.get("note", ""))))
    return table


def coloured(lines: Sequence[str], *, colour: bool) -> Iterator[str]:
    """Lines of a difference, for a terminal in colour."""
    shades = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}
    for line in lines:
        yield typer.style(line, fg=shades[line[0]]) if colour and line[:1] in shades else line
