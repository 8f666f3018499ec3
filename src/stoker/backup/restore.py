"""Puts a snapshot's files back. Blocks.

First everything is looked at, then written: each file beside its place, hashed while it is written, synced and renamed.
Models come before the entries that name them, and the configuration last. What is there and right is left alone, so
that a restore that was interrupted goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from stoker.backup.configured import place
from stoker.backup.inventory import KEYS_FILE
from stoker.backup.landing import check_room, content_of, same_file, same_model, write_file
from stoker.backup.manifest import DamagedSnapshot, Entry, Kind
from stoker.backup.occupancy import alone, refuse_in_use
from stoker.backup.repository import Repository, Snapshot
from stoker.backup.sealing import Sealer, WrongKey
from stoker.errors import OperatorError
from stoker.models.partial import Progress
from stoker.models.registry import ModelRegistry

What = Literal["write", "same", "conflict", "left out"]
CONFIG_FILE: Final = "stoker.yaml"
ORDER: Final[tuple[Kind, ...]] = ("model", "registry", "rollouts", "jobs", "secrets", "configuration")
SHOWN: Final = 10

_FULL: Final[Mapping[str, str]] = {"secrets/stoker.yaml": CONFIG_FILE, "secrets/keys.yaml": KEYS_FILE}
"""Sealed files that take the place of what the snapshot has of them in the open."""


class RestoreConflict(OperatorError):
    """Files that are there are not the snapshot's."""

    code = "restore_conflict"


