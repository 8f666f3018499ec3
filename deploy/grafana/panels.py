"""The parts of a dashboard in Grafana's JSON: panels, rows, variables, and their layout.

Source: the dashboard schema of Grafana's foundation SDK, https://github.com/grafana/grafana-foundation-sdk
"""  # noqa: INP001 - a script's neighbour, no package

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 42
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

Json = dict[str, Any]
Steps = Sequence[tuple[float, str]]
"""Thresholds: from which value on which colour holds, ascending; below the first one it is green."""


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and how its series are called, with `{{label}}` for a label's value."""

    expr: str
    legend: str = ""
    style: str = "time_series"
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel without its place.

    Attributes:
        kind: Grafana's name of the panel type.
        title: what it shows.
        text: what a reader should know of it.
        queries: what is asked.
        size: width in columns of 24, and height in rows of 30 pixels.
        defaults: of its fields: unit, thresholds, bounds, mappings.
        options: of the panel type.
        more: what only some types have.
    """

    kind: str
    title: str
    text: str
    queries: Sequence[Query]
    size: tuple[int, int]
    defaults: Mapping[str, Any]
    options: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)

    def placed(self, number: int, x: int, y: int) -> Json:
        """Its JSON at a place."""
        width, height = self.size
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "fieldConfig": {"defaults": dict(self.defaults), "overrides": []},
            "options": dict(self.options),
            "targets": [_target(query, letter) for query, letter in zip(self.queries, _letters(), strict=False)],
            **self.more,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels, which flow from left to right."""

    title: str
    panels: Sequence[Panel]


def stat(title: str, text: str, query: Query, *, unit: str = "short", steps: Steps = (), **defaults: Any) -> Panel:
    """The latest value, large, coloured by thresholds; `defaults` may have `decimals`, `mappings`, `noValue`."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        "textMode": "auto",
        "wideLayout": True,
    }
    return Panel("stat", title, text, [query], (4, 4), {**_scale(unit, steps), **defaults}, options)


def lines(
    title: str,
    text: str,
    *queries: Query,
    unit: str = "short",
    steps: Steps = (),
    stacked: bool = False,
    width: int = 8,
    **defaults: Any,
) -> Panel:
    """Values over time, with thresholds as lines; `defaults` may have `min` and `max`."""
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if steps else "off"},
    }
    look = {**_scale(unit, steps), "color": {"mode": "palette-classic"}, "min": 0, "custom": custom, **defaults}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, text, queries, (width, 8), look, options)


def heatmap(title: str, text: str, expr: str, *, unit: str = "s", width: int = 12) -> Panel:
    """How values are spread over a histogram's buckets, over time."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "short"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "fill": "dark-orange",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    custom = {"scaleDistribution": {"type": "linear"}, "hideFrom": {"legend": False, "tooltip": False, "viz": False}}
    query = Query(expr, "{{le}}", style="heatmap")
    return Panel("heatmap", title, text, [query], (width, 8), {"custom": custom}, options)


def states(title: str, text: str, query: Query, values: Mapping[float, tuple[str, str]], *, width: int = 12) -> Panel:
    """Which of a few states things were in, over time; each value's name and colour."""
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    look = {**_scale("short", ()), "custom": {"fillOpacity": 80, "lineWidth": 0}, "mappings": named(values)}
    return Panel("state-timeline", title, text, [query], (width, 8), look, options)


def table(title: str, text: str, query: Query, *columns: str, width: int = 12) -> Panel:
    """The labels of what is there now, in this order."""
    hidden = {"Time": True, "Value": True}
    organise = {"excludeByName": hidden, "indexByName": {name: place for place, name in enumerate(columns)}}
    chosen = {"include": {"names": list(columns)}}
    more = {
        "transformations": [
            {"id": "filterFieldsByName", "options": chosen},
            {"id": "organize", "options": {**organise, "renameByName": {}}},
        ]
    }
    query = Query(query.expr, query.legend, style="table", instant=True)
    options = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
    look = {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}}
    return Panel("table", title, text, [query], (width, 6), look, options, more)


def named(values: Mapping[float, tuple[str, str]]) -> list[Json]:
    """Value mappings: each value's name and colour."""
    options = {
        f"{value:g}": {"text": text, "color": color, "index": place}
        for place, (value, (text, color)) in enumerate(values.items())
    }
    return [{"type": "value", "options": options}]


def variable(name: str, label: str, query: str) -> Json:
    """A template variable of a label's values, several of which may be chosen, or all."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def dashboard(uid: str, title: str, text: str, variables: Sequence[Json], rows: Sequence[Row]) -> Json:
    """A whole dashboard; its siblings are those with the same tag."""
    siblings = {
        "type": "dashboards",
        "title": "Stoker",
        "tags": ["stoker"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
    datasource = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "current": {"selected": True, "text": "default", "value": "default"},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["stoker"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [siblings],
        "templating": {"list": [datasource, *variables]},
        "panels": list(_layout(rows)),
    }


def _layout(rows: Sequence[Row]) -> Iterator[Json]:
    """The rows and their panels with numbers and places, from top to bottom."""
    number, y = 0, 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            width, height = panel.size
            if x + width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield panel.placed(number, x, y)
            x, tallest = x + width, max(tallest, height)
        y += tallest


def _scale(unit: str, steps: Steps) -> Json:
    found = [{"value": None, "color": GREEN}, *({"value": value, "color": color} for value, color in steps)]
    return {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": found}}


def _target(query: Query, letter: str) -> Json:
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": query.style,
        "instant": query.instant,
        "range": not query.instant,
        "editorMode": "code",
    }


def _letters() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
