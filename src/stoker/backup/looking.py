"""What a repository of snapshots has to tell for metrics and health."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from stoker.backup.manifest import decode_document
from stoker.backup.repository import DRILLS, LAST_DRILL, Repository
from stoker.errors import StokerError
from stoker.objects.opening import open_objects
from stoker.objects.store import ObjectMissing
from stoker.objects.waiting import started
from stoker.observability.snapshot import BackupFigures

DRILLS_READ: Final = 32
"""Records of drills that are read, from the newest one back, to find one that succeeded."""
POLL_S: Final = 0.05


async def looked_at(address: str, before: BackupFigures | None = None) -> BackupFigures:
    """As `look_at`, beside the event loop; a server that stops does not wait for a store that never answers."""
    looking = started(lambda: look_at(address, before))
    while not looking.done():  # noqa: ASYNC110 - it ends in a thread that nobody may wait for
        await asyncio.sleep(POLL_S)
    return looking.result()


def look_at(address: str, before: BackupFigures | None = None) -> BackupFigures:
    """Open the repository at an address and look; what opening it raises is a trouble like any other. Blocks."""
    try:
        return look(Repository(open_objects(address)), before)
    except StokerError as error:
        return replace(before or BackupFigures(), trouble=error.message)


def look(repository: Repository, before: BackupFigures | None = None) -> BackupFigures:
    """What is in the repository; when it cannot be read, what was known `before`, with the trouble in words. Blocks."""
    try:
        return _look(repository)
    except StokerError as error:
        return replace(before or BackupFigures(), trouble=error.message)


def _look(repository: Repository) -> BackupFigures:
    snapshots = repository.snapshots()
    good = [snapshot for snapshot in snapshots if snapshot.manifest is not None]
    newest = good[0] if good else None
    manifest = newest.manifest if newest is not None else None
    drill = repository.last_drill()
    return BackupFigures(
        snapshots=len(snapshots),
        pinned=sum(snapshot.pinned for snapshot in snapshots),
        damaged=len(snapshots) - len(good),
        last_id=newest.id if newest is not None else None,
        last_success_at=newest.made if newest is not None else None,
        last_size_bytes=manifest.size if manifest is not None else None,
        last_sent_bytes=manifest.sent_bytes if manifest is not None else None,
        last_seconds=manifest.seconds if manifest is not None else None,
        drill_at=_time(drill),
        drill_ok=_passed(drill) if drill is not None else None,
        drill_succeeded_at=_time(drill) if _passed(drill) else _earlier_success(repository),
    )


def _earlier_success(repository: Repository) -> float | None:
    """When a drill before the last one succeeded."""
    keys = sorted((item.key for item in repository.objects.list(DRILLS) if item.key != LAST_DRILL), reverse=True)
    for key in keys[:DRILLS_READ]:
        try:
            drill = decode_document(repository.objects.get(key))
        except (ObjectMissing, ValueError):
            continue
        if _passed(drill):
            return _time(drill)
    return None


def _passed(drill: Mapping[str, Any] | None) -> bool:
    return drill is not None and drill.get("ok") is True and _time(drill) is not None


def _time(drill: Mapping[str, Any] | None) -> float | None:
    moment = drill.get("time") if drill is not None else None
    try:
        return float(moment) if isinstance(moment, int | float) and math.isfinite(moment) else None
    except OverflowError:
        return None
