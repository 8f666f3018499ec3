"""`stoker models`: add, list, show, verify and remove stored models. Parsing and printing only."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from stoker.cli.progress import output, watching
from stoker.cli.words import octets, when

if TYPE_CHECKING:
    from stoker.models.registry import ModelRegistry, StoredModel

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Store models, list them, check them.")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where models are kept. Default: as configured.", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A stored model; without a version the newest.")]


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="A path, https://..., hf:org/repo/file.gguf[@revision], s3://bucket/key, or python:package/file.gguf."
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="What to call it. Default: after the file.", show_default=False)
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: 1, then 2 and so on.", show_default=False)] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="The digest that the file must have.", show_default=False)
    ] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Allow plain http:// to other hosts.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Fetch a model, check it and store it. An interrupted download resumes when the same command is run again.

    For example:

    - `stoker models add ./model.Q4_K_M.gguf --name chat`

    - `stoker models add hf:bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf`

    - `stoker models add https://example.com/model.gguf --sha256 0123...`

    - `stoker models add s3://models/chat.gguf --name chat --version 2026-01`
    """
    from stoker.models.sources import parse

    registry = _registry(config, data_dir)
    with watching("fetching") as watcher:
        began = time.time()
        model = registry.add(
            parse(source, insecure_http=insecure_http), name=name, version=version, sha256=sha256, progress=watcher
        )
    if as_json:
        _print_json(_as_dict(model))
        return
    fresh = model.added >= began
    _say(f"{'stored' if fresh else 'already there'}: {model.ref}  {octets(model.size)}  sha256:{model.digest}")
    _say(f"serve it: stoker serve {model.ref}")


@app.command("list")
def list_models(as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """List the stored models. Example: `stoker models list --json`"""
    models = _registry(config, data_dir).list()
    if as_json:
        _print_json([_as_dict(model) for model in models])
        return
    if not models:
        _say("no models are stored yet; `stoker models add ADDRESS` stores one")
        return
    table = Table(box=None, pad_edge=False)
    for column, right in (
        ("model", False),
        ("quantisation", False),
        ("parameters", True),
        ("size", True),
        ("added", False),
        ("digest", False),
    ):
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for model in models:
        cells = (
            model.ref,
            model.header.file_type,
            _count(model.header.parameters),
            octets(model.size),
            when(model.added),
            model.digest[:12],
        )
        table.add_row(*(Text(cell) for cell in cells))
    output().print(table)


@app.command()
def show(ref: Ref, as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Show one stored model. Example: `stoker models show smollm2-135m-instruct`"""
    model = _registry(config, data_dir).resolve(ref)
    if as_json:
        _print_json(_as_dict(model))
        return
    header = model.header
    lines = {
        "model": model.ref,
        "digest": f"sha256:{model.digest}",
        "file": str(model.path),
        "size": f"{octets(model.size)} ({model.size:,} bytes)",
        "source": model.source,
        "added": when(model.added),
        "calls itself": header.name or "-",
        "architecture": header.architecture,
        "quantisation": header.file_type,
        "parameters": f"{header.parameters:,}",
        "layers": str(header.layers),
        "context": f"{header.context_train:,} tokens in training",
    }
    for key, value in lines.items():
        _say(f"{key:<14}{value}")


@app.command()
def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="Default: all.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Hash stored files again and compare; exit code 1 when one is damaged. Example: `stoker models verify chat@2`"""
    registry = _registry(config, data_dir)
    wanted = refs or [model.ref for model in registry.list()]
    with watching("hashing") as watcher:
        results = [registry.verify(ref, watcher) for ref in wanted]
    if as_json:
        _print_json(
            [{"model": r.model.ref, "ok": r.ok, "expected": r.model.digest, "actual": r.actual} for r in results]
        )
    else:
        for result in results:
            problem = "its file is missing" if result.actual is None else f"its file has SHA-256 {result.actual}"
            remedy = f"remove it and add it again from {result.model.source}"
            _say(f"{result.model.ref}: " + ("ok" if result.ok else f"DAMAGED: {problem}; {remedy}"))
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def remove(ref: Ref, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Forget a model; its file goes too when no other name needs it. Example: `stoker models remove chat@1`"""
    registry = _registry(config, data_dir)
    model = registry.remove(ref)
    shared = [other.ref for other in registry.list() if other.digest == model.digest]
    _say(
        f"removed: {model.ref}"
        + (f" (its file stays for {', '.join(shared)})" if shared else f", {octets(model.size)} freed")
    )


def _registry(config: Path | None, data_dir: Path | None) -> ModelRegistry:
    from stoker.config import load
    from stoker.models.registry import ModelRegistry

    return ModelRegistry(load(config, {"data_dir": data_dir}).data_dir)


def _as_dict(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "path": str(model.path),
        "size": model.size,
        "source": model.source,
        "added": model.added,
        "header": asdict(model.header),
    }


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _count(number: int) -> str:
    """Parameters as models are called by: 135M, 1.7B."""
    if number >= 1_000_000_000:  # noqa: PLR2004
        return f"{number / 1e9:.1f}B"
    return f"{number / 1e6:.0f}M" if number >= 1_000_000 else f"{number:,}"  # noqa: PLR2004
