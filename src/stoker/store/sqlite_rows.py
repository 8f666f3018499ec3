"""Reads the job log's SQLite tables: rows as jobs, lists, counts. Functions of a connection; they write nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any

from stoker.store.jobs import POSITIONS, STATES, Job, Page, State, encode_cursor
from stoker.store.protocols import MICRO

_COLUMNS = (
    "j.id, j.tenant, j.endpoint, j.max_attempts, j.not_before, j.expires, j.keep, j.batch, j.custom_id, j.state,"
    " j.created, j.attempts, j.started, j.finished, j.cancelling, j.progress, j.worker"
)
_SUMMARY = f"SELECT {_COLUMNS}, x'', NULL, NULL, NULL, NULL FROM jobs j"  # noqa: S608 - constants of this file
_WHOLE = (
    f"SELECT {_COLUMNS}, b.request, b.callback, o.result, o.error, o.deliveries FROM jobs j"  # noqa: S608 - constants of this file
    " LEFT JOIN bodies b ON b.seq = j.seq LEFT JOIN outcomes o ON o.seq = j.seq"
)
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list is asked for; `after` is the id that the page before ended with."""

    tenant: str | None
    states: Sequence[State]
    batch: str | None
    after: str | None
    limit: int
    oldest_first: bool
    bodies: bool


def micro(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * MICRO)


def to_job(row: Row) -> Job:
    """A job from a row of the columns above."""
    return Job(
        id=row[0],
        tenant=row[1],
        endpoint=row[2],
        max_attempts=row[3],
        not_before=_seconds(row[4]),
        expires_at=_seconds(row[5]),
        keep_s=row[6] / MICRO,
        batch=row[7],
        custom_id=row[8],
        state=row[9],
        created=row[10] / MICRO,
        attempts=row[11],
        started=_seconds(row[12]),
        finished=_seconds(row[13]),
        cancelling=bool(row[14]),
        progress=row[15],
        worker=row[16],
        request=row[17],
        callback=row[18],
        result=row[19],
        error=row[20],
        deliveries=row[21],
    )


def get(db: sqlite3.Connection, job_id: str) -> Job | None:
    """The whole job, or None."""
    row = db.execute(f"{_WHOLE} WHERE j.id = ?", (job_id,)).fetchone()
    return None if row is None else to_job(row)


def state(db: sqlite3.Connection, job_id: str) -> State | None:
    """The state of a job, None when there is no such."""
    row = db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else row[0]


def by_ids(db: sqlite3.Connection, ids: Sequence[str]) -> list[Job]:
    """Those whole jobs that there are, in the order of the ids."""
    return _each(db, "id", ids)


def by_seqs(db: sqlite3.Connection, seqs: Sequence[int]) -> list[Job]:
    """Whole jobs in the order of their row numbers."""
    return _each(db, "seq", seqs)


def page(db: sqlite3.Connection, listing: Listing) -> Page:
    """One page: every state has its own order in an index, and these are merged."""
    conditions, values = ["j.state = ?"], []
    if listing.batch is not None:
        conditions.append("j.batch = ?")
        values.append(listing.batch)
    if listing.tenant is not None:
        conditions.append("j.tenant = ?")
        values.append(listing.tenant)
    if listing.after is not None:
        conditions.append("j.id > ?" if listing.oldest_first else "j.id < ?")
        values.append(listing.after)
    order = "ASC" if listing.oldest_first else "DESC"
    index = _index(listing)
    tables = (_WHOLE if listing.bodies else _SUMMARY).replace("jobs j", f"jobs j INDEXED BY {index}")
    query = f"{tables} WHERE {' AND '.join(conditions)} ORDER BY j.id {order} LIMIT ?"
    cursors = [db.execute(query, (state, *values, listing.limit + 1)) for state in dict.fromkeys(listing.states)]
    rows = merge(*cursors, key=lambda row: str(row[0]), reverse=not listing.oldest_first)
    jobs = [to_job(row) for row in islice(rows, listing.limit + 1)]
    more = len(jobs) > listing.limit
    return Page(tuple(jobs[: listing.limit]), encode_cursor(jobs[listing.limit - 1].id) if more else None)


def counts(db: sqlite3.Connection, whose: str) -> dict[State, int]:
    """Jobs by state: of all (`""`), of a tenant (`"t" + name`) or of a batch (`"b" + name`)."""
    found = dict(db.execute("SELECT state, n FROM tallies WHERE whose = ?", (whose,)))
    return {state: found.get(state, 0) for state in STATES}


def position(db: sqlite3.Connection, job_id: str) -> int | None:
    """How many queued jobs are due before this one; None beyond `POSITIONS`, or when it is not queued."""
    row = db.execute("SELECT due FROM jobs WHERE id = ? AND state = 'queued'", (job_id,)).fetchone()
    if row is None:
        return None
    before = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_due"
        " WHERE state = 'queued' AND (due, id) < (?, ?) LIMIT ?)",
        (row[0], job_id, POSITIONS + 1),
    ).fetchone()[0]
    return before if before <= POSITIONS else None


def first_due(db: sqlite3.Connection) -> int | None:
    """When the first queued job is, or was, due."""
    query = "SELECT min(due) FROM jobs INDEXED BY jobs_due WHERE state = 'queued'"
    found: int | None = db.execute(query).fetchone()[0]
    return found


def next_work(db: sqlite3.Connection) -> int | None:
    """When a claim may next find something: a job that is due, or one whose lease has ended."""
    lease = db.execute("SELECT min(lease) FROM jobs INDEXED BY jobs_leased WHERE state = 'running'").fetchone()[0]
    return min((at for at in (first_due(db), lease) if at is not None), default=None)


def next_callback(db: sqlite3.Connection) -> int | None:
    """When the next callback is due."""
    found: int | None = db.execute("SELECT min(callback_at) FROM jobs WHERE callback_at IS NOT NULL").fetchone()[0]
    return found


def _each(db: sqlite3.Connection, column: str, values: Sequence[str | int]) -> list[Job]:
    tables = _WHOLE.replace("FROM jobs j", "FROM json_each(?) t CROSS JOIN jobs j")  # one look into an index for each
    rows = db.execute(f"{tables} WHERE j.{column} = t.value ORDER BY t.key", (json.dumps(list(values)),))
    return [to_job(row) for row in rows]


def _index(listing: Listing) -> str:
    if listing.batch is not None:
        return "jobs_by_batch"
    return "jobs_by_state" if listing.tenant is None else "jobs_by_tenant"


def _seconds(instant: int | None) -> float | None:
    return None if instant is None else instant / MICRO
