"""`stoker batch`: every line of a file as a job of a running server, their results in another file; resumable."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from stoker.cli.ask import DEFAULT_URL, Url
from stoker.cli.jobs import AsJson, Key
from stoker.errors import ConfigError, StokerError

if TYPE_CHECKING:  # imported when they are needed, for a quick --help
    from stoker.cli.client import Refused
    from stoker.cli.orders import Line
    from stoker.cli.progress import Bar, Notes
    from stoker.cli.remote import Remote
    from stoker.cli.results import Results

SUBMITTING = 8  # at once: when the server asks to wait, no more than these come back together
FAILURES_TOLD = 5
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: with which file, asking which model, under which name, and whether failures are asked again."""

    file: Path
    digest: str
    model: str | None
    run: str
    in_flight: int
    retry_failed: bool


@dataclass(slots=True)
class Tally:
    """Lines of a run: in all, and how they stand now. `before` of the succeeded and failed are from earlier starts;
    `replayed` were answered by jobs that had ended before this start asked for them.
    """

    lines: int
    succeeded: int = 0
    failed: int = 0
    before: int = 0
    replayed: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Lines that have their answer or their error."""
        return self.succeeded + self.failed


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help='OpenAI batch lines ({"custom_id", "method", "url", "body"}), or simple ones: {"text": ...} asks '
            '/query, {"messages": [...]} chats; a "custom_id" there is optional.',
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where results go.", show_default="FILE.results.jsonl")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model for lines that name none.", show_default="the server's")
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, max=1000, help="Jobs at the server at once.")] = 32,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what the output file has an error for.")
    ] = False,
    run: Annotated[
        str, typer.Option(help="Another name makes new jobs, where the server remembers those of this file.")
    ] = "",
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a server that went away or is overloaded.")
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Ask every line of a file, as jobs that survive this program and the server; write results as they end.

    Stop it at any time (Ctrl-C): the same command goes on from there. Lines that the output has are skipped, and jobs
    that are still at the server are found again. Results have OpenAI's batch output form, in the order of their ends.

    Exit status: 0 when all lines succeeded, 1 when some failed or the server could not be used, 2 when the command or a
    file is wrong, 130 when interrupted.

    For example:

    - `stoker batch questions.jsonl --out answers.jsonl`

    - `stoker batch questions.jsonl --url https://llm.example.com --in-flight 100 --json`

    - `stoker batch questions.jsonl --retry-failed`
    """
    from stoker.cli.client import Patience
    from stoker.cli.orders import digest_of, lines_of, refuse_doubles
    from stoker.cli.progress import counting
    from stoker.cli.remote import Remote
    from stoker.cli.results import Results

    target = out or file.with_name(f"{file.stem}.results.jsonl")
    if target.resolve() == file.resolve():
        raise ConfigError(f"{target}: is the file that is asked; name another with --out")
    plan = Plan(file, digest_of(file), model, run, in_flight, retry_failed)
    tally = Tally(refuse_doubles(file, lines_of(file, model)))
    with Results(target) as results:
        count_done(plan, results, tally)
        with counting("asking", tally.done, tally.lines) as watcher:
            remote = Remote(url, key, Patience(outage=patience, limits=math.inf), watcher.note)
            ended = _run(Work(plan, remote, results, tally, watcher), results, tally)
    _report(tally, target, ended=ended, as_json=as_json)
    if not ended:
        raise typer.Exit(INTERRUPTED)
    if tally.failed:
        raise typer.Exit(1)


def count_done(plan: Plan, results: Results, tally: Tally) -> None:
    """Count what earlier starts did; ConfigError when a row answers another request than its line asks now."""
    from stoker.cli.orders import lines_of

    for line in lines_of(plan.file, plan.model):
        done = results.done.get(line.custom_id)
        if done is None:
            continue
        if done.fingerprint != line.fingerprint:
            raise ConfigError(
                f"{results.path}: has a row for {line.custom_id!r} that answers another request than "
                f"{plan.file}:{line.number} asks; name another output file with --out"
            )
        if done.ok or not plan.retry_failed:
            tally.before += 1
            tally.succeeded += done.ok
            tally.failed += not done.ok


