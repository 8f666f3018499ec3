"""Puts submissions into SQLite, many at once: what each of them may do is decided in Python, then written together.

Few statements for many jobs: each one gives up the interpreter's lock and must get it back from a busy event loop.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from stoker.store.bells import WORK
from stoker.store.jobs import (
    Idempotency,
    IdempotencyMismatch,
    Job,
    NewJob,
    QueueFull,
    QueueLimits,
    Submission,
    as_stored,
)
from stoker.store.protocols import MICRO
from stoker.store.sqlite_round import enqueue
from stoker.store.sqlite_rows import by_ids, micro

_JOB = (
    "seq, id, tenant, state, endpoint, created, due, not_before, expires, max_attempts, keep, batch, custom_id,"
    " has_callback"
)
_ROWS_EACH = (64, 8, 1)  # rows of one statement: few texts, so that they stay prepared


@dataclass(frozen=True, slots=True)
class Submit:
    """One submission on its way; `now` in microseconds."""

    jobs: Sequence[NewJob]
    limits: QueueLimits
    idempotency: Idempotency | None
    now: int


@dataclass(slots=True)
class _Desk:
    """What is known while submissions are decided one after the other, and what is to be written of them."""

    keys: dict[tuple[str, str], tuple[str, int, list[str]]]
    """Idempotency keys: fingerprint, when it ends, ids."""
    stored: set[str]
    queued: Counter[str]
    """Queued jobs by tenant, as the table of tallies names them."""
    new: dict[str, Job] = field(default_factory=dict)
    fresh_keys: list[tuple[str, str]] = field(default_factory=list)


def submit_all(db: sqlite3.Connection, rings: set[str], works: Sequence[Submit]) -> list[Submission | Exception]:
    """An answer for each, or QueueFull or IdempotencyMismatch."""
    desk = _read(db, works)
    answers = [_decide(desk, work) for work in works]
    if desk.new:
        _write(db, desk, max(work.now for work in works))
        rings.add(WORK)
    for scope, key in desk.fresh_keys:
        fingerprint, ends, ids = desk.keys[scope, key]
        row = (scope, key, fingerprint, ends, json.dumps(ids))
        db.execute(
            "INSERT OR REPLACE INTO idempotency (scope, key, fingerprint, expires, jobs) VALUES (?,?,?,?,?)", row
        )
    return [answer if isinstance(answer, Exception) else _answer(db, desk, *answer) for answer in answers]


def _read(db: sqlite3.Connection, works: Sequence[Submit]) -> _Desk:
    keys = {}
    for work in works:
        if work.idempotency is not None:
            wanted = (work.idempotency.scope, work.idempotency.key)
            row = db.execute(
                "SELECT fingerprint, expires, jobs FROM idempotency WHERE scope = ? AND key = ?", wanted
            ).fetchone()
            if row is not None:
                keys[wanted] = (row[0], row[1], json.loads(row[2]))
    ids = json.dumps([job.id for work in works for job in work.jobs])
    stored = {row[0] for row in db.execute("SELECT id FROM jobs WHERE id IN (SELECT value FROM json_each(?))", (ids,))}
    whose = json.dumps(["", *{f"t{job.tenant}" for work in works for job in work.jobs}])
    queued = db.execute(
        "SELECT whose, n FROM tallies WHERE state = 'queued' AND whose IN (SELECT value FROM json_each(?))", (whose,)
    )
    return _Desk(keys, stored, Counter(dict(queued.fetchall())))


def _decide(desk: _Desk, work: Submit) -> tuple[list[str], bool] | Exception:
    """The ids that answer a submission and whether they are a replay, or the error; notes what is to be written."""
    wanted = work.idempotency
    if wanted is not None:
        fingerprint, ends, ids = desk.keys.get((wanted.scope, wanted.key), ("", 0, []))
        if ends > work.now:
            return (ids, True) if fingerprint == wanted.fingerprint else IdempotencyMismatch()
    fresh = [job for job in work.jobs if job.id not in desk.stored and job.id not in desk.new]
    more = Counter(f"t{job.tenant}" for job in fresh)
    if any(desk.queued[tenant] + n > work.limits.per_tenant for tenant, n in more.items()):
        return QueueFull("tenant", work.limits.per_tenant)
    if fresh and desk.queued[""] + len(fresh) > work.limits.total:
        return QueueFull("total", work.limits.total)
    desk.queued.update(more)
    desk.queued[""] += len(fresh)
    desk.new.update((job.id, as_stored(job, work.now / MICRO)) for job in fresh)
    ids = [job.id for job in work.jobs]
    if wanted is not None:
        desk.keys[wanted.scope, wanted.key] = (wanted.fingerprint, work.now + micro(wanted.ttl), ids)
        desk.fresh_keys.append((wanted.scope, wanted.key))
    return ids, False


def _write(db: sqlite3.Connection, desk: _Desk, now: int) -> None:
    first = 1 + db.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchone()[0]
    rows, bodies, places = [], [], []
    for seq, job in enumerate(desk.new.values(), first):
        created = micro(job.created)
        due = created if job.not_before is None else max(created, micro(job.not_before))
        not_before, expires = (None if at is None else micro(at) for at in (job.not_before, job.expires_at))
        times = (created, due, not_before, expires)
        rest = (job.max_attempts, micro(job.keep_s), job.batch, job.custom_id, job.callback is not None)
        rows.append((seq, job.id, job.tenant, "queued", job.endpoint, *times, *rest))
        bodies.append((seq, job.request, job.callback))
        places.append((job.tenant, due))
    _insert(db, "jobs", _JOB, rows)
    _insert(db, "bodies", "seq, request, callback", bodies)
    enqueue(db, places, now)


def _insert(db: sqlite3.Connection, table: str, columns: str, rows: Sequence[tuple[object, ...]]) -> None:
    at = 0
    for size in _ROWS_EACH:
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            db.execute(_statement(table, columns, size), values)
            at += size


@lru_cache(maxsize=16)
def _statement(table: str, columns: str, rows: int) -> str:
    row = f"({','.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO {table} ({columns}) VALUES {','.join([row] * rows)}"  # noqa: S608 - names of this file


def _answer(db: sqlite3.Connection, desk: _Desk, ids: list[str], replayed: bool) -> Submission:
    missing = [job_id for job_id in ids if job_id not in desk.new]
    stored = {job.id: job for job in by_ids(db, missing)} if missing else {}
    known = stored | desk.new if missing else desk.new
    return Submission(tuple(known[job_id] for job_id in ids if job_id in known), replayed)
