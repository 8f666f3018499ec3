"""What the backup verbs have in common: their options, the repository that is meant, the passphrase, interruptions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stoker.errors import ConfigError

if TYPE_CHECKING:  # imported when it is needed, for a quick --help
    from stoker.backup.repository import Repository
    from stoker.config import Settings

INTERRUPTED: Final = 130
LONGEST_KEY: Final = 4096

Place = Annotated[
    str | None,
    typer.Option(
        "--repository", "-r", help="s3://bucket/prefix, or a directory.", show_default="backup.repository as configured"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file. Default: stoker.yaml, if there.", show_default=False),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="What is backed up. Default: as configured.", show_default=False)
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", help="File with the passphrase of what is secret.", show_default="backup.key as configured"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Ref = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Its id, the beginning of one, or latest: the newest good one.")
]


def opened(
    repository: str | None, config: Path | None, data_dir: Path | None = None, *, strict: bool = False
) -> tuple[Settings, Repository]:
    """The settings, and the repository that is meant.

    Unless `strict`, a broken configuration file that was not asked for does not stand in the way of a recovery: it is
    passed over with a word where the repository is named otherwise.

    Raises:
        ConfigError: neither --repository nor the configuration names one, or it makes no sense.
    """
    from stoker.backup.repository import Repository
    from stoker.config import load
    from stoker.objects.opening import open_objects

    named = repository or os.environ.get("STOKER_BACKUP__REPOSITORY")
    try:
        settings = load(config, {"data_dir": data_dir})
    except ConfigError as error:
        if strict or config is not None or not named:
            raise
        settings = load(Path(os.devnull), {"data_dir": data_dir})
        typer.echo(f"going on without the configuration file: {error.message}", err=True)
    address = repository or settings.backup.repository
    if not address:
        raise ConfigError(
            "no repository is named: say where snapshots are kept with --repository s3://bucket/prefix or "
            "--repository /directory, or set backup.repository (STOKER_BACKUP__REPOSITORY)"
        )
    return settings, Repository(open_objects(address))


def passphrase(settings: Settings, key_file: Path | None) -> str | None:
    """What secrets are sealed with: the file's text without the line's end, else what is configured.

    Raises:
        ConfigError: the file cannot be read, or holds no passphrase.
    """
    if key_file is None:
        return None if settings.backup.key is None else settings.backup.key.get_secret_value()
    try:
        with key_file.open("rb") as file:
            text = file.read(LONGEST_KEY + 1).decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"--key-file {key_file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--key-file {key_file}: is no text; a passphrase is one line") from None
    if not text.strip() or len(text) > LONGEST_KEY or "\n" in text:
        raise ConfigError(f"--key-file {key_file}: must hold the passphrase, one line that is not empty")
    return text


def read_from(config: Path | None) -> Path | None:
    """The configuration file that is read when --config says this, if there is one."""
    from stoker.config.loading import DEFAULT_FILE

    named = config or (Path(os.environ["STOKER_CONFIG"]) if os.environ.get("STOKER_CONFIG") else DEFAULT_FILE)
    return named if named.is_file() else None


@contextlib.contextmanager
def interruptible(words: str) -> Iterator[None]:
    """Ctrl-C ends the program with status 130 and a sentence about what is left."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(words, err=True)
        raise typer.Exit(INTERRUPTED) from None
