"""Draws the scenarios as SVG: text stays text, on a light ground of its own, which a dark page does not swallow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stoker",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Segoe UI", "Helvetica", "Arial"],
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
}
Rows = Sequence[dict[str, Any]]


def lines(axes: Axes, rows: Rows, by: str, x: str, y: str) -> None:
    """A line for each value of `by`."""
    for number, name in enumerate(dict.fromkeys(row[by] for row in rows)):
        chosen = [row for row in rows if row[by] == name]
        axes.plot(
            [row[x] for row in chosen],
            [row[y] for row in chosen],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            label=name,
        )


def pair(titles: tuple[str, str], labels: tuple[tuple[str, str], tuple[str, str]]) -> tuple[Figure, list[Axes]]:
    """Two charts side by side."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    both = list(figure.subplots(1, 2))
    for axes, title, (x, y) in zip(both, titles, labels, strict=True):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, both


def one_replica(rows: Rows) -> Figure:
    """Latency and refusals over load."""
    x = "load, of what a full replica answers"
    figure, (left, right) = pair(("Time to first token, p95", "Refused"), ((x, "seconds"), (x, "% of requests")))
    shown = [{**row, "refused": 100 * row["refused"]} for row in rows]
    lines(left, shown, "arrivals", "load", "first_p95")
    lines(right, shown, "arrivals", "load", "refused")
    left.set_yscale("log")
    left.legend()
    return figure


def balancers(rows: Rows) -> Figure:
    """Latency over the number of replicas."""
    titles = ("Time to first token, p95: Poisson arrivals", "The same in bursts")
    figure, both = pair(titles, (("replicas", "seconds"), ("replicas", "seconds")))
    for axes, arrivals in zip(both, ("Poisson", "bursts"), strict=True):
        lines(axes, [row for row in rows if row["arrivals"] == arrivals], "balancer", "replicas", "first_p95")
        axes.set_xscale("log")
        axes.set_yscale("log")
    both[0].legend()
    return figure


def prefixes(rows: Rows) -> Figure:
    """Hits and latency over load."""
    x = "load, of what is carried without memory"
    titles = ("Beginnings that were remembered", "Time to first token, p95")
    figure, (left, right) = pair(titles, ((x, "% of requests"), (x, "seconds")))
    shown = [{**row, "hits": 100 * row["hits"]} for row in rows]
    lines(left, shown, "balancer", "load", "hits")
    lines(right, shown, "balancer", "load", "first_p95")
    left.set_ylim(0, 100)
    right.set_yscale("log")
    left.legend(loc="lower left")
    return figure


def herd(rows: Rows) -> Figure:
    """Attempts and latency over time."""
    x = "seconds after half of the replicas died"
    titles = ("Attempts a second", "Time to first token, p95")
    figure, (left, right) = pair(titles, ((x, "attempts/s"), (x, "seconds")))
    for number, row in enumerate(rows):
        left.plot(row["at"], row["attempts"], color=COLOURS[number], label=row["clients"])
        right.plot(row["at"], row["first_p95"], color=COLOURS[number])
    left.set_yscale("log")
    right.set_yscale("log")
    left.legend()
    return figure


def growth(rows: Rows) -> Figure:
    """Replicas and latency over time."""
    titles = ("Replicas that are ready", "Time to first token, p95")
    figure, (left, right) = pair(titles, (("seconds", "replicas"), ("seconds", "seconds")))
    for number, row in enumerate(rows):
        left.step(row["ready_at"], row["ready"], where="post", color=COLOURS[number], label=row["policy"])
        right.plot(row["at"], row["first_p95"], color=COLOURS[number])
    for axes in (left, right):
        axes.set_xlim(0, rows[0]["seconds"])
        axes.axvspan(rows[0]["seconds"] / 4, rows[0]["seconds"] * 3 / 4, color="#888888", alpha=0.12)
    right.set_yscale("log")
    left.legend()
    return figure


def carried(rows: Rows) -> Figure:
    """Load that keeps the promise, over the number of replicas."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    lines(axes, rows, "balancer", "replicas", "load")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_title("Load that keeps the promise")
    axes.set_xlabel("replicas")
    axes.set_ylabel("of what full replicas answer")
    axes.legend()
    return figure


FIGURES = {
    "one_replica": one_replica,
    "balancers": balancers,
    "prefixes": prefixes,
    "herd": herd,
    "growth": growth,
    "carried": carried,
}


def draw(found: dict[str, Rows], folder: Path) -> list[Path]:
    """Write `scaling-NAME.svg` for each scenario; the same figures give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, rows in found.items():
            path = folder / f"scaling-{name.replace('_', '-')}.svg"
            FIGURES[name](rows).savefig(path, metadata={"Date": None, "Creator": None})
            written.append(path)
    return written
