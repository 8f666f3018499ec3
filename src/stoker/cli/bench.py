"""`stoker bench`: measures any OpenAI-compatible server under rising load, and prints, writes and draws the result."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.errors import OperatorError

if TYPE_CHECKING:  # imported when they are needed, for a quick --help
    from rich.console import Console, RenderableType

    from stoker.cli.loadgen import Prompts, Target
    from stoker.cli.loadstats import Level, Spread

PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short letter to a neighbour about a cat that keeps coming over the fence.",
    "List the steps to change the tyre of a bicycle.",
    "Summarise the story of the tortoise and the hare, and say what it teaches.",
    "What should a town think about before it builds a new bridge?",
    "Describe the taste of a ripe peach to someone who has never had one.",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: levels of concurrency, and how much of each."""

    levels: tuple[int, ...]
    requests: int | None
    duration: float | None
    json_path: Path | None
    plot_path: Path | None


@dataclass(slots=True)
class Run:
    """A run as far as it has come, so that an interrupt loses only the level it hits."""

    target: Target
    levels: list[Level]


def bench(
    url: Annotated[str, typer.Argument(help="The server: http://127.0.0.1:8080, or unix:/path/to.sock.")],
    *,
    model: Annotated[str, typer.Option(help="Model to ask for. Default: the first that the server lists.")] = "",
    clients: Annotated[str, typer.Option(help="Numbers of clients at once, one level after another.")] = "1,2,4,8,16",
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests in each level. Default: 4 for each client, 8 at least.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds for each level, instead of a number of requests.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    prompt: Annotated[str | None, typer.Option(help="The prompt. Default: a few short questions.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file with a prompt on each line.")] = None,
    shared_prefix: Annotated[
        bool, typer.Option("--shared-prefix", help="Let prompts differ at their end, so that prefix caches help.")
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Make every answer as long as --max-tokens (llama.cpp, vLLM, Stoker).")
    ] = False,
    keep_alive: Annotated[
        bool, typer.Option("--keep-alive", help="Reuse connections; llama.cpp's server breaks under it.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 300.0,
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, show_default=False, help="API key.")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="Makes the same prompts again. Default: new ones.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Draw them here: .svg, or .png.")] = None,
) -> None:
    """Measure a server under rising load: throughput, time to first token, time per token, errors."""
    from stoker.cli.loadgen import Prompts, Target, parse_address

    if requests is not None and duration is not None:
        raise OperatorError("--requests and --duration: give one of both")
    plan = Plan(parse_levels(clients), requests, duration, json_path, plot_path)
    check_outputs(plan)
    base, socket = parse_address(url)
    target = Target(
        base=base,
        model=model,
        api_key=api_key,
        socket=socket,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
        timeout=timeout,
        keep_alive=keep_alive,
    )
    prompts = Prompts(
        texts=read_prompts(prompt, prompt_file),
        seed=secrets.randbits(32) if seed is None else seed,
        shared_prefix=shared_prefix,
    )
    raise typer.Exit(run(target, prompts, plan))


