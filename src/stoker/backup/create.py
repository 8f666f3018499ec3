"""Makes a snapshot: what the repository lacks is sent, then the manifest makes the snapshot visible. Blocks.

Whatever ends it before the manifest is written leaves no snapshot, only objects that the next one uses. Content is
hashed while it is sent, so that a damaged model never becomes an object under a good one's digest.
"""

from __future__ import annotations

import hashlib
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoker import __version__
from stoker.backup.inventory import CannotBackUp, Item, take_inventory
from stoker.backup.manifest import Manifest, new_id
from stoker.backup.models import DamagedModel
from stoker.backup.repository import READERS, Repository
from stoker.config import Settings
from stoker.models.partial import Progress
from stoker.objects.store import StorageError

PIECE: Final = 8 << 20
"""Bytes of content that are read, hashed and sent at once."""
PRUNE_POLL_S: Final = 1.0
PRUNE_WAIT_S: Final = 6 * 3600.0

_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


@dataclass(frozen=True, slots=True)
class Options:
    """How a snapshot is made.

    Attributes:
        tags: words by which it is found, and kept by rules that name them.
        jobs: whether the embedded job log is part of it.
        key: passphrase under which secrets are part of it; None leaves them out.
        locked_until: Unix time until which no rule removes it.
        rate_mib: most MiB a second that are read and sent.
        check: hash and send again even what the repository has.
        config_file: the configuration file, which is kept as it is among the secrets.
    """

    tags: tuple[str, ...] = ()
    jobs: bool = False
    key: str | None = None
    locked_until: float | None = None
    rate_mib: float | None = None
    check: bool = False
    config_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """A snapshot that was made: objects that were sent, and that were in the repository before."""

    manifest: Manifest
    sent: int
    reused: int


def create(
    settings: Settings, repository: Repository, options: Options, progress: Progress, *, dry_run: bool = False
) -> Created:
    """Make a snapshot of a server, running or not.

    Args:
        settings: the server's.
        repository: where it goes.
        options: how.
        progress: told bytes sent of all to be sent.
        dry_run: only find out what would be sent.

    Raises:
        ModelFileError, CannotBackUp: something is missing, damaged, or changed meanwhile; there is no snapshot.
        StorageError: the repository fails; there is no snapshot.
    """
    began, since = time.time(), time.monotonic()
    _check_tags(options.tags)
    with tempfile.TemporaryDirectory(prefix="stoker-backup-") as workspace:
        items = take_inventory(
            settings,
            progress,
            jobs=options.jobs,
            key=options.key,
            config_file=options.config_file,
            workspace=Path(workspace),
        )
        by_object = {item.entry.stored: item for item in items}
        lacking = _lacking(repository, by_object, everything=options.check)
        sent_bytes = sum(item.stored_size for item in lacking)
        if not dry_run:
            _send(repository, lacking, progress, _Pace(options.rate_mib))
        manifest = Manifest(
            id=new_id(began),
            created=began,
            host=_host(),
            version=__version__,
            tags=tuple(dict.fromkeys(options.tags)),
            entries=tuple(item.entry for item in items),
            locked_until=options.locked_until,
            seconds=round(time.monotonic() - since, 3),
            sent_bytes=sent_bytes,
        )
        if not dry_run:
            repository.add(manifest)
            _make_sure(repository, manifest, by_object, progress)
    return Created(manifest, len(lacking), len(by_object) - len(lacking))


def _lacking(repository: Repository, by_object: Mapping[str, Item], *, everything: bool) -> list[Item]:
    if everything:
        return list(by_object.values())
    missing = repository.missing({digest: item.stored_size for digest, item in by_object.items()})
    return [item for digest, item in by_object.items() if digest in missing]


def _make_sure(repository: Repository, manifest: Manifest, by_object: Mapping[str, Item], progress: Progress) -> None:
    """See that no prune that began before the manifest was there took an object from under it."""
    try:
        _wait_for_prune(repository, progress)
        lost = _lacking(repository, by_object, everything=False)
        if lost:
            progress.note("a prune removed what this snapshot needs; sending it again")
            _send(repository, lost, progress, _Pace(None))
    except BaseException:
        # Where even that fails, `verify` tells of it; why it came to this says more.
        with suppress(StorageError):
            repository.remove(manifest.id)
        raise


def _wait_for_prune(repository: Repository, progress: Progress) -> None:
    limit = time.monotonic() + PRUNE_WAIT_S
    told = False
    while repository.prune_lock() and time.monotonic() < limit:
        if not told:
            progress.note("the repository is being pruned; waiting")
            told = True
        time.sleep(PRUNE_POLL_S)


def _send(repository: Repository, items: Sequence[Item], progress: Progress, pace: _Pace) -> None:
    """Send small content side by side, then files one after the other."""
    meter = _Meter(progress, sum(item.stored_size for item in items))
    small = [item for item in items if isinstance(item.content, bytes)]
    with ThreadPoolExecutor(READERS) as pool:
        for item in pool.map(lambda item: _put(repository, item), small):
            meter.add(item.stored_size)
    for item in items:
        if isinstance(item.content, Path):
            pieces = checked_pieces(item.content, item, meter.add, pace.wait)
            repository.send_object(item.entry.stored, pieces, item.entry.size)


def _put(repository: Repository, item: Item) -> Item:
    if isinstance(item.content, bytes):
        repository.put_object(item.entry.stored, item.content)
    return item


def checked_pieces(
    path: Path, item: Item, passed: Callable[[int], None], pause: Callable[[int], None]
) -> Iterator[bytes]:
    """A file's content. The last piece leaves only when all of it is what its digest says.

    Raises:
        DamagedModel: it is another content, or was cut short or removed meanwhile.
    """
    digest = hashlib.sha256()
    size, held = 0, b""
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(PIECE):
                digest.update(data)
                size += len(data)
                if size > item.entry.size:
                    break
                if held:
                    yield held
                    passed(len(held))
                    pause(len(held))
                held = data
    except OSError as error:
        raise DamagedModel(f"{path}: cannot be read ({error.strerror}); no snapshot was made") from None
    if size != item.entry.size or digest.hexdigest() != item.entry.sha256:
        raise DamagedModel(item.trouble)
    if held:
        yield held
        passed(len(held))


class _Meter:
    """Adds up what was sent."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, size: int) -> None:
        self._done += size
        self._progress.update(self._done, self._total)


class _Pace:
    """Keeps to so many MiB a second, over all that is sent; None: as fast as it goes."""

    def __init__(self, rate_mib: float | None) -> None:
        self._rate = None if rate_mib is None else rate_mib * (1 << 20)
        self._due = time.monotonic()

    def wait(self, size: int) -> None:
        if self._rate is not None:
            self._due = max(self._due, time.monotonic() - 1.0) + size / self._rate
            time.sleep(max(0.0, self._due - time.monotonic()))


def _check_tags(tags: Sequence[str]) -> None:
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise CannotBackUp(f"{tag!r:.100} cannot be a tag: 1 to 64 letters, digits, '.', '_', ':' and '-'")


def _host() -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in socket.gethostname())[:255] or "unknown"
