"""Who uses a data directory: servers hold it together, a restore has it alone.

The lock is `flock` on a file in it, which a dying process lets go. A server that does not take it is known by the job
log that it has open.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stoker.errors import OperatorError
from stoker.models.partial import cannot_write

FILE_NAME: Final = ".in-use"
JOB_LOG_SHARED: Final = "jobs/jobs.db-shm"
_OPEN_MARK: Final = 128
"""SQLite locks this byte of the file for as long as a database in WAL mode is open (its `DMS` lock)."""
_FLOCK: Final = struct.Struct("hhqqi4x")


class InUse(OperatorError):
    """A server runs on the data directory, or a restore writes it."""

    code = "data_dir_in_use"


@contextmanager
def serving(data_dir: Path) -> Iterator[None]:
    """Hold a data directory as a server does, beside other servers; InUse while it is being restored."""
    with _held(data_dir, fcntl.LOCK_SH, "is being restored; wait until `stoker backup restore` has ended"):
        yield


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Hold a data directory that nobody else uses; InUse when somebody does."""
    refuse_in_use(data_dir)
    with _held(data_dir, fcntl.LOCK_EX, "a server or another restore uses it; stop that first"):
        yield


def refuse_in_use(data_dir: Path) -> None:
    """Raise InUse when somebody uses a data directory now. Writes nothing."""
    process = _owner_of_job_log(data_dir / JOB_LOG_SHARED)
    if process is not None:
        raise InUse(f"{data_dir}: process {process} has its job log open; stop that server first")
    try:
        descriptor = os.open(data_dir / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"{data_dir}: a server or another restore uses it; stop that first") from None
    finally:
        os.close(descriptor)


@contextmanager
def _held(data_dir: Path, how: int, taken: str) -> Iterator[None]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise cannot_write(data_dir, error) from None
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{data_dir}: {taken}") from None
        yield
    finally:
        os.close(descriptor)


def _owner_of_job_log(shared: Path) -> int | None:
    """A process that has the job log open, or None. This one does not count."""
    if sys.platform != "linux":
        return None  # the structure that is asked is another one elsewhere
    try:
        descriptor = os.open(shared, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _OPEN_MARK, 1, 0)
        kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return process if kind != fcntl.F_UNLCK else None