def parse_levels(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers of clients; raises OperatorError unless each is 1 to 4096."""
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(1 <= level <= 4096 for level in levels):  # noqa: PLR2004 - what one process can hold open
        raise OperatorError(f"--clients {text}: write numbers from 1 to 4096 with commas between, like 1,2,4,8")
    return levels


def read_prompts(prompt: str | None, file: Path | None) -> tuple[str, ...]:
    """The prompts to draw from; raises OperatorError when the file has none or both ways are used."""
    if prompt is not None and file is not None:
        raise OperatorError("--prompt and --prompt-file: give one of both")
    if prompt is not None:
        return (prompt,)
    if file is None:
        return PROMPTS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"--prompt-file {file}: cannot be read as UTF-8 text ({error})") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise OperatorError(f"--prompt-file {file}: holds no prompt; write one on each line")
    return texts


def check_outputs(plan: Plan) -> None:
    """Refuse files that could not be written before minutes are spent on measuring; raises OperatorError."""
    from stoker.cli import loadplot

    if plan.plot_path is not None:
        loadplot.check(plan.plot_path)
    for path in (plan.json_path, plan.plot_path):
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OperatorError(f"{path}: cannot be written; name a file in a directory that exists")


def run(target: Target, prompts: Prompts, plan: Plan) -> int:
    """Measure, print, write and draw; returns the exit status: 1 when no request succeeded.

    An interrupt (Ctrl-C) ends the run early with status 130; the levels that were complete are reported.
    """
    from stoker.cli import loadplot
    from stoker.cli.progress import output

    console = output()
    outcome = Run(target, [])
    interrupted = False
    try:
        asyncio.run(_measure(outcome, prompts, plan, console))
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted; the complete levels follow" if outcome.levels else "interrupted")
    title = f"{outcome.target.model or 'default model'} at {target.place}"
    for part in report(title, outcome.levels):
        console.print(part, markup=False)
    if plan.json_path is not None:
        plan.json_path.write_text(json.dumps(as_json(outcome, prompts, plan), indent=2) + "\n", encoding="utf-8")
        console.print(f"figures: {plan.json_path}", soft_wrap=True, markup=False)
    if plan.plot_path is not None and outcome.levels:
        loadplot.write(loadplot.chart_of(title, outcome.levels), plan.plot_path)
        console.print(f"plot: {plan.plot_path}", soft_wrap=True, markup=False)
    if interrupted:
        return 130
    return 0 if any(level.succeeded for level in outcome.levels) else 1


async def _measure(outcome: Run, prompts: Prompts, plan: Plan, console: Console) -> None:
    """Run the levels one by one into `outcome`, naming the model there when the caller did not."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stoker.cli import loadgen, loadstats

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    async with loadgen.session_for(outcome.target) as session:
        if not outcome.target.model:
            outcome.target = replace(outcome.target, model=await loadgen.first_model(session, outcome.target))
        with bar:
            task = bar.add_task("warming up", total=None)
            await loadgen.warm_up(session, outcome.target, prompts)
            for clients in plan.levels:
                total = loadgen.requests_in(clients, plan.requests, plan.duration)
                bar.reset(task, total=total, description=f"{clients} client{'s' if clients > 1 else ''}")
                samples = await loadgen.run_level(
                    session,
                    outcome.target,
                    prompts,
                    clients,
                    requests=total,
                    duration=plan.duration,
                    on_sample=lambda _sample: bar.advance(task),
                )
                outcome.levels.append(loadstats.summarise(clients, samples))


def report(title: str, levels: Sequence[Level]) -> list[RenderableType]:
    """The table for the terminal and the lines below it, for rich to print."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title),
        title_justify="left",
        caption="times in ms: p50/p95/p99",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("clients", "req/s", "tok/s", "first token", "per token", "end to end", "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for level in levels:
        table.add_row(
            str(level.clients),
            _digits(level.requests_per_s),
            _digits(level.tokens_per_s),
            _times(level.ttft_ms),
            _times(level.tpot_ms),
            _times(level.total_ms),
            str(level.requests - level.succeeded),
        )
    lines: list[RenderableType] = [table] if levels else []
    lines += [f"{level.clients} clients: {count} x {kind}" for level in levels for kind, count in level.errors.items()]
    missing = sum(level.without_usage for level in levels)
    if missing:
        lines.append(f"{missing} answers came without usage; tok/s leaves them out")
    return lines


def _times(spread: Spread | None) -> str:
    """Three percentiles, short enough for a terminal of 80 columns."""
    return "-" if spread is None else "/".join(map(_digits, (spread.p50, spread.p95, spread.p99)))


def _digits(value: float) -> str:
    """A number with about three digits that mean something."""
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f}"  # noqa: PLR2004 - powers of ten


def as_json(outcome: Run, prompts: Prompts, plan: Plan) -> dict[str, Any]:
    """The whole run as plain JSON values; keys in the address are left out."""
    target = outcome.target
    return {
        "url": target.place,
        "model": target.model,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "max_tokens": target.max_tokens,
        "ignore_eos": target.ignore_eos,
        "keep_alive": target.keep_alive,
        "shared_prefix": prompts.shared_prefix,
        "seed": prompts.seed,
        "requests": plan.requests,
        "duration_s": plan.duration,
        "percentiles": "linear interpolation between the nearest ranks (Hyndman and Fan, definition 7)",
        "levels": [level.as_json() for level in outcome.levels],
    }
