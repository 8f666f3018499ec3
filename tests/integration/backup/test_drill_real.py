"""Recovery drills with the real model: what is good passes, what is not fails at the right step, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.backup_host import BackupHost, flip
from tests.s3_server import S3Server

from stoker.backup.repository import Repository
from stoker.objects.directory import DirectoryObjects

QUICK = {
    "name": "quick",
    "cases": [{"prompt": "What is the capital of Germany?", "expect": {"contains_any": ["Berlin"]}}],
}
PLAN = {"slots": 2, "context": 1024}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def host(tmp_path: Path, repository: Path, model_path: Path) -> BackupHost:
    return host_with({}, tmp_path, str(repository), model_path)


def host_with(
    settings: dict[str, Any], tmp_path: Path, repository: str, model_path: Path, **environment: str
) -> BackupHost:
    """A host whose configuration names a quick evaluation set."""
    the_set = tmp_path / "quick.yaml"
    the_set.write_text(yaml.safe_dump(QUICK))
    model = {"name": "smollm2", "source": str(model_path), "plan": PLAN}
    common = {"models": [model], "rollout": {"evaluation": str(the_set)}}
    return BackupHost(tmp_path / "host", repository, {**common, **settings}, environment)


def last_drill(repository: Path) -> dict[str, Any] | None:
    return Repository(DirectoryObjects(repository)).last_drill()


def programs_of(host: BackupHost) -> list[int]:
    """Processes, but for this one, that were started with a path of the host's."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(host.directory / "tmp").encode() in words:
            found.append(int(entry.name))
    return found


def wait_for(what: Any, within: float = 60.0) -> None:
    limit = time.monotonic() + within
    while not what():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.05)


@pytest.mark.model
def test_a_good_snapshot_passes(host: BackupHost, repository: Path) -> None:
    made = host.answer("create")["id"]
    planned = host.answer("drill", "--dry-run")
    assert planned["snapshot"] == made
    assert last_drill(repository) is None
    told = host.backup("drill")
    assert "drill passed" in told
    record = last_drill(repository)
    assert record is not None
    assert record["ok"] is True
    assert record["snapshot"] == made
    assert record["failed_step"] is None
    assert [step["name"] for step in record["steps"]] == ["find", "restore", "start", "evaluate", "stop"]
    assert record["evaluation"]["set"] == "quick"
    assert record["evaluation"]["passed"] == 1
    assert abs(record["time"] - time.time()) < 600
    assert host.left() == []
    assert programs_of(host) == []


@pytest.mark.model
def test_it_touches_nothing_outside(tmp_path: Path, s3_server: S3Server, model_path: Path) -> None:
    outside = {
        "host": "0.0.0.0",
        "allow_public": True,
        "store": {"redis": "redis://127.0.0.1:9/0"},
        "monitor": {"port": 9},
        "log": {"file": str(tmp_path / "log"), "audit_file": str(tmp_path / "audit")},
        "rate_limits": {"anonymous": {"requests": 1}},
        "tracing": {"endpoint": "http://127.0.0.1:9"},
        "keys": [{"name": "me", "hash": f"sha256:{'0' * 64}"}],
        "backup": {"schedule": "* * * * *"},
    }
    host = host_with(outside, tmp_path, s3_server.address(), model_path, **s3_server.environment)
    host.backup("create")
    result = host.answer("drill", "--set", str(tmp_path / "quick.yaml"))
    assert result["ok"], result
    assert len(host.answer("list")) == 1
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "audit").exists()
    assert host.left() == []


@pytest.mark.model
def test_the_shipped_set_is_asked_where_none_is_named(host: BackupHost, model_path: Path) -> None:
    host.configure({"models": [{"name": "smollm2", "source": str(model_path), "plan": PLAN}]})
    host.backup("create")
    result = host.answer("drill", "--keep")
    assert result["ok"], result
    assert result["evaluation"]["set"] == "smoke"
    (kept,) = host.left()
    assert (kept / "restored" / "stoker.yaml").is_file()
    host.backup("drill", "--set", str(host.directory.parent / "quick.yaml"))
    assert host.left() == [kept], "a later drill leaves alone what was to be kept"


