"""The backup's own process on a real model and real repositories: what it makes, how it behaves, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.s3_server import S3Server

from stoker.backup.child import LEFT_ALONE
from stoker.backup.looking import looked_at
from stoker.backup.order import COMMAND, Order, Result
from stoker.backup.repository import Repository
from stoker.backup.schedule import Schedule, Times, run_child
from stoker.config import Settings
from stoker.objects.opening import open_objects
from stoker.objects.store import ObjectStore

pytestmark = pytest.mark.model

SECRET = "a passphrase that nobody sees"
AT_ONCE = Times(jitter=0.0)
SLOWLY = 1.0
"""MiB a second: the model takes far longer than any test."""


@pytest.fixture
def settings_for(tmp_path: Path, model_path: Path) -> Callable[..., Settings]:
    """Settings of a server with the real model, and a repository beside it unless told otherwise."""

    def make(**backup: Any) -> Settings:
        place = {"repository": str(tmp_path / "repository"), "schedule": "* * * * *", **backup}
        models = [{"name": "smollm2", "source": str(model_path)}]
        return Settings(data_dir=tmp_path / "data", models=models, backup=place)

    return make


def objects_of(settings: Settings) -> ObjectStore:
    return open_objects(settings.backup.repository or "")


def repository_of(settings: Settings) -> Repository:
    return Repository(objects_of(settings))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, of the tests' own processes too; nothing of a backup may stay there."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


async def started(settings: Settings, scratch: Path) -> asyncio.subprocess.Process:
    """A backup's process that has its order and is at work."""
    child = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(Order(settings).encode(scratch))
    await child.stdin.drain()
    place = Path(settings.backup.repository or "")
    while not any(path.is_file() and path.stat().st_size for path in place.rglob("*")):
        assert child.returncode is None, await child.stderr.read()
        await asyncio.sleep(0.02)
    return child


async def test_a_snapshot_of_the_server_is_made_and_the_next_one_sends_almost_nothing(
    settings_for: Callable[..., Settings], model_path: Path
) -> None:
    settings = settings_for()
    first = await run_child(Order(settings), AT_ONCE)
    second = await run_child(Order(settings), AT_ONCE)
    assert (first.ok, second.ok) == (True, True), (first, second)
    assert first.sent_bytes > model_path.stat().st_size > second.sent_bytes
    assert {snapshot.id for snapshot in repository_of(settings).snapshots()} == {first.snapshot, second.snapshot}
    found = await looked_at(settings.backup.repository or "")
    assert (found.snapshots, found.last_id, found.trouble) == (2, second.snapshot, None)
    assert found.last_size_bytes == second.size_bytes


