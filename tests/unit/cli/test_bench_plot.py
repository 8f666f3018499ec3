"""Plots of a load run."""

from __future__ import annotations

import importlib.util
import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.cli import loadplot
from stoker.cli.loadplot import axis, chart_of, svg, write
from stoker.cli.loadstats import Level, Sample, summarise
from stoker.errors import OperatorError

SVG = "{http://www.w3.org/2000/svg}"


def level(clients: int, *, error: str | None = None) -> Level:
    samples = [
        Sample(started=0.0, first=0.1 * n, last=0.1 * n + 1, ended=0.1 * n + 1, completion_tokens=20, error=error)
        for n in range(1, 5)
    ]
    return summarise(clients, samples)


def test_the_drawing_has_four_charts_with_units_and_legend():
    root = ET.fromstring(svg(chart_of("a <model> & more", [level(1), level(2), level(16)])))
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert "a <model> & more" in words
    for title in ("Throughput (tokens/s)", "Time to first token (ms)", "Time per output token (ms)", "End to end (ms)"):
        assert title in words
    assert words.count("clients") == 4
    assert words.count("16") >= 4
    assert (words.count("p50"), words.count("p95"), words.count("p99")) == (3, 3, 3)
    assert len(list(root.iter(f"{SVG}polyline"))) == 10
    assert len(list(root.iter(f"{SVG}circle"))) == 30


def test_every_point_lies_inside_the_picture():
    root = ET.fromstring(svg(chart_of("t", [level(n) for n in (1, 2, 4, 8, 16)])))
    points = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in root.iter(f"{SVG}circle")]
    assert points
    assert all(0 < x < loadplot.WIDTH and loadplot.TOP < y < loadplot.HEIGHT for x, y in points)


def test_levels_without_an_answer_leave_gaps():
    root = ET.fromstring(svg(chart_of("t", [level(1), level(2, error="timeout")])))
    assert len(list(root.iter(f"{SVG}circle"))) == 2 + 9


def test_a_run_without_any_answer_says_so():
    assert svg(chart_of("t", [level(1, error="timeout")])).count("nothing measured") == 3


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_axes_reach_the_highest_value_in_a_few_round_steps(highest):
    ticks = axis(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-6)
    assert 3 <= len(ticks) <= 7


@pytest.mark.parametrize("highest", [0.0, -1.0, math.nan, math.inf])
def test_axes_of_nothing(highest):
    assert axis(highest) == (0.0, 1.0)


def test_a_png_is_drawn_by_matplotlib(tmp_path):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: pip install matplotlib")
    path = tmp_path / "plot.png"
    write(chart_of("t", [level(1), level(2)]), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(OperatorError, match="pip install matplotlib"):
        loadplot.check(tmp_path / "plot.png")
    loadplot.check(tmp_path / "plot.svg")


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(OperatorError, match="svg"):
        loadplot.check(tmp_path / "plot.pdf")
