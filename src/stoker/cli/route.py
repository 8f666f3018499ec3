"""`stoker route`: how well the experts' classifier does on labelled texts, and why a text goes where it goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from stoker.cli.progress import output

if TYPE_CHECKING:
    from stoker.config import RoutingConfig
    from stoker.routing.classifier import Classifier
    from stoker.routing.measure import Judged

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Measure and explain the choice of experts.")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.", show_default=False)]
TrainFile = Annotated[
    Path | None,
    typer.Option(
        "--train", help="JSONL with `text` and `domain`: its domains are the experts, instead of the configured ones."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(help="JSONL with `text`, `domain` (an expert's name, or `oos`), `lang`.")],
    *,
    config: ConfigFile = None,
    train: TrainFile = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Confidence below which no expert gets a text.", show_default="configured"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the classifier on labelled texts: the confusion matrix, accuracy in scope, AUROC of out-of-scope.

    For example:

    - `stoker route eval held_out.jsonl`

    - `stoker route eval dev.jsonl --train train.jsonl --json`
    """
    from stoker.errors import ConfigError
    from stoker.routing.examples import OUT_OF_SCOPE, read_rows
    from stoker.routing.measure import judge

    rows = read_rows(file, "FILE")
    routing = _routing(config, train)
    known = {expert.name for expert in routing.experts} | {OUT_OF_SCOPE}
    unknown = sorted({row.domain for row in rows if row.domain is not None} - known)
    if unknown or not any(row.domain for row in rows):
        what = (
            f"has rows of {', '.join(unknown)}, which no expert is called" if unknown else "has no row with a `domain`"
        )
        raise ConfigError(f"FILE: {file} {what}; the experts are {', '.join(sorted(known))}")
    limit = routing.threshold if threshold is None else threshold
    judged = judge(_classifier(routing), rows)
    if as_json:
        sys.stdout.buffer.write(
            orjson.dumps(_report(judged, limit), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        return
    _show(judged, limit)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text to route; `-` reads it from standard input.")],
    *,
    config: ConfigFile = None,
    train: TrainFile = None,
    as_json: AsJson = False,
) -> None:
    """Say which expert a text goes to, and why. Every model counts as up, and headers are not looked at.

    For example:

    - `stoker route explain "how do I block my card"`

    - `stoker route explain - --json < mail.txt`
    """
    from stoker.routing.router import Router

    if text == "-":
        text = sys.stdin.read()
    routing = _routing(config, train)
    classifier = _classifier(routing)
    ranking = classifier.rank(text)
    choice = Router(routing, "default model", classifier).decide(text, {}, None, lambda _: True)
    report = {
        "expert": choice.expert.name if choice.expert else None,
        "model": choice.model,
        "reason": choice.reason,
        "threshold": routing.threshold,
        "confidence": ranking.confidence,
        "scores": dict(ranking.scores),
        "nearest": [
            {"expert": near.expert, "text": near.text, "likeness": near.likeness} for near in classifier.nearest(text)
        ],
    }
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return
    _show_reasons(report)


def _routing(config: Path | None, train: Path | None) -> RoutingConfig:
    """The experts of the configuration, or made from the domains of a labelled file."""
    from stoker.config import ExpertConfig, RoutingConfig, load
    from stoker.errors import ConfigError
    from stoker.routing.examples import OUT_OF_SCOPE, read_rows

    if train is None:
        routing = load(config).routing
        if not routing.experts:
            raise ConfigError("routing.experts: none are configured; add some, or give a labelled file with --train")
        return routing
    rows = read_rows(train, "--train")
    texts: dict[str, list[str]] = {}
    for row in rows:
        if row.domain is None:
            raise ConfigError(f"--train: {train} has a row without `domain`; every row needs one, or `oos`")
        texts.setdefault(row.domain, []).append(row.text)
    outside = texts.pop(OUT_OF_SCOPE, [])
    if not texts:
        raise ConfigError(f"--train: {train} has no domain but `oos`; add rows for the experts")
    try:
        experts = tuple(
            ExpertConfig(name=name, model=name, examples=tuple(rows)) for name, rows in sorted(texts.items())
        )
    except ValueError:
        raise ConfigError(f"--train: {train} has a `domain` that is no expert's name: letters, digits, `._-`") from None
    base = RoutingConfig() if config is None else load(config).routing
    return base.model_copy(update={"experts": experts, "out_of_scope": tuple(outside), "out_of_scope_file": None})


def _classifier(routing: RoutingConfig) -> Classifier:
    from stoker.routing.classifier import Classifier
    from stoker.routing.examples import expert_examples, out_of_scope_examples

    descriptions = {expert.name: expert.description for expert in routing.experts if expert.description}
    return Classifier.train(expert_examples(routing), descriptions, out_of_scope_examples(routing))


def _by_language(judged: list[Judged]) -> dict[str, list[Judged]]:
    return {name: [row for row in judged if row.language == name] for name in sorted({row.language for row in judged})}


def _report(judged: list[Judged], threshold: float) -> dict[str, Any]:
    from stoker.routing.measure import confusion, figures

    whole = figures(judged)
    matrix: dict[str, dict[str, int]] = {}
    for (wanted, given), count in sorted(confusion(judged, threshold).items()):
        matrix.setdefault(wanted, {})[given] = count
    languages = {name: figures(rows) for name, rows in _by_language(judged).items()}
    return {
        "rows": whole.rows,
        "accuracy": whole.accuracy,
        "auroc": whole.auroc,
        "by_language": {
            name: {"rows": part.rows, "accuracy": part.accuracy, "auroc": part.auroc}
            for name, part in languages.items()
        },
        "threshold": threshold,
        "confusion": matrix,
    }


def _show(judged: list[Judged], threshold: float) -> None:
    report = _report(judged, threshold)
    console, matrix = output(), report["confusion"]
    names = sorted({*matrix, *(name for row in matrix.values() for name in row)})
    table = Table(box=None, pad_edge=False, title=f"Confusion at threshold {threshold:.2f}", title_justify="left")
    table.add_column("wanted \\ given", no_wrap=True)
    for name in names:
        table.add_column(Text(name), justify="right")
    for wanted in matrix:
        table.add_row(Text(wanted), *(str(matrix[wanted].get(name, 0) or "·") for name in names))
    console.print(table)
    figures_table = Table(box=None, pad_edge=False)
    for column in ("language", "rows", "accuracy in scope", "AUROC out of scope"):
        figures_table.add_column(column, justify="left" if column == "language" else "right")
    for name, part in {**report["by_language"], "all": report}.items():
        figures_table.add_row(Text(name), str(part["rows"]), _percent(part["accuracy"]), _fraction(part["auroc"]))
    console.print()
    console.print(figures_table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _show_reasons(report: dict[str, Any]) -> None:
    console = output()
    console.print(Text(f"{report['expert'] or report['model']}: {report['reason']}"))
    console.print(Text(f"classifier's confidence {report['confidence']:.2f}, threshold {report['threshold']:.2f}"))
    scores = Table(box=None, pad_edge=False)
    scores.add_column("expert")
    scores.add_column("probability", justify="right")
    for name, score in report["scores"].items():
        scores.add_row(Text(name), f"{score:.3f}")
    near = Table(box=None, pad_edge=False)
    for column in ("nearest example", "of", "likeness"):
        near.add_column(column, overflow="fold")
    for row in report["nearest"]:
        near.add_row(Text(row["text"]), Text(row["expert"] or "out of scope"), f"{row['likeness']:.2f}")
    console.print(scores)
    console.print(near)
