"""Removes snapshots that the retention policy does not keep, and objects that no snapshot needs any more.

First manifests, then objects: whatever ends a prune half-way, what is left is whole, and the next one goes on. A backup
under way may count on an object that no snapshot needs yet. So only objects older than the grace period are collected,
the snapshots are looked at again before each batch, and `create` checks its objects once more when it meets a prune.

Nothing is collected while a manifest cannot be read, for nobody knows what it needs. What the store refuses to delete
(retention, a policy) stays with all that it needs, and is told. A bucket that keeps versions, as one with object lock
does, hides what is deleted; its bytes are freed when the bucket's own rule for old versions says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stoker.backup.lock import PREFIX, PruneLock
from stoker.backup.manifest import Entry, Manifest
from stoker.backup.repository import Repository, Snapshot, digest_of, snapshot_key
from stoker.backup.retention import Dated, Decision, check_policy, decide
from stoker.config.keeping import RetentionConfig
from stoker.models.partial import Progress
from stoker.objects.store import ObjectLocked, StoredObject

BATCH: Final = 200
"""Deletions between two looks at the lock and at the snapshots, at most."""
BATCH_SECONDS: Final = 60.0
"""The same in time: a store that hangs must not outlast the lock's lease."""
DEBRIS_SECONDS: Final = 86_400.0
"""Age from which the rest of an interrupted write is cleared away, or the grace period where that is longer."""
TICK: Final = 1.0
"""Stores tell times in whole seconds."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune would do.

    `objects` are those that nobody needs and that are past the grace period, `freed` their bytes; `young` counts those
    that nobody needs either, but that a backup under way might. `troubles` are sentences for people about what is not
    as it should be.
    """

    decision: Decision
    objects: tuple[StoredObject, ...]
    young: int
    troubles: tuple[str, ...]

    @property
    def freed(self) -> int:
        return sum(one.size for one in self.objects)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did, or with `dry_run` would have done.

    `removed` are snapshots, the newest first; `held` the keys that the store refused to delete, each with its words;
    `collected` counts objects and `freed` their bytes; `swept` counts rests of interrupted writes.
    """

    plan: PrunePlan
    removed: tuple[str, ...]
    held: Mapping[str, str]
    collected: int
    freed: int
    swept: int
    dry_run: bool = False


def plan_prune(repository: Repository, policy: RetentionConfig, now: float, grace_s: float) -> PrunePlan:
    """What a prune at `now` (Unix seconds) would do. Changes nothing.

    Raises:
        EmptyPolicy: the policy has no rule.
        StorageError: the repository cannot be read.
    """
    check_policy(policy)
    # Snapshots before objects, so that all that a whole snapshot needs is in the listing.
    snapshots = repository.snapshots()
    return make_plan(snapshots, tuple(repository.stored_objects()), policy, now, grace_s)


def prune(
    repository: Repository,
    policy: RetentionConfig,
    *,
    grace_s: float,
    progress: Progress,
    now: float,
    dry_run: bool = False,
) -> Pruned:
    """Remove what the policy does not keep, and then what nobody needs.

    Args:
        repository: locked meanwhile, unless nothing is to change.
        policy: which snapshots stay.
        grace_s: seconds for which an object that nobody needs is kept.
        progress: told the bytes that are freed, and whatever stays that should have gone.
        now: Unix seconds. Where the store's clock is behind, that one counts.
        dry_run: only say what would be done.

    Raises:
        EmptyPolicy: the policy has no rule.
        PruneRunning: another process prunes the repository.
        PruneLost: this one was away for so long that another one took over; what it did so far is sound.
        StorageError: the store failed; the same holds, and the next prune goes on.
    """
    check_policy(policy)
    if dry_run:
        plan = plan_prune(repository, policy, now, grace_s)
        return Pruned(plan, plan.decision.remove, {}, len(plan.objects), plan.freed, swept=0, dry_run=True)
    with repository.lock_for_prune() as lock:
        now = _by_both_clocks(repository, now)
        plan = plan_prune(repository, policy, now, grace_s)
        removal = _Removal(repository, lock, progress)
        removal.remove_snapshots(plan.decision.remove)
        removal.collect(plan)
        swept = repository.objects.sweep(now - max(grace_s, DEBRIS_SECONDS))
    removed = tuple(one for one in plan.decision.remove if one in removal.removed)
    return Pruned(plan, removed, removal.held, removal.collected, removal.freed, swept)


def make_plan(
    snapshots: Sequence[Snapshot], stored: Iterable[StoredObject], policy: RetentionConfig, now: float, grace_s: float
) -> PrunePlan:
    """The plan for a repository with these snapshots and objects. Pure; raises EmptyPolicy."""
    objects = {digest: one for one in stored if (digest := digest_of(one.key)) is not None}
    lacks = {one.id: _lacks(one.manifest, objects) for one in snapshots if one.manifest is not None}
    whole = {snapshot for snapshot, lacking in lacks.items() if not lacking}
    decision = decide([_dated(one, now, good=one.id in whole) for one in snapshots], policy, now)
    troubles = tuple(_trouble(one, lacks.get(one.id, ())) for one in snapshots if one.id not in whole)
    needed = needed_by(one for one in snapshots if one.id in decision.keep)
    if needed is None:
        return PrunePlan(decision, (), 0, (*troubles, _nothing_collected(snapshots)))
    unneeded = [one for digest, one in objects.items() if digest not in needed]
    old = tuple(one for one in unneeded if one.modified < now - grace_s)
    return PrunePlan(decision, old, len(unneeded) - len(old), troubles)


def needed_by(snapshots: Iterable[Snapshot]) -> frozenset[str] | None:
    """Digests of the objects that these snapshots need; None: nobody knows, for one of them cannot be read."""
    needed: set[str] = set()
    for one in snapshots:
        if one.manifest is None:
            return None
        needed |= one.manifest.objects
    return frozenset(needed)


class _Removal:
    """The deletions of one prune: in batches, each under a lock that was still ours when it began."""

    def __init__(self, repository: Repository, lock: PruneLock, progress: Progress) -> None:
        self.removed: set[str] = set()
        self.held: dict[str, str] = {}
        self.collected = 0
        self.freed = 0
        self._repository = repository
        self._lock = lock
        self._progress = progress
        self._left = 0
        self._until = 0.0

    def remove_snapshots(self, ids: Sequence[str]) -> None:
        """Delete manifests, the oldest first; those pinned meanwhile stay."""
        pins: frozenset[str] = frozenset()
        for snapshot in reversed(ids):
            if self._batch_begins():
                pins = self._repository.pins()
            if snapshot in pins:
                self._progress.note(f"snapshot {snapshot}: has been pinned meanwhile, so it stays")
                continue
            try:
                self._repository.remove(snapshot)
            except ObjectLocked as error:
                self._hold(snapshot_key(snapshot), error)
            else:
                self.removed.add(snapshot)

    def collect(self, plan: PrunePlan) -> None:
        """Delete the plan's objects, but for those that a snapshot of now needs: a new one, or one that was held."""
        self._left = 0  # the manifests that are gone now must be seen
        needed: frozenset[str] | None = frozenset()
        total = plan.freed
        for one in plan.objects:
            if self._batch_begins():
                needed = needed_by(self._repository.snapshots())
            if needed is None:
                self._progress.note(f"{self._repository.url}: a manifest cannot be read any more; collected no further")
                return
            if digest_of(one.key) in needed:
                continue
            try:
                self._repository.objects.delete(one.key)
            except ObjectLocked as error:
                self._hold(one.key, error)
            else:
                self.collected += 1
                self.freed += one.size
                self._progress.update(self.freed, total)

    def _hold(self, key: str, error: ObjectLocked) -> None:
        self.held[key] = error.message
        self._progress.note(error.message)

    def _batch_begins(self) -> bool:
        """Count a deletion; at the first one of a batch the lock is renewed, or PruneLost raised."""
        if self._left and time.monotonic() < self._until:
            self._left -= 1
            return False
        self._lock.renew()
        self._left, self._until = BATCH - 1, time.monotonic() + BATCH_SECONDS
        return True


