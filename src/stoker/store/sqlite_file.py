"""One SQLite file: how it is made, opened and brought to the schema of today, and what its errors mean to people."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from stoker.store.protocols import StoreError

APPLICATION_ID: Final = 0x53746F6B
"""Tells the file from another program's; `Stok`."""
MIGRATIONS: Final = ("sqlite_schema.sql",)
"""Each brings a file from the version of its place to the next one. The version is SQLite's `user_version`."""
OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING
_WRITER_CACHE_KIB: Final = 16_384
_READER_CACHE_KIB: Final = 4_096
_CHECKPOINT_PAGES: Final = 2_000
_WAL_OCTETS: Final = 64 << 20  # what is left of the log after a burst
_PRIMARY: Final = 0xFF  # the extended codes have the primary one in their low byte

_REASONS: Final = {
    sqlite3.SQLITE_BUSY: ("locked", "another program holds its lock; end that, or give each server its own data_dir"),
    sqlite3.SQLITE_FULL: ("full", "the disk is full; free some space on it"),
    sqlite3.SQLITE_READONLY: ("denied", "it may not be written; make it and its directory this user's"),
    sqlite3.SQLITE_CANTOPEN: ("denied", "it cannot be opened; its directory must exist and be this user's"),
    sqlite3.SQLITE_PERM: ("denied", "it may not be opened; make it and its directory this user's"),
    sqlite3.SQLITE_CORRUPT: ("corrupt", "it is damaged; stop the server and restore a backup, or move the file away"),
    sqlite3.SQLITE_NOTADB: ("corrupt", "it is no SQLite database; restore a backup, or move the file away"),
    sqlite3.SQLITE_IOERR: ("io", "the disk failed to read or write; see the kernel's log"),
}
"""By SQLite's primary code: the word for metrics, and what to tell people. All work on the file fails alike."""


class SqliteFile:
    """A database file that only its owner may read. Everything here blocks: call it outside the event loop.

    Args:
        path: the file; it and its directory are made when they are missing.
        busy_s: seconds to wait for another process's lock.
    """

    def __init__(self, path: Path, busy_s: float) -> None:
        self.path = path
        self._busy_s = busy_s

    def writer(self) -> sqlite3.Connection:
        """A connection that writes durably: what is committed has reached the disk. Raises StoreError."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            needed = ".".join(map(str, OLDEST_SQLITE))
            raise StoreError(
                "version", f"SQLite {sqlite3.sqlite_version} is too old for the job log; it needs {needed}"
            )
        try:
            self._make()
            db = self._connect(_WRITER_CACHE_KIB)
        except (OSError, sqlite3.Error) as error:
            raise self.error("open", error) from error
        try:
            self._prepare(db)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                raise self.error("open", error) from error
            raise
        return db

    def reader(self) -> sqlite3.Connection:
        """A connection that only reads; raises sqlite3.Error."""
        db = self._connect(_READER_CACHE_KIB)
        db.execute("PRAGMA query_only = ON")
        return db

    def error(self, operation: str, error: Exception) -> StoreError:
        """What went wrong, where, and what to do about it."""
        code = getattr(error, "sqlite_errorcode", None)
        reason, remedy = _REASONS.get((code or 0) & _PRIMARY, ("response", "see what SQLite says"))
        if isinstance(error, PermissionError):
            reason, remedy = _REASONS[sqlite3.SQLITE_PERM]
        return StoreError(reason, f"the job log in {self.path} failed to {operation}: {remedy} ({error})")

    def _make(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its other files the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _connect(self, cache_kib: int) -> sqlite3.Connection:
        # Made in one thread and closed in another, never used by two at once.
        db = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            db.execute(f"PRAGMA cache_size = -{cache_kib}")
            db.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; later it says nothing
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                "denied", f"the job log in {self.path} cannot use SQLite's WAL there; put data_dir on a local disk"
            )
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_OCTETS}")
        db.execute("BEGIN IMMEDIATE")
        self._migrate(db)
        db.execute("COMMIT")

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        theirs = int(db.execute("PRAGMA application_id").fetchone()[0])
        empty = not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if theirs != APPLICATION_ID and not (empty and version == 0):
            raise StoreError("corrupt", f"{self.path} is another program's database; move it away")
        if version > len(MIGRATIONS):
            raise StoreError(
                "version",
                f"the job log in {self.path} has version {version}, written by a newer Stoker; this one knows"
                f" {len(MIGRATIONS)}: start the newer one, or restore a backup of before",
            )
        for name in MIGRATIONS[version:]:
            for statement in _statements(Path(__file__).with_name(name).read_text(encoding="utf-8")):
                db.execute(statement)
        if version < len(MIGRATIONS):
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def is_environment(error: Exception) -> bool:
    """Whether not the statement is to blame but the file, its disk or its lock, so that every other one fails too."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY in _REASONS


def is_passing(error: Exception) -> bool:
    """Whether the connection is as good as before: the disk was full, or another held the lock."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL}


def _statements(script: str) -> list[str]:
    """A script's statements, one by one, so that all of them run in one transaction."""
    statements, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return statements
