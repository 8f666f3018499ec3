"""A data directory that a server uses is not restored into, and the other way round."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from stoker.backup.occupancy import InUse, alone, refuse_in_use, serving

HOLD = """
import sqlite3, sys
log = sqlite3.connect(sys.argv[1])
log.execute("PRAGMA journal_mode = WAL")
log.execute("CREATE TABLE IF NOT EXISTS t (a)")
print("open", flush=True)
sys.stdin.read()
"""


def test_servers_share_and_a_restore_is_alone(tmp_path):
    with serving(tmp_path), serving(tmp_path):
        with pytest.raises(InUse, match="stop that first"):
            refuse_in_use(tmp_path)
        with pytest.raises(InUse, match="stop that first"), alone(tmp_path):
            pass
    with alone(tmp_path):
        with pytest.raises(InUse, match="is being restored"), serving(tmp_path):
            pass
        with pytest.raises(InUse), alone(tmp_path):
            pass
    refuse_in_use(tmp_path)


def test_a_look_writes_nothing(tmp_path):
    refuse_in_use(tmp_path / "not" / "there")
    refuse_in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_open_job_log_tells_of_a_server(tmp_path):
    (tmp_path / "jobs").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "jobs" / "jobs.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InUse, match=f"process {process.pid} has its job log open"):
            refuse_in_use(tmp_path)
        process.kill()
    refuse_in_use(tmp_path)


def test_a_job_log_that_was_left_behind_does_no_harm(tmp_path):
    (tmp_path / "jobs").mkdir()
    sqlite3.connect(tmp_path / "jobs" / "jobs.db").close()
    (tmp_path / "jobs" / "jobs.db-shm").write_bytes(bytes(32_768))
    refuse_in_use(tmp_path)