@dataclass(frozen=True, slots=True)
class Action:
    """What is done about one file; `path` is where it belongs, `size` its bytes."""

    path: str
    what: What
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, or with `dry_run` would do."""

    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """One file: where it goes, and its content where that is at hand: the configuration file and what was sealed."""

    entry: Entry
    path: Path
    what: What
    content: bytes | None = None


def restore(
    repository: Repository,
    snapshot: Snapshot,
    target: Path,
    progress: Progress,
    *,
    only: frozenset[Kind] | None = None,
    key: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    config_to: Path | None = None,
) -> Restored:
    """Restore a snapshot into a data directory.

    A model file whose content is not what its name says is damaged, and is replaced without `force`; so is an entry of
    the registry that means the same model, for when it was added decides which one a name without version means. With
    secrets, the configuration and the keys are complete; without, an empty keys file keeps a server closed that had
    keys.

    Args:
        repository: where it is.
        snapshot: which.
        target: the data directory; made when it is missing.
        progress: told bytes written of all to be written.
        only: kinds to restore; models and their entries go together. None: all, secrets only with `key`.
        key: passphrase of the secrets.
        force: overwrite files that differ.
        dry_run: only find out what would be done; conflicts are told, not raised.
        config_to: where the configuration file goes. Default: stoker.yaml in `target`.

    Raises:
        RestoreConflict: files differ; nothing was written.
        InUse: a server runs there; nothing was written.
        WrongKey: the passphrase is another one; nothing was written.
        DamagedSnapshot: content is missing or damaged; what was written before is whole.
        StorageError, CannotRestore: the repository or the disk fails.
    """
    manifest = snapshot.good()
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path has no abspath
    config = Path(os.path.abspath(config_to)) if config_to is not None else target / CONFIG_FILE  # noqa: PTH100
    wanted = _wanted(manifest.entries, only, key)
    refuse_in_use(target)
    places = _places(manifest.entries, target, config)
    steps = _plan(repository, places, wanted, target, None if key is None else Sealer(key))
    done = Restored(tuple(Action(_shown(step, target), step.what, step.entry.size) for step in steps))
    if dry_run:
        return done
    conflicts = [str(step.path) for step in steps if step.what == "conflict"]
    if conflicts and not force:
        more = f" and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        raise RestoreConflict(
            f"{', '.join(conflicts[:SHOWN])}{more}: not what the snapshot has; nothing was written. "
            "Restore into another directory, or overwrite with --force"
        )
    writes = [step for step in steps if step.what in {"write", "conflict"}]
    check_room([(step.path, step.entry.size) for step in writes])
    with alone(target):
        _write_all(repository, writes, target, progress)
    return done


def _wanted(entries: Sequence[Entry], only: frozenset[Kind] | None, key: str | None) -> frozenset[str]:
    """Paths of the entries that are to be restored."""
    kinds = frozenset(ORDER) if only is None else only
    if kinds & {"model", "registry"}:
        kinds |= {"model", "registry"}
    if key is None:
        if only is not None and "secrets" in only:
            raise WrongKey("secrets are restored with the backup key only; name it (`--key-file`)")
        kinds -= {"secrets"}
    chosen = {entry.path for entry in entries if entry.kind in kinds}
    return frozenset(chosen - {_FULL[path] for path in chosen if path in _FULL})


def _places(entries: Sequence[Entry], target: Path, config: Path) -> list[tuple[Entry, Path]]:
    """Where each file belongs, in the order in which they are written."""
    named = [(entry, _FULL.get(entry.path, entry.path)) for entry in sorted(entries, key=_turn)]
    return [(entry, config if path == CONFIG_FILE else target / path) for entry, path in named]


def _plan(
    repository: Repository,
    places: Sequence[tuple[Entry, Path]],
    wanted: frozenset[str],
    target: Path,
    sealer: Sealer | None,
) -> list[_Step]:
    """What is to be done about each file."""
    replaced = {_FULL[path] for path in wanted if path in _FULL}
    steps = []
    for entry, path in places:
        if entry.path not in wanted:
            if entry.path not in replaced:
                steps.append(_Step(entry, target / entry.path, "left out"))
            continue
        content = _small_content(repository, entry, sealer)
        if _is_configuration(entry) and content is not None:
            content = _placed(content, target)
        what = _what(entry, path, content)
        # The rest is fetched again, for what a snapshot calls small may be much together.
        steps.append(_Step(entry, path, what, content if entry.sealed or _is_configuration(entry) else None))
    return steps


def _turn(entry: Entry) -> tuple[bool, int]:
    """By kind, the configuration file after everything else: what it names must be there."""
    return _is_configuration(entry), ORDER.index(entry.kind)


def _is_configuration(entry: Entry) -> bool:
    return _FULL.get(entry.path, entry.path) == CONFIG_FILE


def _small_content(repository: Repository, entry: Entry, sealer: Sealer | None) -> bytes | None:
    """What must be seen before anything is written."""
    if entry.kind not in {"configuration", "secrets", "registry"}:
        return None
    data = content_of(repository, entry)
    if not entry.sealed:
        return data
    if sealer is None:
        raise WrongKey("secrets are restored with the backup key only")
    return sealer.unseal(data)


def _placed(content: bytes, target: Path) -> bytes:
    try:
        return place(content, target)
    except ValueError as error:
        raise DamagedSnapshot(f"the snapshot's {CONFIG_FILE} {error}; use another snapshot") from None


def _what(entry: Entry, path: Path, content: bytes | None) -> What:
    if not os.path.lexists(path):
        return "write"
    if same_file(entry, path, content):
        return "same"
    if entry.kind == "model" or (content is not None and entry.kind == "registry" and same_model(content, path)):
        return "write"
    if entry.path == KEYS_FILE:
        return "left out"  # it only stands for keys; those that are there are better
    return "conflict"


def _write_all(repository: Repository, steps: Sequence[_Step], target: Path, progress: Progress) -> None:
    total = sum(step.entry.size for step in steps)
    done = 0
    with ExitStack() as stack:
        if any(step.entry.kind in {"model", "registry"} for step in steps):
            # Files without a name yet would be cleared away by a change of the registry.
            stack.enter_context(ModelRegistry(target).locked())
        for step in steps:
            before = done

            def passed(size: int, before: int = before) -> None:
                progress.update(before + size, total)

            write_file(repository, step.entry, step.path, step.content, passed)
            done += step.entry.size
            progress.update(done, total)


def _shown(step: _Step, target: Path) -> str:
    return str(step.path.relative_to(target)) if step.path.is_relative_to(target) else str(step.path)
