"""Writes the parts of this directory that follow from the code: tables of settings and metrics, a JSON Schema.

`python docs/generate.py` writes them; with `--check` it changes nothing, names what is stale and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.config import ENV_PREFIX
from stoker.observability.families import HistogramFamily
from stoker.observability.live import FIGURES
from stoker.observability.metrics import Metrics

HERE = Path(__file__).resolve().parent
UNITS = {
    "plan.batch": "tokens",
    "plan.context": "tokens",
    "queue.max_requests": "requests",
    "queue.max_tokens": "tokens",
    "limits.nesting": "levels",
    "limits.characters": "characters",
    "generation.max_tokens": "tokens",
    "generation.json_string_chars": "characters",
    "keys[].rate.window": "s",
    "guard.characters": "characters",
    "store.timeout": "s",
    "cache.ttl": "s",
    "routing.sticky": "s",
    "jobs.backoff": "s",
    "rollout.canary_time": "s",
    "rollout.bake": "s",
    "rollout.drain": "s",
    "rollout.min_requests": "requests",
    "backup.grace": "s",
    "backup.look": "s",
    "backup.late": "s",
    "backup.rate_mib": "MiB/s",
    "jobs.backoff_max": "s",
    "jobs.lease": "s",
    "jobs.expires": "s",
    "jobs.keep": "s",
    "jobs.idempotency": "s",
    "jobs.webhooks.backoff": "s",
    "jobs.webhooks.backoff_max": "s",
    "jobs.webhooks.timeout": "s",
    "restart.backoff": "s",
    "log.content_chars": "characters",
    "health.canary_interval": "s",
    "health.canary_timeout": "s",
    "health.lag_warn": "s",
    "restart.backoff_max": "s",
    "restart.healthy_after": "s",
}
"""Units that neither a key's name nor its group tells."""
METRIC_GROUPS = (
    "Requests",
    "Times",
    "Models",
    "Engines",
    "Cache and store",
    "Decisions",
    "Jobs",
    "Rollouts",
    "Backups",
    "Health",
    "Process and host",
    "Endpoint picker",
)
"""In the order of the page."""
COMPUTED_DEFAULTS = {"data_dir": "`~/.local/share/stoker`", "tracing.headers": ""}

Schema = Mapping[str, Any]


def schema_text() -> str:
    """The JSON Schema as `stoker config schema` prints it; RuntimeError when that fails."""
    result = CliRunner().invoke(app, ["config", "schema"])
    if result.exit_code:
        raise RuntimeError(f"stoker config schema failed: {result.output}")
    return result.stdout


def settings_tables(schema: Schema) -> str:
    """Markdown tables of every key of the settings, one for each kind of group, as `schema` describes them."""
    places = dict(_places("", schema, schema, {}))
    plain = [(name, spec) for name, spec in schema["properties"].items() if not _group_name(spec)]
    parts = ["### At the top", "", *_table("", plain, schema, places)]
    for kind, title in places.items():
        group = schema["$defs"][kind]
        parts += ["", f"### `{title}`", "", group["description"], ""]
        parts += _table(title, group["properties"].items(), schema, places)
    return "\n".join(parts)


def _places(prefix: str, group: Schema, schema: Schema, seen: dict[str, str]) -> dict[str, str]:
    """Where each kind of group stands first, from the top down."""
    inside = []
    for name, spec in group["properties"].items():
        kind = _group_name(spec)
        if kind and kind not in seen:
            seen[kind] = f"{prefix}{name}" + ("[]" if spec.get("type") == "array" else "")
            inside.append(kind)
    for kind in inside:
        _places(f"{seen[kind]}.", schema["$defs"][kind], schema, seen)
    return seen


def metrics_tables() -> str:
    """Markdown tables of every series that is declared, one for each group."""
    series = sorted([*Metrics().families, *FIGURES], key=lambda one: METRIC_GROUPS.index(one.group))
    parts: list[str] = []
    for group, members in groupby(series, key=lambda one: one.group):
        parts += [f"### {group}", "", "| Name | Type | Labels | What it is |", "|---|---|---|---|"]
        for one in members:
            kind = f"histogram of {len(one.bounds) + 1} buckets" if isinstance(one, HistogramFamily) else one.kind
            labels = ", ".join(f"`{label}`" for label in one.label_names)
            parts.append(f"| `{one.name}` | {kind} | {labels} | {one.text} |")
        parts.append("")
    return "\n".join(parts[:-1])


