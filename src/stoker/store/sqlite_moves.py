"""How a job goes from state to state in SQLite. `job_log.lua` and its neighbours do the same in Redis.

Functions of a connection within a transaction; times are whole microseconds. Each adds to `rings` what there is news
of. Indexes are named where SQLite, which knows no figures of the tables, would choose one that is long.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stoker.store.bells import CALLBACKS, WORK
from stoker.store.jobs import WORKER_LOST, Beat, Collected, EndState, Held, Job, Retried, State
from stoker.store.sqlite_round import enqueue
from stoker.store.sqlite_rows import by_seqs

MAX_SWEPT: Final = 256
"""Jobs of each kind that one sweep sees to."""
MAX_REMOVED: Final = 200
_VACUUM_OVER_PAGES = 4_096  # free pages that are kept for the next jobs
_VACUUM_PAGES = 1_024  # given back to the disk at once
_END = (
    "UPDATE jobs SET state = ?, finished = ?, remove_at = ? + keep, callback_at = iif(has_callback, ?, NULL),"
    " token = NULL, lease = NULL, cancelling = 0"
    " WHERE seq IN (SELECT value FROM json_each(?)) RETURNING id, has_callback"
)
_QUEUE = (
    "UPDATE jobs SET state = 'queued', due = max(due, ?), token = NULL, lease = NULL"
    " WHERE seq IN (SELECT value FROM json_each(?))"
)
_NOTE_ERROR = "INSERT INTO outcomes (seq, error) VALUES (?, ?) ON CONFLICT DO UPDATE SET error = excluded.error"
_NOTE_DELIVERIES = (
    "INSERT INTO outcomes (seq, deliveries) VALUES (?, ?) ON CONFLICT DO UPDATE SET deliveries = excluded.deliveries"
)
_DELETE = (
    "DELETE FROM bodies WHERE seq IN (SELECT value FROM json_each(?))",
    "DELETE FROM outcomes WHERE seq IN (SELECT value FROM json_each(?))",
    "DELETE FROM jobs WHERE seq IN (SELECT value FROM json_each(?))",
)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep saw to; `more` when it stopped at its bound."""

    expired: int
    taken_back: int
    more: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a running job, as its worker tells it; `now` in microseconds."""

    id: str
    token: str
    state: EndState
    result: bytes | None
    error: bytes | None
    now: int


def sweep(db: sqlite3.Connection, rings: set[str], now: int) -> Swept:
    """Take jobs from workers whose lease has ended, and expire queued ones whose time is over."""
    lost = db.execute(
        "SELECT seq, tenant, due, cancelling, attempts >= max_attempts FROM jobs INDEXED BY jobs_leased"
        " WHERE state = 'running' AND lease <= ? ORDER BY lease, id LIMIT ?",
        (now, MAX_SWEPT),
    ).fetchall()
    cancelled = [row[0] for row in lost if row[3]]
    failed = [row[0] for row in lost if row[4] and not row[3]]
    again = [row for row in lost if not row[3] and not row[4]]
    _end(db, rings, "cancelled", cancelled, now)
    _end(db, rings, "failed", failed, now)
    for seq in failed:
        db.execute(_NOTE_ERROR, (seq, WORKER_LOST))
    _queue(db, rings, again, 0, now)
    overdue = db.execute(
        "SELECT seq FROM jobs INDEXED BY jobs_expiring"
        " WHERE state = 'queued' AND expires IS NOT NULL AND expires <= ? ORDER BY expires, id LIMIT ?",
        (now, MAX_SWEPT),
    )
    expired = [row[0] for row in overdue]
    _end(db, rings, "expired", expired, now)
    return Swept(len(expired), len(lost), MAX_SWEPT in {len(lost), len(expired)})


def heartbeat(db: sqlite3.Connection, beats: Sequence[Beat], lease: int) -> list[Held]:
    """Renew leases until `lease`, and learn for each whether to go on."""
    answers: list[Held] = []
    for beat in beats:
        row = db.execute(
            "UPDATE jobs SET lease = ?, progress = coalesce(?, progress) WHERE id = ? AND token = ?"
            " AND state = 'running' RETURNING cancelling",
            (lease, beat.progress, beat.id, beat.token),
        ).fetchone()
        answers.append("lost" if row is None else "cancelled" if row[0] else "held")
    return answers


def finish(db: sqlite3.Connection, rings: set[str], ending: Ending) -> bool:
    """Record the end of a running job; False when its token holds no more."""
    row = _held(db, (ending.id, ending.token))
    if row is None:
        return False
    _end(db, rings, ending.state, [row[0]], ending.now)
    outcome = (row[0], ending.result, ending.error)
    db.execute("INSERT OR REPLACE INTO outcomes (seq, result, error) VALUES (?, ?, ?)", outcome)
    return True


def retry(
    db: sqlite3.Connection, rings: set[str], claim: tuple[str, str], error: bytes, *, not_before: int, now: int
) -> Retried:
    """Queue a job whose attempt failed again, or end it."""
    row = _held(db, claim)
    if row is None:
        return "lost"
    seq, _, _, cancelling, used_up = row
    db.execute(_NOTE_ERROR, (seq, error))
    if cancelling or used_up:
        state: Literal["failed", "cancelled"] = "cancelled" if cancelling else "failed"
        _end(db, rings, state, [seq], now)
        return state
    _queue(db, rings, [row], not_before, now)
    rings.add(claim[0])
    return "queued"


def release(db: sqlite3.Connection, rings: set[str], claim: tuple[str, str], now: int) -> bool:
    """Give a job back as if it had not been claimed."""
    row = _held(db, claim)
    if row is None:
        return False
    seq, _, _, cancelling, _ = row
    db.execute("UPDATE jobs SET attempts = attempts - 1, started = NULL, progress = NULL WHERE seq = ?", (seq,))
    if cancelling:
        _end(db, rings, "cancelled", [seq], now)
    else:
        _queue(db, rings, [row], 0, now)
        rings.add(claim[0])
    return True


def cancel(db: sqlite3.Connection, rings: set[str], job_id: str, now: int) -> State | None:
    """Cancel a queued job, ask a running one to end; the state after that."""
    row = db.execute("SELECT seq, state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        return None
    seq, state = row
    if state == "queued":
        _end(db, rings, "cancelled", [seq], now)
        return "cancelled"
    if state == "running":
        db.execute("UPDATE jobs SET cancelling = 1 WHERE seq = ?", (seq,))
        rings.add(job_id)
    found: State = state
    return found


def due_callbacks(db: sqlite3.Connection, until: int, most: int, now: int) -> list[Job]:
    """Ended jobs whose callback is due, which is then hidden until `until`."""
    query = "SELECT seq FROM jobs WHERE callback_at <= ? ORDER BY callback_at, id LIMIT ?"
    seqs = [row[0] for row in db.execute(query, (now, most))]
    if seqs:
        hide = "UPDATE jobs SET callback_at = ? WHERE seq IN (SELECT value FROM json_each(?))"
        db.execute(hide, (until, json.dumps(seqs)))
    return by_seqs(db, seqs) if seqs else []


def settle_callback(
    db: sqlite3.Connection, rings: set[str], job_id: str, deliveries: bytes, again_at: int | None
) -> None:
    """Note what became of a delivery, and when to try again."""
    row = db.execute(
        "UPDATE jobs SET callback_at = ? WHERE id = ? AND finished IS NOT NULL RETURNING seq", (again_at, job_id)
    ).fetchone()
    if row is not None:
        db.execute(_NOTE_DELIVERIES, (row[0], deliveries))
        if again_at is not None:
            rings.add(CALLBACKS)


def collect(db: sqlite3.Connection, rings: set[str], now: int) -> Collected:
    """Remove what is past its time, a bounded number, and see to lost and overdue jobs."""
    swept = sweep(db, rings, now)
    over = "SELECT seq FROM jobs WHERE remove_at <= ? ORDER BY remove_at LIMIT ?"
    seqs = [row[0] for row in db.execute(over, (now, MAX_REMOVED))]
    for statement in _DELETE if seqs else ():
        db.execute(statement, (json.dumps(seqs),))
    keys = db.execute(
        "DELETE FROM idempotency WHERE (scope, key) IN"
        " (SELECT scope, key FROM idempotency WHERE expires <= ? ORDER BY expires LIMIT ?)",
        (now, MAX_SWEPT),
    ).rowcount
    return Collected(
        len(seqs), swept.expired, swept.taken_back, swept.more or len(seqs) == MAX_REMOVED or keys == MAX_SWEPT
    )


def vacuum(db: sqlite3.Connection) -> None:
    """Give some of the file's free space back to the disk, when there is much."""
    if db.execute("PRAGMA freelist_count").fetchone()[0] > _VACUUM_OVER_PAGES:
        db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()


_Row = tuple[int, str, int, bool, bool]  # row number, tenant, due, to be cancelled?, attempts used up?


def _held(db: sqlite3.Connection, claim: tuple[str, str]) -> _Row | None:
    """The running job that a claim (id, token) holds; None for a stale one."""
    found: _Row | None = db.execute(
        "SELECT seq, tenant, due, cancelling, attempts >= max_attempts FROM jobs"
        " WHERE id = ? AND token = ? AND state = 'running'",
        claim,
    ).fetchone()
    return found


def _end(db: sqlite3.Connection, rings: set[str], state: State, seqs: Sequence[int], now: int) -> None:
    if seqs:
        ended = db.execute(_END, (state, now, now, now, json.dumps(seqs))).fetchall()
        rings.update(job_id for job_id, _ in ended)
        if any(has_callback for _, has_callback in ended):
            rings.add(CALLBACKS)


def _queue(db: sqlite3.Connection, rings: set[str], rows: Sequence[_Row], not_before: int, now: int) -> None:
    if rows:
        db.execute(_QUEUE, (not_before, json.dumps([row[0] for row in rows])))
        enqueue(db, [(row[1], max(row[2], not_before)) for row in rows], now)
        rings.add(WORK)
