"""`stoker backup`: make, list, check, restore and remove snapshots, and try one out. Parsing and printing only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli import backup_tables as tables
from stoker.cli.backup_options import (
    AsJson,
    ConfigFile,
    DataDir,
    DryRun,
    KeyFile,
    Place,
    Ref,
    interruptible,
    opened,
    passphrase,
    read_from,
)
from stoker.cli.backup_words import kinds
from stoker.cli.drill import drill
from stoker.cli.progress import print_json, watching
from stoker.cli.words import SECONDS, duration, share, when
from stoker.errors import ConfigError

if TYPE_CHECKING:  # imported when it is needed, for a quick --help
    from stoker.backup.repository import Repository, Snapshot
    from stoker.config import BackupConfig
    from stoker.config.keeping import RetentionConfig

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Copies of models, registry and configuration in S3 or a directory: make, check, restore, remove, try out.",
)


@app.command()
def create(
    *,
    tag: Annotated[
        list[str] | None, typer.Option(help="A word to find it by; several times for several.", show_default=False)
    ] = None,
    jobs: Annotated[
        bool | None, typer.Option("--jobs/--no-jobs", help="Keep the job log too.", show_default="as configured")
    ] = None,
    lock: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="TIME", help="No prune removes it for so long: 30d.", show_default=False),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hash every file again and send again what is damaged or missing there.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Most MiB a second that are sent.", show_default="as configured")
    ] = None,
    repository: Place = None,
    key_file: KeyFile = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a snapshot. What the repository has already is neither read nor sent again.

    For example:

    - `stoker backup create --repository s3://backups/stoker`

    - `stoker backup create --tag before-upgrade --lock 30d`

    - `stoker backup create -r /mnt/backup --dry-run`
    """
    from stoker.backup.create import Options
    from stoker.backup.create import create as make

    settings, place = opened(repository, config, data_dir, strict=True)
    options = Options(
        tags=tuple(tag or ()),
        jobs=settings.backup.jobs if jobs is None else jobs,
        key=passphrase(settings, key_file),
        locked_until=None if lock is None else time.time() + lock,
        rate_mib=settings.backup.rate_mib if rate is None else rate,
        check=check,
        config_file=read_from(config),
    )
    left = "interrupted: there is no snapshot of it; what was sent already is not sent again by the next one"
    with interruptible(left), watching("sending") as progress:
        created = make(settings, place, options, progress, dry_run=dry_run)
    if as_json:
        print_json(tables.created_document(created, dry_run=dry_run))
    else:
        tables.print_created(created, dry_run=dry_run)


@app.command("list")
def list_snapshots(
    *,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only those with one of these tags.", show_default=False)
    ] = None,
    repository: Place = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List the snapshots, the newest first.

    For example:

    - `stoker backup list`

    - `stoker backup list -r s3://backups/stoker --json | jq -r '.[0].id'`
    """
    _, place = opened(repository, config)
    found = place.snapshots()
    if tag:
        found = tuple(one for one in found if one.manifest is not None and set(tag) & set(one.manifest.tags))
    if as_json:
        print_json([tables.snapshot_document(one) for one in found])
    elif found:
        tables.print_snapshots(found, time.time())
    else:
        tables.say(f"{place.url}: no {'such ' if tag else ''}snapshots; `stoker backup create` makes one")


@app.command()
def show(snapshot: Ref, *, repository: Place = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show what a snapshot holds, file by file. Example: `stoker backup show latest`"""
    _, place = opened(repository, config)
    found = place.snapshot(snapshot)
    manifest = found.good()
    if as_json:
        entries = [tables.entry_document(entry) for entry in manifest.entries]
        print_json({**tables.snapshot_document(found), "entries": entries})
    else:
        tables.print_snapshot(found, manifest, time.time())


