"""`stoker rollout`: have a new version of a model take over at a running server, watch it, take it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import orjson
import typer

from stoker.cli.ask import DEFAULT_URL, Url
from stoker.cli.jobs import AsJson, Key
from stoker.cli.progress import output, print_json
from stoker.cli.words import duration, share
from stoker.errors import StokerError

if TYPE_CHECKING:  # imported when they are needed, for a quick --help
    from stoker.cli.rollout_client import Rollouts
    from stoker.cli.rollout_view import View

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Have a new version of a model take over without a gap; watch it, take it back.",
)

DIGITS: Final = 9
"""Of a number of seconds; the server takes no more than 30 days."""
AWAY_S: Final = 600.0
"""Seconds for which a server may be away while a rollout is followed: it takes the rollout up again."""
RolloutId = Annotated[str | None, typer.Argument(metavar="[ID]", help="The rollout.", show_default="the one under way")]
T = TypeVar("T")


class Reached(StrEnum):
    """How far a rollout is followed."""

    WAITING = "waiting"
    BAKING = "baking"
    SUCCEEDED = "succeeded"


PHASES: Final[Mapping[Reached, frozenset[str]]] = {
    Reached.WAITING: frozenset({"waiting", "canary", "baking", "retiring"}),
    Reached.BAKING: frozenset({"baking", "retiring"}),
    Reached.SUCCEEDED: frozenset(),
}
"""Phases in which it has come so far, beside its end."""


def _share(text: str) -> float:
    """A share from 0 to below 1."""
    value = 0.0 if text.strip() in {"0", "0%"} else share(text)
    if value >= 1:
        raise typer.BadParameter(f"{text!r} is everybody; a canary is for fewer, such as 10%")
    return value


def _seconds(text: str) -> float:
    """Seconds: `90`, `90s`, `10m`, `1h`, `0`."""
    digits = text.strip()
    return float(digits) if digits.isascii() and digits.isdigit() and len(digits) <= DIGITS else duration(text)


@app.command()
def start(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The stored model that is to take over.")],
    *,
    serves: Annotated[
        str | None, typer.Option(help="The served model that it replaces.", show_default="the one of its name")
    ] = None,
    the_set: Annotated[
        Path | None,
        typer.Option("--set", help="An evaluation set that it must pass.", show_default="as configured"),
    ] = None,
    skip_evaluation: Annotated[bool, typer.Option("--skip-evaluation", help="Let it take over untested.")] = False,
    manual: Annotated[
        bool | None,
        typer.Option(
            "--manual/--auto",
            help="Whether it waits for `stoker rollout promote` when it passed.",
            show_default="as configured",
        ),
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option(
            parser=_share,
            metavar="SHARE",
            help="Callers who get it first, such as 10%.",
            show_default="as configured",
        ),
    ] = None,
    canary_time: Annotated[
        float | None,
        typer.Option(
            parser=_seconds, metavar="TIME", help="How long only they do, such as 5m.", show_default="as configured"
        ),
    ] = None,
    bake: Annotated[
        float | None,
        typer.Option(
            parser=_seconds,
            metavar="TIME",
            help="How long the old version stays loaded after the switch, such as 10m.",
            show_default="as configured",
        ),
    ] = None,
    accept_gap: Annotated[
        bool,
        typer.Option("--accept-gap", help="Where both do not fit at once: stop the old version before loading."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and leave it to itself.")] = False,
    wait_for: Annotated[Reached, typer.Option(help="How far to follow it.")] = Reached.SUCCEEDED,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Have a version take over, and follow it: load, warm up, evaluate, canary, switch, bake, retire the old one.

    Requests are answered all the time. A version that fails its evaluation never serves; one that does worse than the
    old one while it is watched is taken back. Ctrl-C leaves the rollout to itself.

    Exit status: 0 when it succeeded (or came as far as --wait-for, or with --detach was accepted), 1 otherwise, 2 when
    the command is wrong, 130 when interrupted.

    For example:

    - `stoker rollout start chat@2`

    - `stoker rollout start chat@2 --set questions.yaml --canary 10% --canary-time 5m --bake 30m`

    - `stoker rollout start chat-q4@1 --serves chat --manual --detach`

    - `stoker rollout start chat@2 --dry-run`
    """
    order = {
        "model": model,
        "serves": serves,
        "evaluation": _document(the_set),
        "skip_evaluation": skip_evaluation or None,
        "promotion": None if manual is None else "manual" if manual else "auto",
        "canary": canary,
        "canary_time": canary_time,
        "bake": bake,
        "accept_gap": accept_gap or None,
        "dry_run": dry_run or None,
    }
    sent = orjson.dumps({name: value for name, value in order.items() if value is not None})
    answer = _call(url, key, lambda remote: remote.start(sent))
    if dry_run:
        _print_plan(answer, as_json=as_json)
    elif not detach:
        _follow(url, key, answer, wait_for, as_json=as_json)
    elif as_json:
        print_json(answer)
    else:
        typer.echo(answer["id"])


