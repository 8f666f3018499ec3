"""`stoker doctor`: what this host grants, what a model is, and how it would run, without loading it. Printing only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stoker.cli.progress import output, watching

if TYPE_CHECKING:
    from stoker.engine.host import Host
    from stoker.engine.plan import Plan
    from stoker.models.gguf import GgufHeader

MIB = 1 << 20


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file, a stored name[@version], or an address. Without one only the host is shown.",
            show_default=False,
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file. Default: stoker.yaml, if there.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where models are kept.", show_default=False)
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Engine processes of the model.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", show_default="planned")] = None,
    slots: Annotated[int | None, typer.Option(help="Requests worked on at once.", show_default="planned")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens for each slot.", show_default="planned")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompt tokens a step.", show_default="planned")] = None,
    cache_type: Annotated[str | None, typer.Option(help="f16, q8_0 or q4_0.", show_default="planned")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 all.", show_default="planned")] = None,
    memory_mib: Annotated[int | None, typer.Option(help="Memory it may take.", show_default="what is granted")] = None,
) -> None:
    """Show how a model would run here, and why, without loading it. Exits with 1 when it does not fit.

    For example:

    - `stoker doctor`

    - `stoker doctor ./model.Q4_K_M.gguf`

    - `stoker doctor chat@2 --slots 4 --context 8192 --json`
    """
    from stoker.config import load
    from stoker.engine.host import read_host
    from stoker.engine.launch import offload_devices
    from stoker.engine.plan import make_plan
    from stoker.errors import PlanError
    from stoker.models.gguf import read_header
    from stoker.models.registry import ModelRegistry
    from stoker.models.resolve import open_model

    choices = {
        "threads": threads,
        "slots": slots,
        "context": context,
        "batch": batch,
        "cache_type": cache_type,
        "gpu_layers": gpu_layers,
        "memory_mib": memory_mib,
    }
    settings = load(config, {"data_dir": data_dir, "plan": choices})
    host = read_host()
    header: GgufHeader | None = None
    path: Path | None = None
    plan: Plan | None = None
    problem: PlanError | None = None
    if model is not None:
        with watching("preparing") as progress:
            path = open_model(model, ModelRegistry(settings.data_dir), settings.data_dir, progress).path
        header = read_header(path)
        try:
            offload = bool(host.gpus) and bool(offload_devices())
            plan = make_plan(header, host, settings.plan, replicas=replicas, gpu_offload_supported=offload)
        except PlanError as error:
            problem = error
    if as_json:
        report = as_dict(host, path, header, plan, problem.message if problem else None)
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    else:
        show(output(), host, path, header, plan)
    if problem is not None:
        raise problem


def as_dict(
    host: Host, path: Path | None, header: GgufHeader | None, plan: Plan | None, problem: str | None
) -> dict[str, Any]:
    """The report for programs: bytes, counts and seconds under the names that the code uses."""
    from dataclasses import asdict

    return {
        "host": {**asdict(host), "cpus": host.cpus, "memory_bytes": host.memory_bytes},
        "model": None if header is None else {**asdict(header), "path": str(path)},
        "plan": None if plan is None else asdict(plan),
        "fits": None if header is None else plan is not None,
        "problem": problem,
    }


def show(console: Console, host: Host, path: Path | None, header: GgufHeader | None, plan: Plan | None) -> None:
    """The report for people."""
    console.print(_host_table(host))
    if header is not None:
        console.print(_model_table(header, path))
    if plan is not None:
        for table in _plan_tables(plan):
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns), box=None, padding=(0, 2, 0, 0))
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    return table


def _host_table(host: Host) -> Table:
    table = _table("Host")
    cores = f" on {host.physical_cores} cores" if host.physical_cores else ""
    quota = f", quota {host.cpu_quota:g} ({host.cpu_source})" if host.cpu_quota is not None else ", no quota"
    table.add_row("CPUs", f"{host.logical_cpus}{cores}{quota}")
    limit = f"limit {_mib(host.memory_limit)}" if host.memory_limit is not None else "no limit"
    table.add_row(
        "memory", f"{_mib(host.memory_bytes)} free ({host.memory_source}), {limit}, machine {_mib(host.memory_total)}"
    )
    for gpu in host.gpus:
        table.add_row("GPU", Text(f"{gpu.name}: {_mib(gpu.free_bytes)} of {_mib(gpu.total_bytes)} free"))
    if not host.gpus:
        table.add_row("GPU", "none found")
    return table


def _model_table(header: GgufHeader, path: Path | None) -> Table:
    table = _table("\nModel")
    table.add_row("file", Text(f"{path} ({_mib(header.file_bytes)}, GGUF {header.version}, {header.tensors} tensors)"))
    table.add_row("name", Text(header.name or "-"))
    table.add_row("architecture", f"{header.architecture}, {header.layers} layers, {header.embedding_length} wide")
    active = f", {header.active_parameters / 1e6:,.0f} M used for a token" if header.experts else ""
    table.add_row("parameters", f"{header.parameters / 1e6:,.0f} M{active}, {header.file_type}")
    heads = sorted(set(header.kv_heads))
    shown = str(heads[0]) if len(heads) == 1 else f"{heads[0]} to {heads[-1]}"
    window = f", window of {header.sliding_window} in {sum(header.windowed)} layers" if any(header.windowed) else ""
    table.add_row(
        "attention", f"{header.heads} heads, {shown} for keys and values of {header.key_length} elements{window}"
    )
    table.add_row("trained for", f"{header.context_train:,} tokens of context, {header.vocabulary:,} in the vocabulary")
    table.add_row("chat template", "yes" if header.chat_template else "none: chat will use the engine's generic one")
    return table


def _plan_tables(plan: Plan) -> list[Table]:
    settings = _table("\nPlan", "setting", "value", "why")
    for reason in plan.reasons:
        settings.add_row(reason.setting, reason.value, Text(reason.why))
    need = plan.memory
    memory = _table("\nMemory of one engine")
    for name, octets in (
        ("weights (mapped file)", need.weights),
        ("repacked weights", need.repack),
        ("KV cache", need.kv),
        ("compute buffers", need.compute),
        ("runtime", need.base),
        ("prompt cache, when full", need.prompt_cache),
        ("on the GPU", need.gpu),
    ):
        if octets:
            memory.add_row(name, _mib(octets))
    memory.add_row("all engines", f"{_mib(plan.needed_bytes)} of {_mib(plan.granted_bytes)} granted")
    tables = [settings, memory]
    if plan.shrunk:
        smaller = _table("\nMade smaller to fit", "setting", "change", "why")
        for step in plan.shrunk:
            smaller.add_row(step.setting, step.value, Text(step.why))
        tables.append(smaller)
    return tables


def _mib(octets: int) -> str:
    return f"{octets / MIB:,.0f} MiB"