async def test_into_a_bucket(
    settings_for: Callable[..., Settings], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_for(repository=s3_server.address())
    result = await run_child(Order(settings), AT_ONCE)
    assert result.ok, result
    assert repository_of(settings).snapshot("latest").id == result.snapshot


async def test_the_retention_policy_is_applied_after_it(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(retention={"last": 2})
    results = [await run_child(Order(settings), AT_ONCE) for _ in range(4)]
    assert [(result.ok, result.removed, result.prune_trouble) for result in results] == [
        (True, 0, ""),
        (True, 0, ""),
        (True, 1, ""),
        (True, 1, ""),
    ]
    there = {snapshot.id for snapshot in repository_of(settings).snapshots()}
    assert there == {result.snapshot for result in results[2:]}


async def test_without_a_policy_everything_stays(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for()
    for _ in range(3):
        assert (await run_child(Order(settings), AT_ONCE)).removed == 0
    assert len(repository_of(settings).snapshots()) == 3


async def test_a_prune_that_runs_elsewhere_is_no_trouble(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(retention={"last": 1})
    assert (await run_child(Order(settings), AT_ONCE)).ok
    running = asyncio.create_task(run_child(Order(settings), AT_ONCE))
    with repository_of(settings).lock_for_prune():
        while len(repository_of(settings).snapshots()) < 2:
            await asyncio.sleep(0.05)
    result = await running
    assert (result.ok, result.prune_trouble) == (True, "")


async def test_old_ones_that_cannot_be_removed_do_not_undo_the_new_one(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(retention={"last": 1})
    objects_of(settings).put("snapshots/20200101T000000Z-00000000.json", b"not a manifest")
    result = await run_child(Order(settings), AT_ONCE)
    assert result.ok
    assert "20200101T000000Z-00000000" in result.prune_trouble


async def test_what_the_operator_must_mend_is_said(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    result = await run_child(Order(settings_for(repository=str(tmp_path / "file" / "inside"))), AT_ONCE)
    assert not result.ok
    assert str(tmp_path / "file") in result.reason
    missing = settings_for().model_copy(update={"models": Settings(models=[{"name": "m", "source": "m@1"}]).models})
    result = await run_child(Order(missing), AT_ONCE)
    assert not result.ok
    assert "m@1" in result.reason


async def test_a_passphrase_goes_with_the_order_and_stands_nowhere(
    settings_for: Callable[..., Settings], tmp_path: Path, scratch: Path
) -> None:
    settings = settings_for(key=SECRET, rate_mib=SLOWLY)
    child = await started(settings, scratch)
    try:
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{child.pid}/{name}").read_bytes()
    finally:
        child.kill()
        await child.wait()
    assert (await run_child(Order(settings_for(key=SECRET)), AT_ONCE)).ok
    kinds = {entry.kind for entry in repository_of(settings).snapshot("latest").good().entries}
    assert "secrets" in kinds
    for path in (tmp_path / "repository").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other classes of processes")
async def test_it_leaves_processors_and_memory_to_everything_else(
    settings_for: Callable[..., Settings], scratch: Path
) -> None:
    child = await started(settings_for(rate_mib=SLOWLY), scratch)
    try:
        threads = [int(path.name) for path in Path(f"/proc/{child.pid}/task").iterdir()]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
    finally:
        child.kill()
        await child.wait()


async def test_it_ends_with_the_gateway_and_leaves_nothing(
    settings_for: Callable[..., Settings], scratch: Path
) -> None:
    settings = settings_for(rate_mib=SLOWLY)
    child = await started(settings, scratch)
    for number in (signal.SIGTERM, signal.SIGINT):  # which a whole group of processes gets
        child.send_signal(number)
    await asyncio.sleep(0.2)
    assert child.returncode is None
    assert child.stdin is not None
    child.stdin.close()
    assert await asyncio.wait_for(child.wait(), 10) == LEFT_ALONE
    assert not scratch.exists()
    scratch.mkdir()
    assert repository_of(settings).snapshots() == ()
    assert (await run_child(Order(settings_for()), AT_ONCE)).ok


async def test_a_schedule_that_is_cancelled_takes_its_backup_along(
    settings_for: Callable[..., Settings], scratch: Path
) -> None:
    settings = settings_for(rate_mib=SLOWLY)
    moments = iter([59.0, 59.0, 61.0])
    schedule = Schedule(settings, times=AT_ONCE, clock=lambda: next(moments, 61.0))
    task = asyncio.create_task(schedule.run())
    place = Path(settings.backup.repository or "")
    while not any(path.is_file() and path.stat().st_size for path in place.rglob("*")):
        await asyncio.sleep(0.02)
    assert schedule.running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not schedule.running
    assert not list(scratch.iterdir())
    assert repository_of(settings).snapshots() == ()


async def test_a_schedule_makes_a_snapshot_when_it_is_due(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for()
    moments = iter([59.0, 59.0, 61.0])
    schedule = Schedule(settings, times=AT_ONCE, clock=lambda: next(moments, 61.0))
    task = asyncio.create_task(schedule.run())
    while not schedule.runs["succeeded"]:
        assert not task.done()
        assert schedule.runs["failed"] == 0, schedule.trouble
        await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(repository_of(settings).snapshots()) == 1


async def test_killed_children_leave_a_repository_that_the_next_one_uses(
    settings_for: Callable[..., Settings], scratch: Path
) -> None:
    settings = settings_for(rate_mib=20.0)
    for pause in (0.0, 0.3, 1.0):
        child = await started(settings, scratch)
        await asyncio.sleep(pause)
        child.kill()
        await child.wait()
        assert all(snapshot.manifest is not None for snapshot in repository_of(settings).snapshots())
    assert (await run_child(Order(settings_for()), AT_ONCE)).ok


async def test_a_store_that_never_answers_holds_up_neither_looking_nor_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        program = """
import asyncio
from stoker.backup.looking import looked_at
async def main():
    task = asyncio.create_task(looked_at("s3://bucket/place"))
    await asyncio.sleep(1)
    assert not task.done()
    task.cancel()
asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(process.communicate(), 45)  # the client's own limits are longer
        assert process.returncode == 0, said


def test_a_result_names_no_secret() -> None:
    assert SECRET not in repr(Order(Settings(backup={"key": SECRET})))
    assert SECRET not in repr(Result(ok=False, reason="x"))
