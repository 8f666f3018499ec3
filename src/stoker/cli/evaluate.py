"""`stoker evaluate`: questions with known answers, put to a server or to a model that is served for the occasion."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stoker.cli.ask import DEFAULT_URL
from stoker.cli.progress import counting, output, print_json, watching
from stoker.errors import ConfigError, OperatorError

if TYPE_CHECKING:  # imported when they are needed, for a quick --help
    from stoker.config import Settings
    from stoker.evaluation.asking import HttpAsker
    from stoker.evaluation.report import CaseResult, Report
    from stoker.evaluation.sets import EvaluationSet
    from stoker.evaluation.verdict import Verdict

SMOKE: Final = "smoke"


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: a model at a server's address, or, without an address, one that is served for the occasion."""

    url: str | None
    model: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of whom and how."""

    the_set: EvaluationSet
    judge: Target | None
    concurrency: int | None
    seed: int | None
    config: Path | None
    ready_within: float


def evaluate(
    context: typer.Context,
    evaluation_set: Annotated[
        str, typer.Argument(metavar="SET", help="A file (YAML, JSON or JSONL), or `smoke`: the one that ships.")
    ],
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", help="Ask the server here.", show_default=f"$STOKER_URL or {DEFAULT_URL}"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="REF",
            help="Serve this stored name[@version], file or configured model for the occasion, and ask it; with --url: "
            "the model's name there.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="URL|REF", help="Ask this one, too, and compare.", show_default=False),
    ] = None,
    against_model: Annotated[
        str | None, typer.Option(help="The model's name at --against URL.", show_default="the first there")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", "--api-key", envvar="STOKER_API_KEY", help="API key for --url, if it wants one."),
    ] = None,
    against_key: Annotated[
        str | None,
        typer.Option(
            envvar="STOKER_AGAINST_KEY",
            help="API key for --against URL. Default: --key at the same address.",
            show_default=False,
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Server of the model that judges.", show_default="the set's")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.", show_default="the set's")] = None,
    judge_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="API key for it.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only cases with this tag; several times for more.", show_default=False)
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=256, help="Cases at once.", show_default="the set's")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Of order and answers.", show_default="the set's")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the whole report here, as JSON.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file, for --model.", show_default=False)
    ] = None,
    ready_within: Annotated[
        float, typer.Option(min=1, help="Seconds that a model may take to load, for --model.")
    ] = 300.0,
) -> None:
    """Ask the questions of a set, judge the answers, and say whether the model is good enough: exit code 0, or else 1.

    For example:

    - `stoker evaluate smoke`

    - `stoker evaluate questions.yaml --model chat@2 --against chat@1`

    - `stoker evaluate questions.jsonl --url https://models.example.com --model chat --junit report.xml`
    """
    check_outputs(junit, file)
    the_set = read_set(evaluation_set, frozenset(tag or ()))
    origin = context.get_parameter_source("judge_key")
    hold_back = origin is not None and origin.name == "ENVIRONMENT"
    judge = judge_for(the_set, judge_url, judge_model, judge_key, hold_back=hold_back)
    target = target_of(url, model, key)
    other = None if against is None else other_of(against, against_model, against_key, target)
    plan = Plan(the_set, judge, concurrency, seed, config, ready_within)
    report = ask_all(plan, target)
    compared = None if other is None else ask_all(plan, other)
    raise typer.Exit(conclude(plan, report, compared, junit=junit, file=file, as_json=as_json))


def conclude(
    plan: Plan, report: Report, against: Report | None, *, junit: Path | None, file: Path | None, as_json: bool
) -> int:
    """Print and write what was found; the exit status: 0 when it is good enough, else 1."""
    import orjson

    from stoker.cli.evaluated import shown
    from stoker.evaluation.junit import junit_xml
    from stoker.evaluation.report import document
    from stoker.evaluation.verdict import judge_report

    verdict: Verdict = judge_report(report, plan.the_set.thresholds, against)
    whole = document(report, verdict, against, listed=None)
    if as_json:
        print_json(whole)
    else:
        console = output()
        for part in shown(report, verdict, against):
            console.print(part, soft_wrap=True)
    if junit is not None:
        _write(junit, junit_xml(report, verdict))
    if file is not None:
        _write(file, orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return 0 if verdict.passed else 1


def read_set(name: str, tags: frozenset[str]) -> EvaluationSet:
    """The set that a user names, with the cases of some tags if any are given; raises BadSet."""
    from stoker.evaluation.sets import BadSet, load_set, smoke_set

    path = Path(name)
    the_set = smoke_set() if name == SMOKE and not path.exists() else load_set(path)
    if not tags:
        return the_set
    chosen = the_set.only(tags)
    if chosen is None:
        there = ", ".join(the_set.tags[:20]) or "none"
        raise BadSet(f"{name}: no case has the tag {min(tags)!r}; its tags: {there}")
    return chosen


def judge_for(
    the_set: EvaluationSet, url: str | None, model: str | None, key: str | None, *, hold_back: bool
) -> Target | None:
    """Who judges; None when no case needs it. A key of the environment does not go to an address that a set names.

    Raises:
        ConfigError: a case needs a judge, and none is named.
    """
    if not the_set.needs_judge:
        return None
    named = the_set.judge
    address = url or (named.url if named else None)
    if address is None:
        raise ConfigError("cases of this set are judged by another model: name its server with --judge-url")
    return Target(address, model or (named.model if named else None) or "", None if hold_back and url is None else key)


def target_of(url: str | None, model: str | None, key: str | None) -> Target:
    """Who is asked: the model at an address, else the model served for the occasion, else the server of this host."""
    import os

    if url is not None:
        return Target(url, model or "", key)
    if model is not None:
        return Target(None, model)
    return Target(os.environ.get("STOKER_URL", DEFAULT_URL), "", key)


def other_of(against: str, model: str | None, key: str | None, target: Target) -> Target:
    """Who it is compared with. The first one's key goes to the same address only."""
    from stoker.evaluation.asking import base_of

    if "://" not in against:
        if model is not None:
            raise ConfigError(
                "--against-model: is the name at --against URL; of a stored model write --against NAME@VERSION"
            )
        return Target(None, against)
    same = target.url is not None and base_of(target.url) == base_of(against)
    return Target(against, model or "", key or (target.key if same else None))


