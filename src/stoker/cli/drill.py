"""`stoker backup drill`: tries a snapshot out, prints the result and keeps it. Parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stoker.cli import backup_tables as tables
from stoker.cli.backup_options import AsJson, ConfigFile, DryRun, KeyFile, Place, interruptible, opened, passphrase
from stoker.cli.progress import print_json
from stoker.cli.temporary import terminable
from stoker.cli.words import took

if TYPE_CHECKING:  # imported when it is needed, for a quick --help
    from stoker.backup.drill import Drill, Step
    from stoker.backup.repository import Repository

SHOWN: Final = 10
"""Failed cases that are printed; --json has more."""


def drill(
    *,
    snapshot: Annotated[
        str, typer.Option(help="Which snapshot: its id, the beginning of one, or the newest good one.")
    ] = "latest",
    the_set: Annotated[
        Path | None,
        typer.Option(
            "--set",
            metavar="FILE",
            help="The evaluation set that its model must pass.",
            show_default="the one of rollout.evaluation in the snapshot, else the one that ships with Stoker",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The served model that is asked.", show_default="the default model"),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Where it is restored, for as long as it takes.",
            show_default="$TMPDIR",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was restored, to look at it.")] = False,
    repository: Place = None,
    key_file: KeyFile = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Try out whether a snapshot brings everything back: restore it into a temporary directory, start a server of it
    on loopback, ask its model an evaluation set, stop it, and keep the result in the repository. Exit code 1 when a
    step fails; the report says which and why. Jobs and secrets are not restored, nothing outside is touched.

    It needs the snapshot's size on disk, and memory for its models: another host than the one that serves is best.

    For example:

    - `stoker backup drill`

    - `stoker backup drill -r s3://backups/stoker --set questions.yaml --work-dir /mnt/scratch`
    """
    from stoker.cli.drilling import Drilling, Order
    from stoker.evaluation.sets import load_set

    settings, place = opened(repository, config)
    order = Order(
        snapshot=snapshot,
        the_set=None if the_set is None else load_set(the_set),
        model=model,
        work_dir=work_dir,
        keep=keep,
        key=passphrase(settings, key_file),
    )
    drilling = Drilling(place, order, _nothing if as_json else _tell)
    if dry_run:
        _print_plan(drilling.plan(), as_json=as_json)
        return
    with (
        interruptible("interrupted: the drill ended without a result, and what it had restored is gone"),
        terminable(),
    ):
        done = drilling.run()
    if keep and drilling.room is not None:
        typer.echo(f"what was restored is in {drilling.room}; remove it when you have seen it", err=True)
    _finish(place, done, as_json=as_json)


def _finish(place: Repository, done: Drill, *, as_json: bool) -> None:
    """Print and record how it went; exit code 1 when it did not go well."""
    from stoker.objects.store import StorageError

    if as_json:
        print_json(done.document())
    else:
        _print_verdict(done)
    try:
        place.record_drill(done.document())
    except StorageError as error:
        if done.ok:
            raise
        typer.echo(f"the result cannot be kept in the repository: {error.message}", err=True)
    if not done.ok:
        raise typer.Exit(1)


def _print_plan(plan: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    for name, value in plan.items():
        tables.say(f"{name.replace('_', ' '):<10}{value}")


def _print_verdict(done: Drill) -> None:
    seconds = took(sum(step.seconds for step in done.steps))
    if done.failed is None:
        tables.say(f"drill passed: {done.snapshot} came back on {done.host} and answers, in {seconds}")
    else:
        for case in _failed_cases(done)[:SHOWN]:
            tables.say(f"  {case['id']}: {'; '.join(case['failures'])}; the answer: {case['answer'][:80]!r}")
        tables.say(f"drill FAILED at the step {done.failed.name}, after {seconds}: {done.failed.note}")


def _failed_cases(done: Drill) -> list[dict[str, Any]]:
    cases = () if done.evaluation is None else done.evaluation["results"]
    return [case for case in cases if case["outcome"] != "passed"]


def _tell(step: Step) -> None:
    """A line for each step, as it ends."""
    tables.say(
        f"{step.name:<10}{'ok' if step.ok else 'FAILED':<8}{took(step.seconds):<12}{step.note if step.ok else ''}"
    )


def _nothing(_step: Step) -> None:
    """Programs get one document at the end."""
