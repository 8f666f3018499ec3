"""One engine and its owner, with a real child: what is left of a child when its life ends, and where its socket is.

On uvloop, as in the product: asyncio's own `Process.wait` does not return while somebody holds the child's pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import uvloop
from tests.running import FAKE_ENGINE

from stoker.config import RestartConfig
from stoker.engine.process import SOCKET_NAME_BYTES, EngineProcess, EngineState, Launch, socket_name


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.asynccontextmanager
async def supervised(directory: Path, wrapper: str, name: str = "m/0") -> AsyncGenerator[EngineProcess]:
    """A ready engine whose program is started by a shell script; `wrapper` has `{engine}` in it."""

    def command(socket: Path) -> list[str]:
        engine = shlex.join([sys.executable, str(FAKE_ENGINE), "--socket", str(socket), "--control", "control.json"])
        return ["sh", "-c", f"cd {shlex.quote(str(directory))}; " + wrapper.replace("{engine}", engine)]

    launch = Launch(command, load_timeout=20, stall_timeout=20, restart=RestartConfig(backoff=0.01, give_up_after=50))
    engine = EngineProcess(name, launch, directory, on_change=lambda: None)
    owner = asyncio.create_task(engine.run())
    try:
        await eventually(lambda: engine.state is EngineState.READY)
        yield engine
    finally:
        engine.stop()
        async with asyncio.timeout(10):
            await owner


async def test_a_killed_wrapper_takes_its_children_along(tmp_path: Path) -> None:
    async with supervised(tmp_path, "{engine}; true") as engine:
        wrapper = engine.pid
        assert wrapper
        (program,) = children_of(wrapper)
        os.kill(wrapper, signal.SIGKILL)
        await eventually(lambda: not alive(program))
        await eventually(lambda: engine.state is EngineState.READY and engine.pid != wrapper)


async def test_a_child_that_left_the_group_cannot_hold_its_owner_up(tmp_path: Path) -> None:
    async with supervised(tmp_path, "setsid sleep 60 & echo $! > stray; exec {engine}") as engine:
        stray = int((tmp_path / "stray").read_text())
        first = engine.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: engine.state is EngineState.READY and engine.pid != first)
        os.kill(stray, signal.SIGKILL)
        os.kill(int((tmp_path / "stray").read_text()), signal.SIGKILL)


async def test_a_stopped_child_is_ended_all_the_same(tmp_path: Path) -> None:
    async with supervised(tmp_path, "exec {engine}") as engine:
        pid = engine.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)
    assert not list(tmp_path.glob("*.sock"))


@pytest.mark.parametrize("name", ["m/0", "n" * 128 + "/63", "ü" * 100])
async def test_the_name_of_a_model_is_never_too_long_for_its_socket(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(socket_name(name, 10**9))) == SOCKET_NAME_BYTES
    assert socket_name(name, 1) != socket_name(name, 2) != socket_name(name + "0", 2)
    async with supervised(tmp_path, "exec {engine}", name):
        assert [path.name for path in tmp_path.glob("*.sock")] == [socket_name(name, 1)]
