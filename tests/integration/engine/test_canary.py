"""The canary with a real child: an idle engine that can no longer generate is found, doubted, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import uvloop
from tests.integration.engine.test_process import eventually
from tests.running import FAKE_ENGINE

from stoker.config import RestartConfig
from stoker.engine.canary import CanaryTimes
from stoker.engine.process import EngineProcess, EngineState, Launch


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


class Engine:
    """A fake engine under watch; `states` are those it went through."""

    def __init__(self, directory: Path, interval: float, patience: float, load_timeout: float = 20) -> None:
        self.control = directory / "control.json"
        self.set()
        launch = Launch(
            lambda socket: [sys.executable, str(FAKE_ENGINE), "--socket", str(socket), "--control", str(self.control)],
            load_timeout=load_timeout,
            stall_timeout=20,
            restart=RestartConfig(backoff=0.01, give_up_after=2),
            canary=CanaryTimes(interval, patience) if interval else None,
        )
        self.states: list[EngineState] = []
        self.process = EngineProcess("m/0", launch, directory, lambda: self.states.append(self.process.state))

    def set(self, **settings: object) -> None:
        beside = self.control.with_suffix(".new")
        beside.write_text(json.dumps(settings))
        beside.rename(self.control)

    def canaries(self) -> int:
        log = self.control.with_suffix(".log")
        return log.read_text().count('"canary"') if log.exists() else 0


@contextlib.asynccontextmanager
async def running(engine: Engine) -> AsyncGenerator[EngineProcess]:
    owner = asyncio.create_task(engine.process.run())
    try:
        yield engine.process
    finally:
        engine.process.stop()
        async with asyncio.timeout(10):
            await owner


async def test_an_engine_is_ready_when_it_has_made_a_token(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=600, patience=5)
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY)
        assert engine.canaries() == 1
        assert process.canary.answered_at is not None
        assert process.canary.answered_at <= time.time()
        assert process.canary.latency_s is not None
        assert process.canary.refusal is None


async def test_one_that_loads_but_makes_no_token_is_never_ready(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=600, patience=0.2, load_timeout=1.5)
    engine.set(fault="mute")
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.FAILED)
        assert EngineState.READY not in engine.states
        assert "made no token" in (process.last_error or "")


async def test_one_that_dies_of_its_first_token_is_never_ready_and_given_up(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=600, patience=5)
    engine.set(fault="die_canary")
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.FAILED)
        assert EngineState.READY not in engine.states
        assert "exited with status 9" in (process.last_error or "")


async def test_an_idle_engine_that_went_mute_is_doubted_and_then_started_again(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=0.1, patience=0.3)
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY and engine.canaries() > 2)
        first = process.pid
        engine.set(fault="mute")
        await eventually(lambda: process.state is not EngineState.READY)
        await eventually(lambda: process.restarts > 0)
        engine.set()
        await eventually(lambda: process.state is EngineState.READY)
        assert process.pid != first
        assert process.stalls == 1
        assert engine.states[1:3] == [EngineState.CHECKING, EngineState.RESTARTING]
        assert "although it had nothing else to do" in (process.last_error or "")


async def test_one_that_is_only_slow_is_trusted_again(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=0.1, patience=0.4)
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY)
        engine.set(canary_delay=0.55)
        await eventually(lambda: engine.states[1:3] == [EngineState.CHECKING, EngineState.READY])
        assert process.restarts == 0


async def test_a_model_that_does_not_generate_counts_as_answering(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=600, patience=5)
    engine.set(fault="refuse")
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY)
        assert "no completions here" in (process.canary.refusal or "")


async def test_without_an_interval_nobody_asks(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=0, patience=1)
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY)
        assert engine.canaries() == 0


async def test_a_dying_engine_is_not_waited_for(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=0.1, patience=60)
    async with running(engine) as process:
        await eventually(lambda: process.state is EngineState.READY)
        before = engine.canaries()
        engine.set(fault="mute")
        await eventually(lambda: engine.canaries() > before)
        assert process.pid
        os.kill(process.pid, 9)
        engine.set()
        await eventually(lambda: process.restarts == 1 and process.state is EngineState.READY)


async def test_the_tokens_that_busy_slots_hold_are_known(tmp_path: Path) -> None:
    engine = Engine(tmp_path, interval=0, patience=1)
    engine.set(held=123)
    async with running(engine) as process:
        await eventually(lambda: process.tokens_held == 123)
