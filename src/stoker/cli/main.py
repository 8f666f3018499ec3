"""The `stoker` program: its verbs, and the one place that prints errors. Each verb imports the server code it needs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stoker import __version__
from stoker.cli import (
    ask,
    backup,
    batch,
    bench,
    configuration,
    deploy,
    doctor,
    evaluate,
    guard,
    jobs,
    keys,
    models,
    rollout,
    route,
    serve,
)
from stoker.errors import OperatorError, StokerError

app = typer.Typer(
    name="stoker",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Keeps small language models running: one command from a GGUF file to a reliable, OpenAI-compatible API.",
    epilog="`stoker serve ./model.gguf` starts; `stoker VERB --help` has examples; "
    "`stoker --install-completion` makes the shell complete.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stoker {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("serve")(serve.serve)
app.command("query")(ask.query)
app.command("chat")(ask.chat)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.command("batch")(batch.batch)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(rollout.app, name="rollout")
app.add_typer(deploy.app, name="deploy")
app.add_typer(keys.app, name="keys")
app.add_typer(backup.app, name="backup")
app.add_typer(guard.app, name="guard")
app.add_typer(route.app, name="route")
app.add_typer(configuration.app, name="config")


def main() -> None:
    """Run the program; an expected error is one paragraph on standard error and an exit status, never a traceback."""
    try:
        app()
    except OperatorError as error:
        typer.secho(f"stoker: {error.message}", err=True, fg=typer.colors.RED)
        sys.exit(error.exit_code)
    except StokerError as error:
        typer.secho(f"stoker: {error.message}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; that is no error of ours
        sys.exit(141)


if __name__ == "__main__":
    main()
