"""`stoker keys`: make, list and revoke API keys. A running server takes changes in within two seconds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table

from stoker.cli.progress import output

if TYPE_CHECKING:
    from stoker.config import KeyConfig, Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Make, list and revoke API keys.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Who the key is for; shown in logs and metrics.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.", show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where keys.yaml is. Default: as configured.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def create(
    name: Name,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference, jobs or admin; several times for several.", show_default="inference, jobs"),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may ask; several times for several.", show_default="all")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests in a window.", show_default="as configured for keys")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens in a window.", show_default="as configured for keys")
    ] = None,
    window: Annotated[float | None, typer.Option(help="Seconds of the window.", show_default="60")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once.", show_default=False)] = None,
    expires: Annotated[
        datetime | None, typer.Option(help="When it stops working, in local time.", show_default="never")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Take its system prompts without the guard's look.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    For example:

    - `stoker keys create billing --requests 100 --model smollm2`

    - `stoker keys create ops --scope admin`
    """
    from stoker.admission.keys import changing, file_of, hash_of, new_key
    from stoker.errors import ConfigError

    settings = _settings(config, data_dir)
    rate = {"requests": requests, "tokens": tokens, "window": window, "concurrency": concurrency}
    secret = new_key()
    fields: dict[str, Any] = {"name": name, "hash": hash_of(secret)}
    fields |= {key: value for key, value in {"scopes": scope, "models": model}.items() if value}
    if given := {key: value for key, value in rate.items() if value is not None}:
        fields["rate"] = given
    if expires is not None:
        fields["expires"] = expires.astimezone()
    if trusted:
        fields["trusted"] = True
    path = file_of(settings)
    with changing(path) as keys:
        if any(key.name == name for key in (*keys, *settings.keys)):
            raise ConfigError(f"there is a key named {name!r} already; revoke it first, or choose another name")
        keys.append(_checked(fields))
    if as_json:
        typer.echo(orjson.dumps({"name": name, "key": secret, "file": str(path)}).decode())
        return
    typer.echo(secret)
    typer.secho(f"the key of {name!r}, shown this once; its hash is in {path}", err=True, fg=typer.colors.GREEN)


@app.command("list")
def list_keys(*, config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys: names, scopes, models and limits, never the keys themselves. Example: `stoker keys list`"""
    from stoker.admission.keys import file_of, read_keys

    settings = _settings(config, data_dir)
    path = file_of(settings)
    rows = [("configuration", key) for key in settings.keys]
    rows += [(path.name, key) for key in read_keys(path) or ()]
    if as_json:
        listed = [
            {**key.model_dump(mode="json", exclude={"hash"}, exclude_none=True), "in": where} for where, key in rows
        ]
        typer.echo(orjson.dumps(listed, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("name", "scopes", "models", "limits", "expires", "in", box=None, header_style="bold")
    for where, key in rows:
        expires = key.expires.isoformat(timespec="minutes") if key.expires else "never"
        table.add_row(key.name, ", ".join(key.scopes), ", ".join(key.models) or "all", _limits(key), expires, where)
    output().print(table if rows else "there are no keys; `stoker keys create NAME` makes one")


@app.command()
def revoke(name: Name, *, config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Take a key away. A running server refuses it within two seconds. Example: `stoker keys revoke billing`"""
    from stoker.admission.keys import changing, file_of
    from stoker.errors import ConfigError

    settings = _settings(config, data_dir)
    path = file_of(settings)
    with changing(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            there = ", ".join(key.name for key in keys) or "none"
            hint = "; this one stands in the configuration" if any(k.name == name for k in settings.keys) else ""
            raise ConfigError(f"{path}: there is no key named {name!r}; there is: {there}{hint}")
        keys[:] = left
    typer.echo(f"revoked: {name}")


def _settings(config: Path | None, data_dir: Path | None) -> Settings:
    from stoker.config import load

    return load(config, {"data_dir": data_dir})


def _checked(fields: dict[str, Any]) -> KeyConfig:
    from pydantic import ValidationError

    from stoker.config import KeyConfig
    from stoker.errors import ConfigError

    try:
        return KeyConfig(**fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{where}: {problem['msg']}; `stoker keys create --help` says what may stand there") from None


def _limits(key: KeyConfig) -> str:
    if key.rate is None:
        return "as configured"
    named = (("requests", key.rate.requests), ("tokens", key.rate.tokens), ("at once", key.rate.concurrency))
    said = [f"{value} {what}" for what, value in named if value is not None]
    return f"{', '.join(said)} in {key.rate.window:g} s" if said else "none"