@app.command()
def status(
    rollout_id: RolloutId = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing it until it has ended.")] = False,
    wait_for: Annotated[Reached, typer.Option(help="How far to follow it.")] = Reached.SUCCEEDED,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show how a rollout stands; without an ID the one under way, or else the latest.

    Exit status: 0; with --follow as `stoker rollout start`.

    For example:

    - `stoker rollout status`

    - `stoker rollout status --follow`
    """
    rollout = _call(url, key, lambda remote: _looked_up(remote, rollout_id))
    if follow:
        _follow(url, key, rollout, wait_for, as_json=as_json)
    else:
        _print(rollout, as_json=as_json)


@app.command()
def promote(rollout_id: RolloutId = None, *, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Let the new version go on at once: when it waits for this, or to end its canary or its baking early.

    Example: `stoker rollout promote`
    """
    _act(url, key, "promote", rollout_id, as_json=as_json)


@app.command()
def rollback(rollout_id: RolloutId = None, *, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Bring the old version back, while it is still loaded.

    Example: `stoker rollout rollback`
    """
    _act(url, key, "rollback", rollout_id, as_json=as_json)


@app.command()
def abort(rollout_id: RolloutId = None, *, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """End a rollout before the new version has taken over; the old one serves on.

    Example: `stoker rollout abort`
    """
    _act(url, key, "abort", rollout_id, as_json=as_json)


@app.command()
def history(*, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the rollouts that the server remembers, the newest first. Example: `stoker rollout history --json`"""
    from stoker.cli.rollout_view import table_of

    page = _call(url, key, lambda remote: remote.history())
    if as_json:
        print_json(page)
    elif page["data"]:
        output().print(table_of(page["data"]))
    else:
        typer.echo("there has been no rollout; `stoker rollout start NAME@VERSION` begins one")


def _document(path: Path | None) -> Mapping[str, Any] | None:
    """The evaluation set in a file, checked, as the server takes it."""
    if path is None:
        return None
    from stoker.evaluation.sets import load_set

    return load_set(path).model_dump(mode="json", exclude_unset=True)


def _call(url: str, key: str | None, what: Callable[[Rollouts], Awaitable[T]]) -> T:
    """Do something with the server's rollouts; an interrupt ends the program with status 130."""
    from stoker.cli.client import Patience, call
    from stoker.cli.rollout_client import Rollouts

    return call(Rollouts(url, key, Patience(), lambda text: typer.echo(text, err=True)), what)


async def _looked_up(remote: Rollouts, rollout_id: str | None) -> dict[str, Any]:
    """The rollout of that id; without one that under way, or else the latest."""
    if rollout_id is None:
        page = await remote.history()
        rollout_id = page["current"] or next((one["id"] for one in page["data"]), None)
    if rollout_id is None:
        raise StokerError("there has been no rollout here; `stoker rollout start NAME@VERSION` begins one")
    return await remote.rollout(rollout_id)


async def _under_way(remote: Rollouts) -> str:
    """The id of the rollout that is under way; StokerError that says what to do instead."""
    page = await remote.history()
    if page["current"] is not None:
        return str(page["current"])
    last = next(iter(page["data"]), None)
    if last is None or last["phase"] != "succeeded":
        raise StokerError("no rollout is under way; `stoker rollout start NAME@VERSION` begins one")
    raise StokerError(
        f"no rollout is under way: {last['after']['ref']} serves {last['model']}. To have the version before it again: "
        f"`stoker rollout start {last['before']['ref']} --serves {last['model']}`"
    )


def _act(url: str, key: str | None, verb: str, rollout_id: str | None, *, as_json: bool) -> None:
    async def done(remote: Rollouts) -> dict[str, Any]:
        return await remote.act(rollout_id or await _under_way(remote), verb)

    rollout = _call(url, key, done)
    _print(rollout, as_json=as_json)
    if not as_json and not rollout["ended"]:
        typer.echo("`stoker rollout status --follow` shows how it goes on", err=True)


def _follow(url: str, key: str | None, rollout: dict[str, Any], wait_for: Reached, *, as_json: bool) -> None:
    """Show a rollout until it has come so far; StokerError when it ended in another way."""
    from stoker.cli.client import Patience, call
    from stoker.cli.rollout_client import Rollouts
    from stoker.cli.rollout_view import outcome, viewing

    try:
        with viewing() as view:
            remote = Rollouts(url, key, Patience(outage=AWAY_S), view.note)
            last = call(remote, lambda remote: _watched(remote, rollout, wait_for, view))
    except typer.Exit:
        typer.echo(
            f"interrupted: the rollout goes on; `stoker rollout status {rollout['id']} --follow` watches it again, "
            "`stoker rollout abort` or `rollback` ends it",
            err=True,
        )
        raise
    if as_json:
        print_json(last)
    if last["ended"] and last["phase"] != "succeeded":
        raise StokerError(outcome(last))
    if not as_json:
        typer.echo(outcome(last) if last["ended"] else _so_far(last))


async def _watched(remote: Rollouts, rollout: dict[str, Any], wait_for: Reached, view: View) -> dict[str, Any]:
    """The rollout when it has ended or come so far."""
    from stoker.cli.client import LONGEST_POLL_S

    view.show(rollout)
    while not (rollout["ended"] or rollout["phase"] in PHASES[wait_for]):
        rollout = await remote.news(rollout, LONGEST_POLL_S)
        view.show(rollout)
    return rollout


def _so_far(rollout: Mapping[str, Any]) -> str:
    """What there is to do with a rollout that is not followed any longer."""
    if rollout["phase"] == "waiting":
        return f"{rollout['after']['ref']} waits: `stoker rollout promote` has it take over, `stoker rollout abort` not"
    if rollout["phase"] == "canary":
        return f"{rollout['after']['ref']} serves some callers; `stoker rollout rollback` takes it back"
    return f"{rollout['after']['ref']} serves {rollout['model']}; `stoker rollout rollback` brings the old one back"


def _print(rollout: Mapping[str, Any], *, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from stoker.cli.rollout_view import facts, failed_cases

    if as_json:
        print_json(rollout)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts(rollout).items():
        table.add_row(name, Text(value))
    output().print(table)
    for line in failed_cases(rollout):
        typer.echo(line)


def _print_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    from stoker.cli.rollout_view import plan_lines

    if as_json:
        print_json(plan)
        return
    for line in plan_lines(plan):
        typer.echo(line)
