"""`stoker config`: write an example, show what is in force, print the JSON Schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Write, show and describe the configuration.")

EXAMPLE = """\
# yaml-language-server: $schema=./stoker.schema.json
# Stoker's configuration. `stoker config show` prints what is in force, `stoker config schema` every key.
# Environment variables go before this file (STOKER_PORT=9090, STOKER_QUEUE__MAX_REQUESTS=16), flags before both.

host: 127.0.0.1
port: 8080

models:
  - name: smollm2
    # A path, a stored name[@version], or hf:org/repo/file.gguf, https://..., s3://bucket/key
    source: {source}
  # - name: remote
  #   upstream: http://127.0.0.1:9000        # any OpenAI-compatible server

default_model: smollm2

# Left out, all of these are chosen from the model and from what the host grants: `stoker doctor MODEL` says how.
# plan:
#   threads: 4
#   slots: 8
#   context: 4096        # tokens for each slot

queue:
  max_requests: 64       # one more is refused with 503 and Retry-After
  max_tokens: 65536

timeouts:
  request: 300           # seconds; a request may name its own
  shutdown: 30
"""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("stoker.yaml"),
    *,
    source: Annotated[str, typer.Option(help="The model's path, stored name or address.")] = "smollm2",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write an example configuration, and its JSON Schema beside it for editors. Example: `stoker config init`"""
    from stoker.errors import ConfigError

    schema = path.with_suffix(".schema.json")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force overwrites it")
    try:
        path.write_text(EXAMPLE.replace("{source}", source).replace("stoker.schema.json", schema.name), "utf-8")
        schema.write_text(_schema() + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    typer.echo(f"written: {path} and {schema}")


@app.command()
def show(
    config: Annotated[Path | None, typer.Option("--config", help="Configuration file.", show_default=False)] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the configuration in force: defaults, file and environment together. Secrets stay hidden."""
    import orjson
    import yaml

    from stoker.config import load

    settings = load(config).model_dump(mode="json")
    if as_json:
        typer.echo(orjson.dumps(settings, option=orjson.OPT_INDENT_2).decode())
    else:
        yaml.safe_dump(settings, sys.stdout, sort_keys=False, allow_unicode=True)


@app.command()
def schema() -> None:
    """Print the configuration's JSON Schema. Example: `stoker config schema > stoker.schema.json`"""
    typer.echo(_schema())


def _schema() -> str:
    import orjson

    from stoker.config import Settings

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
