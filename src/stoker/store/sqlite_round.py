"""Whose turn is it? The round of tenants in SQLite, which `job_log.lua` keeps in Redis: change both together.

A tenant with queued jobs has a place in the round (`turn`), or sleeps until its next job is due (`wake`). What a row
says may be out of date when jobs were cancelled or expired: that is seen to when the tenant's turn comes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

MAX_WOKEN = 256
"""Tenants that one claim wakes."""
_Place = tuple[str, int | None, int | None]  # tenant, turn, wake


def enqueue(db: sqlite3.Connection, places: Iterable[tuple[str, int]], now: int) -> None:
    """Jobs of these tenants, due then, have come into the queue, in this order."""
    due: dict[str, int] = {}
    for tenant, at in places:
        due[tenant] = min(at, due.get(tenant, at))
    found = db.execute(
        "SELECT name, turn, wake FROM tenants WHERE name IN (SELECT value FROM json_each(?))", (json.dumps(list(due)),)
    )
    known = {name: (turn, wake) for name, turn, wake in found}
    rows: list[_Place] = []
    last = last_turn(db)
    for tenant, at in due.items():
        turn, wake = known.get(tenant, (None, None))
        if turn is not None:
            continue
        if at <= now:
            last += 1
            rows.append((tenant, last, None))
        elif wake is None or at < wake:
            rows.append((tenant, None, at))
    _put(db, rows)


def wake(db: sqlite3.Connection, now: int) -> bool:
    """Let tenants into the round whose next job has become due; False when there are more of them."""
    query = "SELECT name FROM tenants WHERE turn IS NULL AND wake <= ? ORDER BY wake, name LIMIT ?"
    names = [row[0] for row in db.execute(query, (now, MAX_WOKEN))]
    last = last_turn(db) if names else 0
    _put(db, [(name, last + place, None) for place, name in enumerate(names, 1)])
    return len(names) < MAX_WOKEN


def next_tenants(db: sqlite3.Connection, most: int) -> list[str]:
    """Whose turn it is, in order."""
    query = "SELECT name FROM tenants WHERE turn IS NOT NULL ORDER BY turn LIMIT ?"
    return [row[0] for row in db.execute(query, (most,))]


def seat(db: sqlite3.Connection, visited: Sequence[str], served: Sequence[str], now: int) -> None:
    """Give tenants their places after their turn: those served to the end of the round, in the order of the last time.

    Those that have nothing due any more leave the round.
    """
    last = last_turn(db)
    order = {tenant: last + place for place, tenant in enumerate(served, 1)}  # the last time counts
    found = db.execute(
        "SELECT t.value, (SELECT min(due) FROM jobs INDEXED BY jobs_of_tenant_due"
        " WHERE tenant = t.value AND state = 'queued') FROM json_each(?) t",
        (json.dumps(list(visited)),),
    )
    rows: list[_Place] = []
    empty: list[str] = []
    for tenant, due in found:
        if due is None:
            empty.append(tenant)
        elif due > now:
            rows.append((tenant, None, due))
        elif tenant in order:
            rows.append((tenant, order[tenant], None))
    _put(db, rows)
    if empty:
        db.execute("DELETE FROM tenants WHERE name IN (SELECT value FROM json_each(?))", (json.dumps(empty),))


def last_turn(db: sqlite3.Connection) -> int:
    """The last place in the round."""
    found = db.execute("SELECT max(turn) FROM tenants WHERE turn IS NOT NULL").fetchone()[0]
    return int(found or 0)


def _put(db: sqlite3.Connection, rows: Sequence[_Place]) -> None:
    if rows:
        db.execute(
            "INSERT OR REPLACE INTO tenants (name, turn, wake) SELECT json_extract(value, '$[0]'),"
            " json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)",
            (json.dumps(rows),),
        )
