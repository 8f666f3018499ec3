"""Makes one snapshot in a process of its own, at the lowest priority, and applies the retention policy.

It runs as `python -m stoker.backup.child`. The first line of its standard input is its order: settings with their
secrets, which so are in no argument and in no environment. When that input ends, however the gateway did, this process
ends too; what it was sending stays invisible. Its last line on standard output is the result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Final

from stoker.backup.create import Options, create
from stoker.backup.order import Order, Result
from stoker.backup.prune import prune
from stoker.backup.repository import PruneRunning, Repository
from stoker.config import Settings
from stoker.errors import StokerError
from stoker.models.partial import Quiet
from stoker.objects.opening import open_objects

LEFT_ALONE: Final = 3
"""Exit status when the gateway is gone."""
OOM_SCORE: Final = "1000"
"""The kernel's first choice when memory runs out: a backup is made again, an engine holds requests."""
READ_BYTES: Final = 1 << 16


def perform(order: Order) -> Result:
    """Make the snapshot, then apply the retention policy, if there is one. Never raises for what the operator mends."""
    backup = order.settings.backup
    try:
        repository = Repository(open_objects(backup.repository or ""))
        options = Options(
            jobs=backup.jobs,
            key=backup.key.get_secret_value() if backup.key is not None else None,
            rate_mib=backup.rate_mib,
            config_file=order.config_file,
        )
        made = create(order.settings, repository, options, Quiet())
    except StokerError as error:
        return Result(ok=False, reason=error.message)
    manifest = made.manifest
    removed, freed, trouble = _prune(repository, order.settings)
    return Result(
        ok=True,
        snapshot=manifest.id,
        size_bytes=manifest.size,
        sent_bytes=manifest.sent_bytes,
        seconds=manifest.seconds,
        removed=removed,
        freed_bytes=freed,
        prune_trouble=trouble,
    )


def _prune(repository: Repository, settings: Settings) -> tuple[int, int, str]:
    """Snapshots that were removed, bytes that were freed, and what went wrong: the snapshot was made all the same."""
    policy = settings.backup.retention
    if not policy.model_dump(exclude_defaults=True):
        return 0, 0, ""
    try:
        done = prune(repository, policy, grace_s=settings.backup.grace, progress=Quiet(), now=time.time())
    except PruneRunning:
        return 0, 0, ""  # another replica does it
    except StokerError as error:
        return 0, 0, error.message
    return len(done.removed), done.freed, "; ".join([*done.plan.troubles, *done.held.values()][:4])


def step_back() -> None:
    """Leave processors, disks and memory to everything else. What the system does not let happen is left out."""
    with contextlib.suppress(OSError, AttributeError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    try:
        # Linux gives a process of this class the disk last, too: ioprio_set(2).
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):
        with contextlib.suppress(OSError):
            os.nice(19)


def read_line() -> bytes:
    """The first line of standard input; EOFError when it ends before."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, READ_BYTES)
        if not data:
            raise EOFError
        line += data
    return line


def _end_with_the_gateway(scratch: Path) -> None:
    """Wait for standard input to end, then end at once and leave nothing behind."""
    while os.read(0, READ_BYTES):
        pass
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(LEFT_ALONE)


def main() -> int:
    """Do what standard input orders."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a stop is the gateway's business: it closes our input
    step_back()
    try:
        order, scratch = Order.decode(read_line())
    except EOFError:
        return LEFT_ALONE
    tempfile.tempdir = str(scratch)
    threading.Thread(target=_end_with_the_gateway, args=(scratch,), daemon=True).start()
    try:
        result = perform(order)
    except Exception as error:  # noqa: BLE001 - the gateway is told, whatever it is
        traceback.print_exc()
        result = Result(ok=False, reason=f"an unexpected error: {type(error).__name__}: {error}")
    sys.stdout.buffer.write(result.encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
