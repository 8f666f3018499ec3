"""Draws what a load run measured: throughput and latencies over the number of clients, as SVG or PNG.

The SVG is written here, so that a plot needs no library; a PNG is drawn by matplotlib from the same description.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from stoker.cli.loadstats import Level, Spread
from stoker.errors import OperatorError

# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
COLOURS = ("#0072b2", "#e69f00", "#d55e00")
MARKS = ("o", "s", "^")
WIDTH, HEIGHT, TOP = 960, 660, 56
PANEL_W, PANEL_H = WIDTH / 2, (HEIGHT - TOP) / 2
LEFT, RIGHT, ABOVE, BELOW = 64, 20, 44, 46
TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value for each number of clients, None where nothing was measured."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart, its title, the unit of its vertical axis and its lines."""

    title: str
    unit: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Four panels over the same numbers of clients."""

    title: str
    clients: tuple[int, ...]
    panels: tuple[Panel, ...]


def chart_of(title: str, levels: Sequence[Level]) -> Chart:
    """What to draw for these levels."""

    def latency(name: str, pick: Callable[[Level], Spread | None]) -> Panel:
        spreads = [pick(level) for level in levels]
        return Panel(
            name,
            "ms",
            (
                Series("p50", tuple(s.p50 if s else None for s in spreads)),
                Series("p95", tuple(s.p95 if s else None for s in spreads)),
                Series("p99", tuple(s.p99 if s else None for s in spreads)),
            ),
        )

    return Chart(
        title,
        tuple(level.clients for level in levels),
        (
            Panel("Throughput", "tokens/s", (Series("all clients", tuple(lv.tokens_per_s for lv in levels)),)),
            latency("Time to first token", lambda level: level.ttft_ms),
            latency("Time per output token", lambda level: level.tpot_ms),
            latency("End to end", lambda level: level.total_ms),
        ),
    )


def axis(highest: float) -> tuple[float, ...]:
    """Round tick values from 0 to at least `highest`: steps of 1, 2 or 5 times a power of ten, about TICKS of them."""
    if highest <= 0 or not math.isfinite(highest):
        return (0.0, 1.0)
    rough = highest / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * (1 - 1e-9))
    return tuple(step * number for number in range(math.ceil(highest / step - 1e-9) + 1))


def label(value: float) -> str:
    """A tick's text, without the dust of binary fractions."""
    return f"{value:,.10g}"


def svg(chart: Chart) -> str:
    """The chart as an SVG document."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12" fill="#333">'
        ),
        f"<title>{escape(chart.title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(24, 32, chart.title, 'font-size="16" font-weight="600"'),
    ]
    for number, panel in enumerate(chart.panels):
        parts += _panel(chart, panel, (number % 2) * PANEL_W, TOP + number // 2 * PANEL_H)
    return "\n".join([*parts, "</svg>", ""])


def _panel(chart: Chart, panel: Panel, x0: float, y0: float) -> list[str]:
    left, right, top, bottom = x0 + LEFT, x0 + PANEL_W - RIGHT, y0 + ABOVE, y0 + PANEL_H - BELOW
    known = [value for series in panel.series for value in series.values if value is not None]
    ticks = axis(max(known, default=0.0))
    count = len(chart.clients)
    # Numbers of clients usually double, so they stand at equal distances instead of on a linear scale.
    across = [left + (right - left) * (index + 0.5) / max(count, 1) for index in range(count)]

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    parts = [_text(left, y0 + 20, f"{panel.title} ({panel.unit})", 'font-size="13" font-weight="600"')]
    for tick in ticks:
        y = height(tick)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{"#888" if tick == 0 else "#e4e4e4"}"/>')
        parts.append(_text(left - 8, y + 4, label(tick), 'text-anchor="end"'))
    parts += [_text(x, bottom + 18, str(n), 'text-anchor="middle"') for x, n in zip(across, chart.clients, strict=True)]
    parts.append(_text((left + right) / 2, bottom + 36, "clients", 'text-anchor="middle" fill="#666"'))
    for index, series in enumerate(panel.series):
        points = [(x, height(v)) for x, v in zip(across, series.values, strict=True) if v is not None]
        parts += _line(points, COLOURS[index % len(COLOURS)])
        if len(panel.series) > 1:
            x = right - 62 * (len(panel.series) - index) + 10
            colour = COLOURS[index % len(COLOURS)]
            parts.append(f'<path d="M{x:.1f} {y0 + 16:.1f}h18" stroke="{colour}" stroke-width="2"/>')
            parts.append(_text(x + 23, y0 + 20, series.label))
    if not known:
        parts.append(_text((left + right) / 2, (top + bottom) / 2, "nothing measured", 'text-anchor="middle"'))
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'] if points else []
    return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]


def _text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'


def check(path: Path) -> None:
    """Refuse a plot that could not be written, before the measuring begins.

    Raises:
        OperatorError: another ending than .svg or .png, or a PNG without matplotlib.
    """
    if path.suffix not in {".svg", ".png"}:
        raise OperatorError(f"{path}: a plot ends in .svg or .png")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise OperatorError(
            f"{path}: a PNG needs matplotlib; `pip install matplotlib`, or write an .svg, which needs nothing"
        )


def write(chart: Chart, path: Path) -> None:
    """Write the chart in the form that the path's ending says; see `check` for what can be wrong with it."""
    if path.suffix == ".svg":
        path.write_text(svg(chart), encoding="utf-8")
    else:
        _png(chart, path)


def _png(chart: Chart, path: Path) -> None:
    # A display library is loaded only by who asks for a PNG: it takes half a second and may not be there.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150, layout="constrained")
    figure.suptitle(chart.title)
    places = range(len(chart.clients))
    for panel, axes in zip(chart.panels, figure.subplots(2, 2).flat, strict=True):
        for series, colour, mark in zip(panel.series, COLOURS, MARKS, strict=False):
            values = [math.nan if value is None else value for value in series.values]
            axes.plot(places, values, color=colour, marker=mark, label=series.label)
        axes.set_title(panel.title)
        axes.set_ylabel(panel.unit)
        axes.set_xlabel("clients")
        axes.set_xticks(places, [str(number) for number in chart.clients])
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, axis="y", alpha=0.3)
        if len(panel.series) > 1:
            axes.legend()
    figure.savefig(path)
