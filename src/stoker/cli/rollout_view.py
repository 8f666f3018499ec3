"""What the rollout verbs show: a rollout as it goes on, as facts, and in a table."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stoker.cli.words import octets, printable, when

COMPARED: Final = frozenset({"canary", "baking"})
"""Phases in which both versions' figures are compared."""
TOLD_EVERY_S: Final = 15.0
DIGITS: Final = 12
"""Of a digest, for people."""
BAR_WIDTH: Final = 40
SHOWN_CASES: Final = 10
SHOWN_ANSWER: Final = 80


class View(Protocol):
    """Who is shown a rollout each time it has changed."""

    def show(self, rollout: Mapping[str, Any]) -> None:
        """Show it as it stands now."""

    def note(self, text: str) -> None:
        """Show a line."""


class Steps:
    """Lines about what has happened since they were last asked for."""

    def __init__(self) -> None:
        self._until = -math.inf
        self._begun = False

    def of(self, rollout: Mapping[str, Any]) -> Iterator[str]:
        """A line for each phase that was entered."""
        if not self._begun:
            self._begun = True
            yield headline(rollout)
        for step in rollout.get("steps") or ():
            if step["at"] > self._until:
                self._until = step["at"]
                yield f"{_clock(step['at'])}  {_words(step['phase']):<12}{printable(step['note'])}".rstrip()


class Lines:
    """For pipes and logs: a line on standard error for each step, and for figures now and then."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._told = -math.inf

    def show(self, rollout: Mapping[str, Any]) -> None:
        """Write what is new."""
        for line in self._steps.of(rollout):
            self.note(line)
            self._told = time.monotonic()
        figures = figures_of(rollout)
        if figures and time.monotonic() - self._told >= TOLD_EVERY_S:
            self._told = time.monotonic()
            left = _seconds_left(rollout)
            more = "" if left is None else f"; {_span(left)} left"
            self.note(f"{_clock(time.time())}  {_words(rollout['phase']):<12}{figures}{more}")

    def note(self, text: str) -> None:
        """Write a line."""
        sys.stderr.write(f"{text}\n")


class Screen:
    """For people: steps as lines, and under them what happens now, drawn anew as it changes."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._steps = Steps()
        self._spinner = Spinner("dots")
        self._rollout: Mapping[str, Any] | None = None

    def show(self, rollout: Mapping[str, Any]) -> None:
        """Draw it."""
        for line in self._steps.of(rollout):
            self.note(line)
        self._rollout = None if rollout["ended"] else rollout
        self._live.update(self)

    def note(self, text: str) -> None:
        """Print a line above the drawing."""
        self._live.console.print(Text(text))

    def __rich__(self) -> RenderableType:
        """What to draw just now: time goes on where nothing else does."""
        return Text("") if self._rollout is None else self._now(self._rollout)

    def _now(self, rollout: Mapping[str, Any]) -> RenderableType:
        line = f"{_words(rollout['phase'])}, {_span(time.time() - _entered(rollout))} so far"
        left = _seconds_left(rollout)
        self._spinner.update(text=Text(line + ("" if left is None else f", {_span(left)} left")))
        parts: list[RenderableType] = [self._spinner]
        progress = rollout.get("progress") or {}
        if "total" in progress:
            bar = ProgressBar(total=progress["total"], completed=progress["done"], width=BAR_WIDTH)
            row = Table.grid(padding=(0, 1))
            row.add_row(bar, Text(figures_of(rollout)))
            parts.append(row)
        elif rollout["phase"] in COMPARED and "after" in progress:
            parts.append(comparison(rollout))
        return Group(*parts)


