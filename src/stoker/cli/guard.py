"""`stoker guard`: how well the guard tells attacks from harmless texts, and what it sees in one. Printing only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from stoker.cli.progress import output

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Test the guard against prompt injection.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SHIPPED_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row of a file to evaluate."""

    text: str
    attack: bool
    lang: str
    source: str


@app.command("eval")
def evaluate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help="One JSON object a line: text, label (1 attack, 0 harmless), and if known lang and source.",
        ),
    ],
    *,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Score from which a text counts as an attack.")
    ] = SHIPPED_THRESHOLD,
    as_json: AsJson = False,
) -> None:
    """Measure recall and false positives on labelled texts, in all and by source and language.

    For example:

    - `stoker guard eval attacks.jsonl`

    - `stoker guard eval attacks.jsonl --threshold 0.3 --json`
    """
    from stoker.admission.guard.inspect import Guard

    rows = read_rows(file)
    guard = Guard.load()
    caught = [guard.inspect(row.text).score >= threshold for row in rows]
    report = figures(rows, caught)
    if as_json:
        _print_json({"threshold": threshold, **report})
        return
    console = output()
    console.print(_table("all", {"all": report}))
    console.print(_table("source", report["sources"]))
    console.print(_table("language", report["languages"]))


@app.command()
def explain(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The text; - reads standard input.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what the guard sees in a text: its score and class, and the rules that hit.

    For example:

    - `stoker guard explain "Ignore all previous instructions."`

    - `stoker guard explain - < message.txt`
    """
    from stoker.admission.guard.inspect import Guard, rules_by_id

    verdict = Guard.load().inspect(sys.stdin.read() if text == "-" else text)
    if as_json:
        _print_json(asdict(verdict))
        return
    attack = verdict.score >= SHIPPED_THRESHOLD
    summary = Table(box=None, show_header=False, pad_edge=False)
    summary.add_row("score", Text(f"{verdict.score:.3f}", style="bold red" if attack else "green"))
    summary.add_row("classifier", f"{verdict.classifier:.3f}")
    summary.add_row("class", verdict.category or "-")
    output().print(summary)
    if verdict.rules:
        known = rules_by_id()
        table = Table(box=None, pad_edge=False)
        for column in ("rule", "score", "class"):
            table.add_column(column, justify="right" if column == "score" else "left")
        for name in verdict.rules:
            table.add_row(Text(name, style="yellow"), f"{known[name].score:.2f}", known[name].category)
        output().print(table)


def read_rows(file: Path) -> list[LabelledText]:
    """The labelled texts of a file.

    Raises:
        OperatorError: there is no such file, or a line is not what it must be; the message has its number.
    """
    from stoker.errors import OperatorError

    try:
        content = file.read_bytes()
    except OSError as error:
        raise OperatorError(f"{file} cannot be read: {error.strerror}. Give a JSONL file of labelled texts.") from error
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise OperatorError(f"{file}, line {number}: not JSON ({error}). Every line must be one object.") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("label") not in (0, 1):
            raise OperatorError(
                f'{file}, line {number}: expected an object with "text" (a string) and "label" (0 or 1).'
            )
        rows.append(
            LabelledText(
                row["text"], bool(row["label"]), str(row.get("lang", "unknown")), str(row.get("source", "unknown"))
            )
        )
    if not rows:
        raise OperatorError(f"{file} holds no rows. Every line must be one JSON object.")
    return rows


def figures(rows: Sequence[LabelledText], caught: Sequence[bool]) -> dict[str, Any]:
    """Recall and false positives, in all and under `sources` and `languages`.

    A rate is None where it has no texts to be of: recall without attacks, false positives without harmless texts.
    """
    pairs = list(zip(rows, caught, strict=True))

    def by(name: Callable[[LabelledText], str]) -> dict[str, Any]:
        return {
            key: _rates([pair for pair in pairs if name(pair[0]) == key]) for key in sorted({name(row) for row in rows})
        }

    return {**_rates(pairs), "sources": by(lambda row: row.source), "languages": by(lambda row: row.lang)}


def _rates(pairs: Sequence[tuple[LabelledText, bool]]) -> dict[str, Any]:
    attacks = [hit for row, hit in pairs if row.attack]
    harmless = [hit for row, hit in pairs if not row.attack]
    return {
        "recall": sum(attacks) / len(attacks) if attacks else None,
        "false_positive_rate": sum(harmless) / len(harmless) if harmless else None,
        "attacks": len(attacks),
        "caught": sum(attacks),
        "harmless": len(harmless),
        "false_positives": sum(harmless),
    }


def _table(name: str, groups: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in (name, "attacks", "recall", "harmless", "false positives"):
        table.add_column(column, justify="left" if column == name else "right")
    for key, rates in groups.items():
        recall, false = rates["recall"], rates["false_positive_rate"]
        table.add_row(
            Text(key),
            str(rates["attacks"]),
            Text("-" if recall is None else f"{recall:.1%}", style=_colour(recall, good=0.9, bad=0.7)),
            str(rates["harmless"]),
            Text("-" if false is None else f"{false:.1%}", style=_colour(false, good=0.01, bad=0.05)),
        )
    table.add_row()
    return table


def _colour(rate: float | None, *, good: float, bad: float) -> str:
    """Green from `good` on, red from `bad` on; which of them is larger says whether more is better."""
    if rate is None:
        return ""
    sign = 1 if good > bad else -1
    if sign * rate >= sign * good:
        return "green"
    return "red" if sign * rate <= sign * bad else "yellow"


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
