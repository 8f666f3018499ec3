"""What `stoker evaluate` shows of a report: figures beside what was wanted, failed cases, and what changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from stoker.evaluation.report import cut, differences
from stoker.evaluation.verdict import Check, in_words, label

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stoker.evaluation.report import CaseResult, Report
    from stoker.evaluation.verdict import Verdict

MOST_LINES: Final = 50
"""Cases that are shown; the rest is counted."""
ANSWER_CHARS: Final = 100
_FIGURES: Final = ("pass_rate", "errors", "ttft_p95", "tokens_per_s")


def shown(report: Report, verdict: Verdict, against: Report | None) -> Iterator[RenderableType]:
    """The report for a terminal, from the figures to the verdict."""
    yield _figures(report, verdict, against)
    failed = [result for result in report.results if not result.passed]
    yield from _listed("failed", [_case(result) for result in failed])
    if against is not None:
        changed = differences(report, against)
        yield from _listed("worse", [_case(d.after, d.before) for d in changed if not d.better])
        yield from _listed("better", [_case(d.after, d.before) for d in changed if d.better])
    yield Text("")
    for check in verdict.checks:
        if not check.passed:
            yield Text.assemble(("failed  ", "bold red"), plain(str(check)))
    if verdict.passed:
        yield Text("passed", "bold green")


def _figures(report: Report, verdict: Verdict, against: Report | None) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column(Text(plain(report.model) or "measured"), justify="right")
    if against is not None:
        table.add_column(Text(plain(against.model) or "against"), justify="right")
    table.add_column("wanted", justify="right")
    checks = {check.name: check for check in verdict.checks}
    tags = [f"tag:{tag}" for tag in report.by_tag]
    relative = [name for name in checks if name not in _FIGURES and not name.startswith("tag:")]
    for name in (_FIGURES[0], *tags, *_FIGURES[1:], *relative):
        check = checks.get(name)
        cells = [Text(plain(label(name))), _cell(name, report, check)]
        if against is not None:
            cells.append(_cell(name, against, None))
        cells.append(Text("" if check is None else f"at {check.bound} {in_words(name, check.limit)}", "dim"))
        table.add_row(*cells)
    return table


def _cell(name: str, report: Report, check: Check | None) -> Text:
    """One figure: red or green where something is wanted of it."""
    value = check.value if check is not None else _value(name, report)
    if value is None:
        return Text("-" if check is None else "not measured", "" if check is None else "red")
    style = "" if check is None else "green" if check.passed else "red"
    counted = report.by_tag.get(name.removeprefix("tag:")) if name.startswith("tag:") else None
    counted = report.tally if name == "pass_rate" else counted
    of = "" if counted is None else f"  {counted.passed}/{counted.cases}"
    return Text(in_words(name, value) + of, style)


def _value(name: str, report: Report) -> float | None:
    tally = report.by_tag.get(name.removeprefix("tag:"))
    if name.startswith("tag:"):
        return None if tally is None else tally.rate
    figures = {
        "pass_rate": report.pass_rate,
        "errors": report.errors,
        "ttft_p95": report.ttft_p95,
        "tokens_per_s": report.tokens_per_s,
    }
    return figures.get(name)


def _listed(heading: str, lines: list[Text]) -> Iterator[Text]:
    if not lines:
        return
    yield Text(f"\n{heading}", "bold")
    yield from lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        yield Text(f"  and {len(lines) - MOST_LINES} more; --output FILE has them all", "dim")


def _case(result: CaseResult, before: CaseResult | None = None) -> Text:
    """A case on a line: its name, what was wrong, the answer's beginning, and what it was before."""
    style = "yellow" if result.error else "green" if result.passed else "red"
    line = Text.assemble("  ", (plain(result.id), style))
    if result.failures:
        line.append(f"  {plain('; '.join(result.failures))}")
    if result.reply.text:
        line.append(f"  «{plain(cut(result.reply.text, ANSWER_CHARS))}»", "dim")
    if before is not None:
        line.append(f"  before: «{plain(cut(before.reply.text, ANSWER_CHARS))}»", "dim")
    return line


def plain(text: str) -> str:
    """A text on one line, without characters that a terminal would take for commands."""
    return "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