@contextlib.contextmanager
def viewing() -> Iterator[View]:
    """A drawing where standard error is a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    with Live(Text(""), console=Console(stderr=True, highlight=False), transient=True, refresh_per_second=8) as live:
        yield Screen(live)


def headline(rollout: Mapping[str, Any]) -> str:
    """Which version takes over from which."""
    before, after = rollout["before"], rollout["after"]
    return printable(f"{rollout['id']}: {rollout['model']} from {_version(before)} to {_version(after)}")


def comparison(rollout: Mapping[str, Any]) -> Table:
    """Both versions' figures, side by side."""
    table = Table("version", "requests", "failed", "first token (p95)", box=None, header_style="bold", pad_edge=False)
    for name in ("before", "after"):
        figures = rollout["progress"][name]
        cells = (
            rollout[name]["ref"],
            str(figures["requests"]),
            _share(figures["error_rate"]),
            _milliseconds(figures["ttft_p95"]),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def figures_of(rollout: Mapping[str, Any]) -> str:
    """How far the present phase is, in one line; empty when there is nothing to say."""
    progress = rollout.get("progress") or {}
    if "total" in progress:
        return f"{progress['done']} of {progress['total']} answers"
    if "after" not in progress:
        return ""
    new = progress["after"]
    if not new["requests"]:
        return "no requests so far"
    failed, first_token = _share(new["error_rate"]), _milliseconds(new["ttft_p95"])
    return f"{new['requests']} requests, {failed} failed, {first_token} to the first token (p95)"


def outcome(rollout: Mapping[str, Any]) -> str:
    """How a rollout ended, and which version serves now, in one sentence."""
    refs = {name: rollout[name]["ref"] for name in ("before", "after")}
    if rollout["phase"] == "succeeded":
        took_all = _span(rollout["updated"] - rollout["created"])
        return printable(f"{refs['after']} serves {rollout['model']}; the rollout took {took_all}")
    why = f": {rollout['reason']}" if rollout["reason"] else ""
    ended = {"refused": "was refused", "aborted": "was aborted", "rolled_back": "was rolled back"}
    how = ended.get(rollout["phase"], rollout["phase"])
    return f"rollout {rollout['id']} {how}{why}; {refs['before']} serves {rollout['model']}"


def facts(rollout: Mapping[str, Any]) -> dict[str, str]:
    """What a person wants to know of a rollout, by name; without what it has not."""
    left = _seconds_left(rollout)
    options = rollout["options"]
    told = {
        "id": rollout["id"],
        "model": rollout["model"],
        "from": _version(rollout["before"]),
        "to": _version(rollout["after"]),
        "phase": _words(rollout["phase"]) + ("" if left is None else f", {_span(left)} left"),
        "progress": figures_of(rollout),
        "reason": rollout["reason"],
        "evaluation": evaluation(rollout),
        "canary": f"{_share(options['canary'])} for {_span(options['canary_time'])}" if options["canary"] else "",
        "bake": _span(options["bake"]),
        "started": when(rollout["created"]) + (f" by {rollout['by']}" if rollout["by"] else ""),
        "attempts": str(rollout["attempts"]) if rollout["attempts"] > 1 else "",
        "other version": "loaded as well" if rollout["warm"] else "",
    }
    return {name: printable(value) for name, value in told.items() if value}


def evaluation(rollout: Mapping[str, Any]) -> str:
    """Which set the new version must pass, and whether it did."""
    name, report = rollout["options"]["evaluation"], rollout.get("evaluation")
    if name is None:
        return "none"
    if not report:
        return str(name)
    passed = "passed" if report["verdict"]["passed"] else "not passed"
    return f"{name}: {passed}, {report['passed']} of {report['cases']} cases"


def failed_cases(rollout: Mapping[str, Any]) -> Iterator[str]:
    """Where the whole was not passed: the cases that were not, a line each, with the answer's beginning."""
    report = rollout.get("evaluation")
    if not report or report["verdict"]["passed"]:
        return
    failed = [result for result in report["results"] if result["outcome"] != "passed"]
    for result in failed[:SHOWN_CASES]:
        said = result["answer"][:SHOWN_ANSWER].replace("\n", " ")
        yield printable(
            f"case {result['id']}: {'; '.join(result['failures'])}" + (f"; it said {said!r}" if said else "")
        )
    if len(failed) > SHOWN_CASES:
        yield f"and {len(failed) - SHOWN_CASES} more; --json shows them"


def table_of(rollouts: Sequence[Mapping[str, Any]]) -> Table:
    """Rollouts, a line each."""
    columns = ("id", "model", "from", "to", "phase", "started", "took", "reason")
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for rollout in rollouts:
        cells = (
            rollout["id"],
            rollout["model"],
            rollout["before"]["ref"],
            rollout["after"]["ref"],
            _words(rollout["phase"]),
            when(rollout["created"]),
            _span(rollout["updated"] - rollout["created"]) if rollout["ended"] else "",
            "" if rollout["phase"] == "succeeded" else rollout["reason"],
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What a dry run found, a line each."""
    yield printable(f"{plan['model']} from {_version(plan['before'])} to {_version(plan['after'])}")
    if plan["fits"]:
        yield f"both fit: it needs {octets(plan['needed_bytes'])}, and {octets(plan['granted_bytes'])} are granted"
    else:
        yield printable(plan["message"])
    yield from (printable(f"{number}. {step}") for number, step in enumerate(plan["steps"], 1))


def _version(version: Mapping[str, Any]) -> str:
    return f"{version['ref']} ({version['digest'][:DIGITS]})"


def _entered(rollout: Mapping[str, Any]) -> float:
    steps = rollout.get("steps") or ()
    return float(steps[-1]["at"] if steps else rollout["created"])


def _seconds_left(rollout: Mapping[str, Any]) -> int | None:
    until = rollout["until"]
    return None if until is None or rollout["ended"] else max(0, round(until - time.time()))


def _words(phase: str) -> str:
    return phase.replace("_", " ")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}".replace(".0%", "%")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _span(seconds: float) -> str:
    """A length of time in whole seconds: `45 s`, `3 min 20 s`, `1 h 5 min`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    said = [f"{amount} {unit}" for amount, unit in parts if amount]
    return " ".join(said[:2]) or "0 s"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