def _by_both_clocks(repository: Repository, now: float) -> float:
    """The earlier of this host's time and the store's, which has just written our lock.

    A clock that is ahead would make young objects old, and locks end early.
    """
    written = [one.modified for one in repository.objects.list(PREFIX)]
    return min(now, max(written, default=now) + TICK)


def _dated(snapshot: Snapshot, now: float, *, good: bool) -> Dated:
    """A snapshot as retention sees it. Where the clock of the host that made it was ahead, the store's date counts."""
    created = snapshot.created
    return Dated(
        id=snapshot.id,
        created=snapshot.modified if snapshot.modified <= now < created else created,
        tags=() if snapshot.manifest is None else snapshot.manifest.tags,
        pinned=snapshot.pinned,
        good=good,
        locked_until=None if snapshot.manifest is None else snapshot.manifest.locked_until,
    )


def _lacks(manifest: Manifest, objects: Mapping[str, StoredObject]) -> tuple[Entry, ...]:
    """The files whose content is not there, or has another size; how large a sealed one is kept nobody knows."""

    def is_there(entry: Entry) -> bool:
        found = objects.get(entry.stored)
        return found is not None and (entry.sealed or found.size == entry.size)

    return tuple(entry for entry in manifest.entries if not is_there(entry))


def _trouble(snapshot: Snapshot, lacking: Sequence[Entry]) -> str:
    if snapshot.manifest is None:
        return snapshot.trouble or f"snapshot {snapshot.id}: its manifest cannot be read"
    return (
        f"snapshot {snapshot.id}: {len(lacking)} of its {len(snapshot.manifest.entries)} files cannot be restored, the "
        f"first is {lacking[0].path}; it uses up no place. A new backup sends again what this host has"
    )


def _nothing_collected(snapshots: Sequence[Snapshot]) -> str:
    unreadable = next(one.id for one in snapshots if one.manifest is None)
    return (
        f"no objects are collected while {snapshot_key(unreadable)} cannot be read, for nobody knows which ones it "
        f"needs; update Stoker if a newer one wrote it, else `stoker backup remove {unreadable}`"
    )