@pytest.mark.model
def test_stored_models_without_a_configuration(host: BackupHost, model_path: Path) -> None:
    host.configure({})
    host.add_model(model_path, "chat", "7")
    host.backup("create")
    result = host.answer("drill", "--set", str(host.directory.parent / "quick.yaml"))
    assert result["ok"], result
    assert result["evaluation"]["model"] == "chat"


def test_a_flipped_byte_in_the_model(host: BackupHost, repository: Path) -> None:
    host.backup("create")
    flip(
        max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size), 5_000_000
    )
    told = host.backup("drill", status=1)
    assert "FAILED at the step restore" in told
    assert "models/blobs" in told
    record = last_drill(repository)
    assert record is not None
    assert record["ok"] is False
    assert record["failed_step"] == "restore"
    assert host.left() == []


@pytest.mark.model
def test_an_evaluation_that_fails(host: BackupHost, repository: Path, tmp_path: Path) -> None:
    host.backup("create")
    hard = tmp_path / "hard.yaml"
    case = {"id": "riddle", "prompt": "What is the capital of Germany?", "expect": {"contains_all": ["Xyzzy"]}}
    hard.write_text(yaml.safe_dump({"cases": [case]}))
    told = host.backup("drill", "--set", str(hard), status=1)
    assert "FAILED at the step evaluate" in told
    assert "pass rate" in told
    assert "riddle" in told
    record = last_drill(repository)
    assert record is not None
    assert record["failed_step"] == "evaluate"
    assert record["evaluation"]["results"][0]["id"] == "riddle"
    assert host.left() == []
    assert programs_of(host) == []


def test_a_host_that_is_too_small(host: BackupHost, model_path: Path) -> None:
    small = {"name": "smollm2", "source": str(model_path), "plan": {"memory_mib": 70}}
    host.configure({"models": [small]})
    host.backup("create")
    told = host.backup("drill", status=1)
    assert "FAILED at the step start" in told
    for word in ("MiB", "needed", "granted"):
        assert word in told
    assert host.left() == []


def test_there_is_no_snapshot(host: BackupHost, repository: Path) -> None:
    told = host.backup("drill", status=1)
    assert "FAILED at the step find" in told
    record = last_drill(repository)
    assert record is not None
    assert record["failed_step"] == "find"


def test_the_passphrase_must_open_the_secrets(host: BackupHost, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("correct horse battery")
    host.backup("create", "--key-file", str(key))
    key.write_text("another passphrase")
    told = host.backup("drill", "--key-file", str(key), status=1)
    assert "FAILED at the step restore" in told
    assert "key" in told


def test_mistakes_are_no_drills(host: BackupHost, repository: Path, tmp_path: Path) -> None:
    host.backup("create")
    assert "there is" in host.backup("drill", "--snapshot", "2001", status=1)
    assert "smollm2" in host.backup("drill", "--model", "other", status=2)
    assert "cannot be read" in host.backup("drill", "--set", str(tmp_path / "none.yaml"), status=2)
    host.backup("drill", "--work-dir", str(tmp_path / "none"), status=2)
    assert last_drill(repository) is None
    assert host.left() == []


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_half_way(number: signal.Signals, host: BackupHost, repository: Path) -> None:
    host.backup("create")
    running = subprocess.Popen(
        [sys.executable, "-m", "stoker", "backup", "drill"],
        cwd=host.directory,
        env=host.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: programs_of(host) or running.poll() is not None)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "Traceback" not in said
    wait_for(lambda: not programs_of(host))
    assert last_drill(repository) is None
    if number == signal.SIGKILL:
        assert host.left() != []
        host.backup("drill")
    assert host.left() == []


def test_the_record_is_json(host: BackupHost, repository: Path) -> None:
    host.backup("drill", status=1)
    (record,) = [path for path in (repository / "drills").iterdir() if path.name != "last.json"]
    assert json.loads(record.read_bytes())["host"] == os.uname().nodename
