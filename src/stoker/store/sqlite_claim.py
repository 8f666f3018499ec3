"""Takes due jobs out of the queue in SQLite, tenant by tenant."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from stoker.store.jobs import Job
from stoker.store.sqlite_moves import MAX_SWEPT, sweep
from stoker.store.sqlite_round import next_tenants, seat, wake
from stoker.store.sqlite_rows import by_seqs


@dataclass(frozen=True, slots=True)
class Claim:
    """Who takes how many, under which token, until when; instants in microseconds."""

    worker: str
    token: str
    most: int
    lease: int
    now: int


_Found = tuple[int, str]  # row number, tenant


def claim(db: sqlite3.Connection, rings: set[str], wanted: Claim) -> tuple[list[Job], bool]:
    """Up to `most` jobs, now running; and whether to ask again at once when there are none.

    What one asking does beside is bounded, so that others get their turn however much is to be swept up.
    """
    swept = sweep(db, rings, wanted.now)
    awake = wake(db, wanted.now)
    if swept.more or not awake:
        return [], True
    taken: list[_Found] = []
    visits = 0
    while len(taken) < wanted.most and visits < wanted.most + MAX_SWEPT:
        tenants = next_tenants(db, wanted.most - len(taken))
        if not tenants:
            break
        visits += len(tenants)
        found = _pick(db, tenants, wanted.most - len(taken), wanted.now)
        _start(db, found, wanted)
        seat(db, tenants, [tenant for _, tenant in found], wanted.now)
        taken += found
    return by_seqs(db, [seq for seq, _ in taken]) if taken else [], visits >= wanted.most + MAX_SWEPT


def _pick(db: sqlite3.Connection, tenants: Sequence[str], most: int, now: int) -> list[_Found]:
    """Due jobs of these tenants by turns, at most as many: the first of each, then the second of each..."""
    share = -(-most // len(tenants))
    query = (
        "SELECT seq FROM jobs INDEXED BY jobs_of_tenant_due WHERE tenant = ? AND state = 'queued' AND due <= ?"
        " ORDER BY due, id LIMIT ?"
    )
    queues = [[(row[0], tenant) for row in db.execute(query, (tenant, now, share))] for tenant in tenants]
    rounds = [[jobs[rank] for jobs in queues if rank < len(jobs)] for rank in range(share)]
    return [found for round_ in rounds for found in round_][:most]


def _start(db: sqlite3.Connection, found: Sequence[_Found], wanted: Claim) -> None:
    if found:
        db.execute(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = ?, worker = ?, token = ?, lease = ?,"
            " progress = NULL WHERE seq IN (SELECT value FROM json_each(?))",
            (wanted.now, wanted.worker, wanted.token, wanted.lease, json.dumps([seq for seq, _ in found])),
        )
