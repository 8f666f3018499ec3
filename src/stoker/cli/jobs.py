"""`stoker jobs`: hand a running server work to do later, look after it, wait for it, cancel it. Printing only."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer
from rich.table import Table
from rich.text import Text

from stoker.cli.ask import DEFAULT_URL, Url
from stoker.cli.progress import output, print_json
from stoker.errors import ConfigError, StokerError

if TYPE_CHECKING:  # imported when it is needed, for a quick --help
    from stoker.cli.remote import Remote

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Hand a server work to do later; look after it, wait for it, cancel it.",
)

Key = Annotated[
    str | None, typer.Option("--key", "--api-key", envvar="STOKER_API_KEY", help="API key, if it wants one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as `submit` printed it.")]
T = TypeVar("T")


class State(StrEnum):
    """What a job may be; as the server says it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@app.command()
def submit(
    text: Annotated[str | None, typer.Argument(metavar="TEXT|-", help="What to ask; - reads standard input.")] = None,
    *,
    request: Annotated[
        str | None,
        typer.Option("--request", "-r", help="A file with a body of /query or of a /v1 route; - reads standard input."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="The route that the body is for.", show_default="by the body's fields")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to ask.", show_default="the server's")
    ] = None,
    callback_url: Annotated[str | None, typer.Option(help="Where the result is sent.", show_default=False)] = None,
    not_before: Annotated[
        datetime | None, typer.Option(help="When it may start, in local time.", show_default="at once")
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(min=0, help="Seconds it may wait.", show_default="as the server is configured")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A note that the job carries; several times for more."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and request give the same job, for a day.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job; prints its id, or with --wait its answer.

    For example:

    - `stoker jobs submit "Why is the sky blue?"`

    - `stoker jobs submit --request chat.json --not-before "2030-01-31 22:00:00" --callback-url https://example.com/done`

    - `id=$(git diff | stoker jobs submit - --model coder)`
    """
    body = _body(text, request)
    if model is not None:
        body["model"] = model
    order = {
        "endpoint": endpoint or _endpoint(body),
        "request": body,
        "callback_url": callback_url,
        "not_before": not_before and not_before.astimezone().isoformat(),
        "expires_in": expires_in,
        "metadata": _notes(metadata or ()) or None,
    }
    sent = orjson.dumps({name: value for name, value in order.items() if value is not None})
    # Always with a key, so that a submission whose answer was lost on the way is not made twice.
    name = idempotency_key or f"stoker-jobs-{secrets.token_hex(16)}"
    job = _call(url, key, lambda remote: remote.submit(sent, name))
    if wait:
        _wait(url, key, job["id"], None, as_json=as_json)
    elif as_json:
        print_json(job)
    else:
        typer.echo(job["id"])


@app.command()
def status(job_id: JobId, *, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show how a job stands, and its answer if it has one. Example: `stoker jobs status 0197f0c2a1b37d21`"""
    job = _call(url, key, lambda remote: remote.job(job_id))
    if as_json:
        print_json(job)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(job).items():
        table.add_row(name, Text(value))
    output().print(table)
    if job["state"] == State.SUCCEEDED:
        typer.echo(f"\n{answer_of(job.get('result'))}")


@app.command()
def wait(
    job_id: JobId,
    *,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait.", show_default="until it has ended")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a job's end and print its answer; exit status 1 when it has none, or not in time.

    For example:

    - `stoker jobs wait 0197f0c2a1b37d21`

    - `stoker jobs wait 0197f0c2a1b37d21 --timeout 60 --json`
    """
    _wait(url, key, job_id, timeout, as_json=as_json)


@app.command()
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs, as `submit` printed them.")],
    *,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: a queued one at once, a running one as soon as its worker hears of it.

    For example:

    - `stoker jobs cancel 0197f0c2a1b37d21`

    - `stoker jobs list --state queued --json | jq -r '.data[].id' | xargs stoker jobs cancel`
    """

    async def each(remote: Remote) -> list[dict[str, Any]]:
        return [await remote.cancel(job_id) for job_id in job_ids]

    jobs = _call(url, key, each)
    if as_json:
        print_json(jobs)
        return
    for job in jobs:
        ending = job["state"] in {State.QUEUED, State.RUNNING}
        typer.echo(f"{job['id']}: {'is being cancelled' if ending else job['state']}")


@app.command("list")
def list_jobs(
    *,
    state: Annotated[
        list[State] | None, typer.Option(help="Only these; several times for several.", show_default="all")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only those of this batch.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most that are listed.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier list ended.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List your jobs, the newest first.

    For example:

    - `stoker jobs list`

    - `stoker jobs list --state failed --state expired --limit 100 --json`
    """
    named = (("state", ",".join(state or ())), ("batch", batch), ("limit", str(limit)), ("after", after))
    params = tuple((name, value) for name, value in named if value)
    page = _call(url, key, lambda remote: remote.page(params))
    if as_json:
        print_json(page)
        return
    columns = ("id", "state", "endpoint", "created", "finished", "attempts")
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for job in page["data"]:
        times = (_when(job[name]) for name in ("created_at", "finished_at"))
        cells = (job["id"], job["state"], job["endpoint"], *times, _attempts(job))
        table.add_row(*(Text(cell) for cell in cells))
    output().print(table if page["data"] else "there are no such jobs; `stoker jobs submit TEXT` makes one")
    if page.get("next"):
        typer.echo(f"there are more: --after {page['next']}", err=True)


def answer_of(result: Any) -> str:
    """The text of a route's answer; its JSON where it is not one text (embeddings, tool calls)."""
    if isinstance(result, dict):
        if isinstance(result.get("text"), str):
            return str(result["text"])
        choices = result.get("choices") or ()
        said = [choice.get("text") or (choice.get("message") or {}).get("content") for choice in choices]
        texts = [text for text in said if isinstance(text, str)]
        if texts and len(texts) == len(said):
            return "\n".join(texts)
    return orjson.dumps(result, option=orjson.OPT_INDENT_2).decode()


def _call(url: str, key: str | None, what: Callable[[Remote], Awaitable[T]]) -> T:
    """Do something with the server's jobs; an interrupt ends the program with status 130."""
    from stoker.cli.client import Patience, call
    from stoker.cli.remote import Remote

    return call(Remote(url, key, Patience(), lambda text: typer.echo(text, err=True)), what)


def _wait(url: str, key: str | None, job_id: str, seconds: float | None, *, as_json: bool) -> None:
    """Wait, and print what came; StokerError when that is no answer."""
    within = float("inf") if seconds is None else seconds
    try:
        job = _call(url, key, lambda remote: remote.end(job_id, within))
    except typer.Exit:
        typer.echo(f"interrupted: the job goes on; `stoker jobs wait {job_id}` waits again", err=True)
        raise
    if as_json:
        print_json(job)
    elif job["state"] == State.SUCCEEDED:
        typer.echo(answer_of(job.get("result")))
    if job["state"] in {State.QUEUED, State.RUNNING}:
        raise StokerError(f"the job {job_id} is still {job['state']} after {within:g} s; it goes on")
    if job["state"] != State.SUCCEEDED:
        raise StokerError(f"the job {job_id} {_end(job)}")


def _end(job: Mapping[str, Any]) -> str:
    from stoker.cli.results import ENDINGS

    error = job.get("error") or {}
    verb = ENDINGS[job["state"]]
    return f"{verb}: {error['message']} ({error.get('code')})" if error.get("message") else verb


def _body(text: str | None, request: str | None) -> dict[str, Any]:
    """The body to send; ConfigError unless there is exactly one."""
    if (text is None) == (request is None):
        raise ConfigError("give either a TEXT to ask or --request FILE; `stoker jobs submit --help` has examples")
    if request is None:
        return {"text": sys.stdin.read() if text == "-" else text}
    try:
        raw = sys.stdin.buffer.read() if request == "-" else Path(request).read_bytes()
        body = orjson.loads(raw)
    except OSError as error:
        raise ConfigError(f"--request {request}: cannot be read ({error.strerror})") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--request {request}: is no JSON ({error})") from None
    if not isinstance(body, dict):
        raise ConfigError(f"--request {request}: must be a JSON object, the body of a request")
    return body


def _endpoint(body: Mapping[str, Any]) -> str:
    from stoker.cli.orders import ENDPOINTS, endpoint_of

    endpoint = endpoint_of(body)
    if endpoint is None:
        raise ConfigError(f"the body has none of {', '.join(ENDPOINTS)}: say with --endpoint which route it is for")
    return endpoint


def _notes(given: Sequence[str]) -> dict[str, str]:
    notes = {}
    for note in given:
        name, equals, value = note.partition("=")
        if not name or not equals:
            raise ConfigError(f"--metadata {note}: write NAME=VALUE")
        notes[name] = value
    return notes


def _facts(job: Mapping[str, Any]) -> dict[str, str]:
    """What a person wants to know of a job, by name; without what it has not."""
    timings = job.get("timings") or {}
    error = job.get("error") or {}
    facts = {
        "id": job["id"],
        "state": job["state"],
        "endpoint": job["endpoint"],
        "model": job.get("model"),
        "position": job.get("position"),
        "attempts": _attempts(job),
        "created": _when(job["created_at"]),
        "not before": _when(job.get("not_before")),
        "expires": _when(job.get("expires_at")) if job["state"] == State.QUEUED else "",
        "started": _when(job.get("started_at")),
        "finished": _when(job.get("finished_at")),
        "waited": _seconds(timings.get("queued_ms")),
        "ran": _seconds(timings.get("running_ms")),
        "error": f"{error['message']} ({error.get('code')})" if error.get("message") else "",
        "callback": (job.get("callback") or {}).get("url"),
        "deliveries": _deliveries(job),
        **{f"note {name}": value for name, value in (job.get("metadata") or {}).items()},
    }
    return {name: str(value) for name, value in facts.items() if value not in {None, ""}}


def _deliveries(job: Mapping[str, Any]) -> str:
    tried = (job.get("callback") or {}).get("deliveries") or ()
    return f"{len(tried)}, the last: {orjson.dumps(tried[-1]).decode()}" if tried else ""


def _attempts(job: Mapping[str, Any]) -> str:
    most = job.get("max_attempts")
    return f"{job.get('attempts', 0)}{f' of {most}' if most else ''}"


def _seconds(milliseconds: float | None) -> str:
    return "" if milliseconds is None or milliseconds < 0 else f"{milliseconds / 1000:.3g} s"


def _when(moment: str | None) -> str:
    """An RFC 3339 instant in local time."""
    return datetime.fromisoformat(moment).astimezone().isoformat(" ", "seconds") if moment else ""
