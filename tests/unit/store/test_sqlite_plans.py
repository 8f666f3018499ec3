"""Every statement of the job log finds its rows by an index that leads straight to them: no table is walked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stoker.store import sqlite_moves, sqlite_rows
from stoker.store.jobs import STATES, Beat, Idempotency, NewJob, QueueLimits, Submission
from stoker.store.sqlite_claim import Claim, claim
from stoker.store.sqlite_file import SqliteFile
from stoker.store.sqlite_moves import Ending
from stoker.store.sqlite_rows import Listing
from stoker.store.sqlite_submit import Submit, submit_all

LIMITS = QueueLimits(1000, 1000)
TOO_LONG = (
    "jobs USING INDEX jobs_by_state (state=?)",  # all jobs of a state
    "jobs USING INDEX jobs_by_tenant (tenant=? AND state=?)",
    "jobs USING INDEX jobs_by_tenant (tenant=?)",
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(SqliteFile(tmp_path / "jobs.db", 5).writer()) as opened:
        yield opened


def use_everything(db: sqlite3.Connection) -> None:
    rings: set[str] = set()
    jobs = [
        NewJob(f"{n}", f"t{n % 3}", "/", b"", expires_at=5 if n == 8 else None, batch="b", callback=b"c")
        for n in range(9)
    ]
    key = Idempotency("s", "k", "f", 1)
    for _ in range(2):
        (answer,) = submit_all(db, rings, [Submit(jobs, LIMITS, key, 1)])
        assert isinstance(answer, Submission)
    claimed, _ = claim(db, rings, Claim("w", "t", 6, 100, 10_000_000))
    assert len(claimed) == 6
    sqlite_moves.heartbeat(db, [Beat(claimed[0].id, "t")], 200)
    ending = Ending(claimed[0].id, "t", "succeeded", b"", None, 3)
    assert sqlite_moves.finish(db, rings, ending)
    assert sqlite_moves.retry(db, rings, (claimed[1].id, "t"), b"e", not_before=50_000_000, now=4) == "queued"
    assert sqlite_moves.release(db, rings, (claimed[2].id, "t"), 5)
    sqlite_moves.cancel(db, rings, claimed[3].id, 5)
    sqlite_moves.cancel(db, rings, claimed[2].id, 5)
    assert sqlite_moves.due_callbacks(db, 10, 5, 6)
    sqlite_moves.settle_callback(db, rings, claimed[0].id, b"d", None)
    claim(db, rings, Claim("w", "u", 2, 100, 60_000_000))
    assert sqlite_moves.collect(db, rings, 1 << 55).removed
    for tenant in (None, "t1"):
        for batch in (None, "b"):
            for after in (None, "5"):
                sqlite_rows.page(db, Listing(tenant, STATES, batch, after, 10, oldest_first=False, bodies=True))
    for look in (sqlite_rows.first_due, sqlite_rows.next_work, sqlite_rows.next_callback):
        look(db)
    for ask in (sqlite_rows.get, sqlite_rows.state, sqlite_rows.position, sqlite_rows.counts):
        ask(db, claimed[4].id)


def test_no_statement_walks_through_a_table(db: sqlite3.Connection) -> None:
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    use_everything(db)
    db.set_trace_callback(None)
    asked = {text for text in statements if not text.startswith("--")}
    assert len(asked) > 30
    walks = []
    for text in asked:
        for *_, step in db.execute(f"EXPLAIN QUERY PLAN {text}"):
            table = step.removeprefix("SCAN ").split()[0]
            walked = step.startswith("SCAN") and table in {"jobs", "j", "q", "bodies", "outcomes", "tenants", "tallies"}
            if walked or step.endswith(TOO_LONG):
                walks.append((step, text))
    assert walks == []