class Work:
    """The lines of a file on their way to the output.

    Args:
        plan: what to do.
        remote: the server; opened by `run`.
        results: where rows go.
        tally: is kept up to date.
        watcher: is told of progress.
    """

    def __init__(self, plan: Plan, remote: Remote, results: Results, tally: Tally, watcher: Bar | Notes) -> None:
        self._plan = plan
        self._remote = remote
        self._results = results
        self._tally = tally
        self._watcher = watcher
        self._submitting = asyncio.Semaphore(SUBMITTING)
        self._told = 0

    async def run(self) -> None:
        """Do all that is left to do; StokerError when the server cannot be used or the disk is full."""
        lines = self._open_lines()
        try:
            async with self._remote, asyncio.TaskGroup() as group:
                for _ in range(min(self._plan.in_flight, self._tally.lines - self._tally.done)):
                    group.create_task(self._work(lines))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _open_lines(self) -> Iterator[tuple[Line, str]]:
        """Lines that need an answer, each with the salt of its Idempotency-Key."""
        from stoker.cli.orders import lines_of

        for line in lines_of(self._plan.file, self._plan.model):
            done = self._results.done.get(line.custom_id)
            if done is None:
                yield line, self._plan.run
            elif self._plan.retry_failed and not done.ok:
                # The job that failed is what the server remembers: the next try goes by that one's name.
                yield line, f"{self._plan.run}\0{done.job or ''}"

    async def _work(self, lines: Iterator[tuple[Line, str]]) -> None:
        for line, salt in lines:
            outcome = await self._outcome(line, line.key(self._plan.digest, salt))
            ok = self._results.add(line.custom_id, line.fingerprint, outcome).ok
            self._tally.succeeded += ok
            self._tally.failed += not ok
            if not ok:
                self._tell_failure(line, outcome)
            self._watcher.update(self._tally.done, self._tally.lines)

    async def _outcome(self, line: Line, key: str) -> dict[str, Any]:
        from stoker.cli.client import Refused
        from stoker.cli.remote import ENDED
        from stoker.cli.results import outcome_of, refusal

        try:
            async with self._submitting:
                job = await self._remote.submit(line.order, key)
        except Refused as error:
            if not concerns_line(error):
                raise
            return refusal(error)
        self._tally.replayed += job["state"] in ENDED
        try:
            return outcome_of(await self._remote.end(job["id"]))
        except Refused as error:
            if error.status != 404:  # noqa: PLR2004 - not found
                raise
            gone = {"code": "job_not_found", "message": "the job and its result are no longer kept by the server"}
            return {"response": None, "error": gone, "job": job["id"]}

    def _tell_failure(self, line: Line, outcome: dict[str, Any]) -> None:
        from stoker.cli.results import reason_of

        self._told += 1
        if self._told <= FAILURES_TOLD:
            self._watcher.note(f"{line.custom_id} failed: {reason_of(outcome)}")
        if self._told == FAILURES_TOLD:
            self._watcher.note(f"more that fail are only written to {self._results.path}")


def concerns_line(error: Refused) -> bool:
    """Whether a refusal is about what the line asks, so that others may do better."""
    if error.status == 403:  # noqa: PLR2004 - forbidden
        return error.code not in {"", "permission_denied"}
    if error.status == 404:  # noqa: PLR2004 - not found
        return error.code == "model_not_found"
    return error.status in {400, 409, 410, 413, 415, 422, 429, 500, 501}


def _run(work: Work, results: Results, tally: Tally) -> bool:
    """Do the work, and leave its rows on the disk; False when it was interrupted.

    Raises:
        StokerError: as Work.run.
    """
    try:
        asyncio.run(work.run())
    except KeyboardInterrupt:
        return False
    except StokerError:
        kept = f"{tally.done} of {tally.lines} lines are in {results.path}"
        typer.echo(f"stopped: {kept}; the same command goes on from there", err=True)
        raise
    results.settle()
    return True


def _report(tally: Tally, target: Path, *, ended: bool, as_json: bool) -> None:
    """Say how it went: figures on standard output, what to do next on standard error."""
    seconds = time.monotonic() - tally.began
    if as_json:
        figures = {
            "lines": tally.lines,
            "succeeded": tally.succeeded,
            "failed": tally.failed,
            "before": tally.before,
            "seconds": round(seconds, 3),
            "complete": ended,
            "output": str(target),
        }
        sys.stdout.buffer.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    else:
        earlier = f" ({tally.before} by earlier starts)" if tally.before else ""
        typer.echo(
            f"{tally.done} of {tally.lines} lines done{earlier} in {seconds:.1f} s: "
            f"{tally.succeeded} succeeded, {tally.failed} failed; results in {target}"
        )
    if not ended:
        typer.echo(
            "interrupted: what was submitted goes on at the server; the same command goes on from here", err=True
        )
        return
    if tally.failed:
        typer.echo("the same command with --retry-failed asks the failed lines again", err=True)
    if tally.replayed:
        typer.echo(f"{tally.replayed} lines had been answered by earlier jobs; --run NAME asks them anew", err=True)