def ask_all(plan: Plan, target: Target) -> Report:
    """Put every question to a target, with a bar on the terminal.

    Raises:
        OperatorError: there is nobody to ask, or the model cannot be served.
    """
    if target.url is not None:
        return asyncio.run(_ask_all(plan, target, target.model))
    with served(target.model, plan.config, plan.ready_within) as (url, ref):
        return asyncio.run(_ask_all(plan, Target(url, ""), ref))


@contextlib.contextmanager
def served(ref: str, config: Path | None, ready_within: float) -> Iterator[tuple[str, str]]:
    """A model behind a server for the occasion: its URL, and `name@version`. Stored models stay where they are."""
    from stoker.cli.temporary import temporary_server
    from stoker.config import load

    settings = load(config)
    with watching(f"preparing {ref}") as watcher:
        model, name = _entry(ref, settings, watcher)
    common = settings.model_dump(mode="json", include={"plan", "engine"}, exclude_unset=True)
    with tempfile.TemporaryDirectory(prefix="stoker-evaluate-") as directory:
        typer.echo(f"loading {name} ...", err=True)
        wanted = {**common, "models": [model], "jobs": {"enabled": False}}
        with temporary_server(wanted, Path(directory), ready_within) as url:
            yield url, name


def _entry(ref: str, settings: Settings, watcher: Any) -> tuple[dict[str, Any], str]:
    """A model as it is configured, or else by itself, with the file that it is served from; and how it is called."""
    from stoker.lineup import source_of
    from stoker.models.registry import ModelRegistry
    from stoker.models.resolve import open_model
    from stoker.rollout.shelf import Shelf

    configured = next((model for model in settings.models if model.name == ref), None)
    if configured is not None and configured.source is None:
        raise ConfigError(f"{ref}: is a model by URL; ask it there with --url")
    source = ref if configured is None else source_of(configured, Shelf(settings.data_dir).pins())
    found = open_model(source, ModelRegistry(settings.data_dir), settings.data_dir, watcher)
    own = {} if configured is None else configured.model_dump(mode="json", exclude_unset=True)
    name = found.identity.name if configured is None else configured.name
    return {**own, "name": name, "source": str(found.path.absolute())}, f"{name}@{found.identity.version}"


async def _ask_all(plan: Plan, target: Target, name: str) -> Report:
    from stoker.evaluation.run import run_evaluation

    async with _settled(target, plan.the_set.timeout) as asker, contextlib.AsyncExitStack() as stack:
        judge: HttpAsker | None = None
        if plan.judge is not None:
            judge = await stack.enter_async_context(_settled(plan.judge, plan.the_set.timeout))
        called = name or asker.model
        total = len(plan.the_set.cases)
        with counting(f"asking {called}", 0, total) as bar:
            done = 0

            def count(_result: CaseResult) -> None:
                nonlocal done
                done += 1
                bar.update(done, total)

            return await run_evaluation(
                plan.the_set,
                asker,
                judge=judge,
                concurrency=plan.concurrency,
                seed=plan.seed,
                model=called,
                on_result=count,
            )


@contextlib.asynccontextmanager
async def _settled(target: Target, timeout: float) -> AsyncIterator[HttpAsker]:  # noqa: ASYNC109 - of each answer
    """An asker whose server is there, and whose model has a name."""
    from stoker.evaluation.asking import HttpAsker

    async with HttpAsker(target.url or "", target.model, target.key, timeout) as asker:
        await asker.settle()
        yield asker


def check_outputs(*files: Path | None) -> None:
    """Refuse files that could not be written before minutes are spent on asking; raises ConfigError."""
    for path in files:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"{path}: cannot be written; name a file in a directory that exists")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{path}: cannot be written ({error.strerror})") from None