def page_with(tables: str, path: Path, mark: str) -> str:
    """The page with `tables` between its marks; ValueError when it has none."""
    begins, ends = f"<!-- {mark}: written by docs/generate.py -->", f"<!-- /{mark} -->"
    head, begin, rest = path.read_text(encoding="utf-8").partition(begins)
    _, end, tail = rest.partition(ends)
    if not begin or not end:
        raise ValueError(f"{path} has no {begins} ... {ends}")
    return f"{head}{begin}\n\n{tables}\n\n{end}{tail}"


def _group_name(spec: Schema) -> str | None:
    """The kind of group that a key holds, or a list of; None for a key that is no group."""
    options = [spec["items"]] if spec.get("type") == "array" else spec.get("anyOf", [spec])
    reference = next((option["$ref"] for option in options if "$ref" in option), None)
    return None if reference is None else str(reference).rsplit("/", 1)[1]


def _table(prefix: str, keys: Iterable[tuple[str, Schema]], schema: Schema, places: Mapping[str, str]) -> Iterator[str]:
    yield "| Key | Type | Default | Unit | What it is |"
    yield "|---|---|---|---|---|"
    for key, spec in keys:
        name = f"{prefix}.{key}" if prefix else key
        kind = _group_name(spec)
        link = f"as [`{places[kind]}`](#{_anchor(places[kind])})" if kind else _type(spec)
        text = spec.get("description") or schema["$defs"].get(kind, {}).get("description", "")
        text = text.replace("\n", " ").replace("|", "\\|")
        yield f"| `{key}` | {link} | {_default(name, spec, kind)} | {_unit(name)} | {text} |"


def _anchor(title: str) -> str:
    """The link target that renderers of Markdown make of a heading."""
    return title.replace(".", "").replace("[]", "")


def _type(spec: Schema) -> str:
    """A key's type and bounds in words."""
    kinds = [part for part in spec.get("anyOf", [spec]) if part.get("type") != "null"]
    return " or ".join(map(_one_type, kinds))


def _one_type(spec: Schema) -> str:
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if spec.get("type") == "array":
        return f"list of {_one_type(spec['items'])}s"
    name = str({"path": "path", "password": "secret"}.get(spec.get("format", ""), spec["type"]))
    low, high = spec.get("minimum"), spec.get("maximum")
    if "exclusiveMinimum" in spec:
        return f"{name} > {spec['exclusiveMinimum']:g}"
    if low is not None and high is not None:
        return f"{name} {low:g}..{high:g}"
    return name if low is None else f"{name} >= {low:g}"


def _default(name: str, spec: Schema, group: object) -> str:
    if name in COMPUTED_DEFAULTS:
        return COMPUTED_DEFAULTS[name]
    if group or spec.get("default", ...) in (None, [], {}):
        return ""
    return f"`{json.dumps(spec['default'])}`" if "default" in spec else "required"


def _unit(name: str) -> str:
    if name in UNITS:
        return UNITS[name]
    if name.startswith("timeouts."):
        return "s"
    return next(
        (unit for end, unit in (("_mib", "MiB"), ("_kib", "KiB"), ("_bytes", "bytes")) if name.endswith(end)), ""
    )


def main() -> int:
    """Write or check; 1 when a check finds something stale."""
    parser = argparse.ArgumentParser(description=f"Tables and schema of settings ({ENV_PREFIX}...) and metrics.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something is stale")
    check = parser.parse_args().check
    text = schema_text()
    settings, metrics = HERE / "configuration.md", HERE / "metrics.md"
    wanted = {
        settings: page_with(settings_tables(json.loads(text)), settings, "settings"),
        metrics: page_with(metrics_tables(), metrics, "metrics"),
        HERE / "stoker.schema.json": text,
    }
    stale = {path: new for path, new in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != new}
    for path, new in stale.items():
        if not check:
            path.write_text(new, encoding="utf-8")
        sys.stdout.write(f"{path.name}: {'is stale; run python docs/generate.py' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