@app.command()
def verify(
    snapshots: Annotated[
        list[str] | None, typer.Argument(metavar="[SNAPSHOT]...", help="Which. Default: the newest good one.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every snapshot, also those that cannot be read.")] = False,
    sample: Annotated[
        float | None,
        typer.Option(
            parser=share, metavar="SHARE", help="How much of the large objects is read: 10%.", show_default="all"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Another number takes another sample.", show_default="another one each day")
    ] = None,
    repository: Place = None,
    key_file: KeyFile = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Read snapshots back and compare each object's SHA-256; exit code 1 when something is damaged or missing.

    For example:

    - `stoker backup verify`

    - `stoker backup verify --all --sample 10%`
    """
    from stoker.backup.verify import verify as check

    if everything and snapshots:
        raise ConfigError("name snapshots, or say --all; not both")
    settings, place = opened(repository, config)
    part = 1.0 if sample is None else sample
    chosen = place.snapshots() if everything else _named(place, snapshots or ["latest"])
    with interruptible("interrupted"), watching("reading") as progress:
        verified = check(
            place,
            chosen,
            progress,
            sample=part,
            key=passphrase(settings, key_file),
            seed=int(time.time() // SECONDS["d"]) if seed is None else seed,
        )
    if as_json:
        print_json(tables.verified_document(verified))
    else:
        tables.print_verified(verified, sampled=part < 1)
    if verified.bad:
        raise typer.Exit(1)


@app.command()
def restore(
    snapshot: Ref,
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The data directory to restore into; made if it is not there.")
    ],
    *,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT,...",
            help="Only these: models, configuration, secrets, rollouts, jobs.",
            show_default="all that it holds",
        ),
    ] = None,
    config_to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the configuration goes.", show_default="stoker.yaml in TARGET"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
    repository: Place = None,
    key_file: KeyFile = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Restore a snapshot into a data directory that no server runs on. What is there and right is not fetched again,
    so an interrupted restore goes on where it stopped.

    For example:

    - `stoker backup restore latest /var/lib/stoker -r s3://backups/stoker`

    - `stoker backup restore 20261124T0300 /var/lib/stoker --only models --dry-run`
    """
    from stoker.backup.restore import restore as put_back

    wanted = None if only is None else kinds(only)
    settings, place = opened(repository, config)
    key = passphrase(settings, key_file)
    found = place.snapshot(snapshot)
    left = "interrupted: run the same command again, it goes on where it stopped"
    with interruptible(left), watching("restoring") as progress:
        restored = put_back(
            place,
            found,
            target,
            progress,
            only=wanted,
            key=key,
            force=force,
            dry_run=dry_run,
            config_to=config_to,
        )
    if as_json:
        print_json(tables.restored_document(found.id, restored))
        return
    tables.print_restored(restored, target, dry_run=dry_run)
    written = config_to or target / "stoker.yaml"
    if wanted is None:
        tables.print_about_secrets(found.good(), with_key=key is not None)
    if not dry_run and (wanted is None or "configuration" in wanted):
        tables.say(f"serve it: stoker serve --config {written}")


@app.command()
def prune(
    *,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Keep the newest ones.", show_default=False)] = None,
    keep_hourly: Annotated[
        int | None, typer.Option(min=1, help="Keep the newest of each of so many hours.", show_default=False)
    ] = None,
    keep_daily: Annotated[int | None, typer.Option(min=1, help="The same for days.", show_default=False)] = None,
    keep_weekly: Annotated[int | None, typer.Option(min=1, help="The same for weeks.", show_default=False)] = None,
    keep_monthly: Annotated[int | None, typer.Option(min=1, help="The same for months.", show_default=False)] = None,
    keep_tag: Annotated[
        list[str] | None, typer.Option(help="Keep those with this tag; several times for several.", show_default=False)
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="Keep younger objects that nobody needs.",
            show_default="as configured",
        ),
    ] = None,
    repository: Place = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove the snapshots that no rule keeps, and the objects that no snapshot needs. Without --keep-... the rules are
    those of backup.retention. The newest good snapshot, pinned and locked ones always stay.

    For example:

    - `stoker backup prune --keep-last 7 --keep-weekly 4 --keep-monthly 6 --dry-run`

    - `stoker backup prune --keep-daily 14 --keep-tag release`
    """
    from stoker.backup.prune import prune as remove

    settings, place = opened(repository, config, strict=True)
    policy = _policy(
        settings.backup,
        last=keep_last,
        hourly=keep_hourly,
        daily=keep_daily,
        weekly=keep_weekly,
        monthly=keep_monthly,
        tags=tuple(keep_tag) if keep_tag else None,
    )
    left = "interrupted: what is left is whole; the next prune goes on"
    with interruptible(left), watching("removing") as progress:
        pruned = remove(
            place,
            policy,
            grace_s=settings.backup.grace if grace is None else grace,
            progress=progress,
            now=time.time(),
            dry_run=dry_run,
        )
    if as_json:
        print_json(tables.pruned_document(pruned))
    else:
        tables.print_pruned(pruned)


@app.command()
def remove(
    snapshot: Ref,
    *,
    force: Annotated[bool, typer.Option("--force", help="Even the only good one, and one that is locked.")] = False,
    repository: Place = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
) -> None:
    """Remove one snapshot, also one that cannot be read, which no rule removes. What only it needs goes with the next
    prune. Example: `stoker backup remove 20261124T0300`
    """
    from stoker.errors import OperatorError

    _, place = opened(repository, config)
    found = place.snapshot(snapshot)
    held = _held(found, place.snapshots(), time.time())
    if held is not None and (found.pinned or not force):
        raise OperatorError(f"{found.id}: {held}")
    if not dry_run:
        place.remove(found.id)
    tables.say(f"{'would be ' if dry_run else ''}removed: {found.id}, made {when(found.created)}")


@app.command()
def pin(snapshot: Ref, *, repository: Place = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Keep a snapshot whatever the rules say. Example: `stoker backup pin 20261124T0300`"""
    _, place = opened(repository, config)
    found = place.snapshot(snapshot)
    if not dry_run:
        place.pin(found.id)
    tables.say(f"{'would be ' if dry_run else ''}pinned: {found.id}, made {when(found.created)}")


@app.command()
def unpin(snapshot: Ref, *, repository: Place = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Let the rules decide about a pinned snapshot again. Example: `stoker backup unpin 20261124T0300`"""
    from stoker.backup.repository import snapshot_key

    _, place = opened(repository, config)
    if snapshot in place.pins() and place.objects.info(snapshot_key(snapshot)) is None:
        if not dry_run:
            place.unpin(snapshot)
        tables.say(f"{'would be ' if dry_run else ''}unpinned: {snapshot}, which is not there any more")
        return
    found = place.snapshot(snapshot)
    if not dry_run:
        place.unpin(found.id)
    tables.say(f"{'would be ' if dry_run else ''}unpinned: {found.id}, made {when(found.created)}")


app.command("drill")(drill)


def _named(place: Repository, refs: list[str]) -> tuple[Snapshot, ...]:
    """The snapshots that are meant, each once."""
    return tuple({found.id: found for found in map(place.snapshot, refs)}.values())


def _held(found: Snapshot, everything: Sequence[Snapshot], now: float) -> str | None:
    """Why a snapshot should not be removed, and what to do about it."""
    if found.pinned:
        return "is pinned; `stoker backup unpin` lets it go"
    if found.manifest is None:
        return None
    if found.manifest.locked_until is not None and found.manifest.locked_until > now:
        return f"is locked until {when(found.manifest.locked_until)}; --force removes it all the same"
    if not any(one.manifest is not None and one.id != found.id for one in everything):
        return "is the only good snapshot; --force removes it all the same"
    return None


def _policy(backup: BackupConfig, **rules: Any) -> RetentionConfig:
    """The rules of the command line where it has any, else the configured ones."""
    given = {name: value for name, value in rules.items() if value is not None}
    return type(backup.retention)(**given) if given else backup.retention
