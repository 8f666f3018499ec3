"""Repositories to prune, stores that interfere with it, and a process that is killed while it prunes.

    python tests/prune_work.py ADDRESS CALLS

keeps the last snapshot of the repository at that address, and is killed by SIGKILL before it changes it for the
CALLS-th time; it ends with 0 when it was done before that.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from stoker.backup.manifest import Entry, Manifest, new_id
from stoker.backup.prune import Pruned, prune
from stoker.backup.repository import Repository, object_key
from stoker.config.keeping import RetentionConfig
from stoker.models.partial import Quiet
from stoker.objects.opening import open_objects
from stoker.objects.store import ObjectStore, StoredObject

DAY = 86_400.0


class Notes(Quiet):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[int, int | None]] = []

    def update(self, done: int, total: int | None) -> None:
        self.updates.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Interfering:
    """A store whose changes, and listings, somebody may hold up or refuse: `before(what, key)` is called first."""

    def __init__(self, objects: ObjectStore, before: Callable[[str, str], None]) -> None:
        self.inner = objects
        self.before = before
        self.ages: dict[str, float] = {}
        """Seconds by which objects are older than they are, by the beginning of their keys."""

    @property
    def url(self) -> str:
        return self.inner.url

    def put(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        self.before("put", key)
        self.inner.put(key, data, only_new=only_new)

    def put_stream(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        self.before("put", key)
        self.inner.put_stream(key, pieces, size)

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def stream(self, key: str) -> Iterator[bytes]:
        return self.inner.stream(key)

    def info(self, key: str) -> StoredObject | None:
        found = self.inner.info(key)
        return None if found is None else self._aged(found)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.before("list", prefix)
        return map(self._aged, self.inner.list(prefix))

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.inner.delete(key)

    def sweep(self, older_than: float) -> int:
        self.before("sweep", "")
        return self.inner.sweep(older_than)

    def _aged(self, found: StoredObject) -> StoredObject:
        seconds = next((age for start, age in self.ages.items() if found.key.startswith(start)), 0.0)
        return replace(found, modified=found.modified - seconds)


def nothing(what: str, key: str) -> None:
    """No interference."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def keep(repository: Repository, *contents: bytes, days: float = 0.0, **others: Any) -> str:
    """A snapshot of `days` ago that holds these contents as models; its name."""
    entries = []
    for content in contents:
        sha256 = digest(content)
        if not repository.has(sha256, len(content)):
            repository.put_object(sha256, content)
        entries.append(Entry(f"models/blobs/{sha256}", "model", len(content), sha256, sha256))
    created = time.time() - days * DAY
    about: dict[str, Any] = {"host": "h", "version": "1", "tags": (), "entries": tuple(entries), **others}
    manifest = Manifest(new_id(created), created, **about)
    repository.add(manifest)
    return manifest.id


def pruned(repository: Repository, *, grace_s: float = 0.0, now: float | None = None, **rules: Any) -> Pruned:
    """Prune, by default so that the last one stays; everything counts as old unless `grace_s` is given."""
    moment = time.time() if now is None else now
    progress = rules.pop("progress", Quiet())
    dry_run = rules.pop("dry_run", False)
    policy = RetentionConfig(**(rules or {"last": 1}))
    return prune(repository, policy, grace_s=grace_s, progress=progress, now=moment, dry_run=dry_run)


def ids(repository: Repository) -> set[str]:
    return {one.id for one in repository.snapshots()}


def contents(repository: Repository) -> set[str]:
    """Keys of the objects that are there."""
    return {one.key for one in repository.stored_objects()}


def keys(*whole: bytes) -> set[str]:
    return {object_key(digest(content)) for content in whole}


def incomplete(repository: Repository) -> dict[str, frozenset[str]]:
    """The snapshots that cannot be restored, with what they lack."""
    lacking = {
        one.id: repository.missing({entry.stored: entry.size for entry in one.good().entries})
        for one in repository.snapshots()
    }
    return {name: lost for name, lost in lacking.items() if lost}


def main(address: str, calls: int) -> None:
    left = calls

    def count(what: str, key: str) -> None:
        nonlocal left
        if what == "list":
            return
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    pruned(Repository(Interfering(open_objects(address), count)), grace_s=-DAY)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
