"""Rollouts whose disk is slow, full or in the way, and acts that come at the worst moment. The engines are fake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stoker.config import GenerationConfig, QueueConfig, RolloutConfig
from stoker.engine.pool import ModelPool, PoolSettings
from stoker.engine.process import EngineState
from stoker.errors import NotReady
from stoker.rollout.conductor import Conductor
from stoker.rollout.engines import Candidate, Means
from stoker.rollout.record import Options, Order, Phase, Rollout, RolloutConflict, Version
from stoker.rollout.shelf import KEPT, Pin, Shelf, ShelfFull
from stoker.rollout.watch import Watch
from stoker.types import GenerationRequest, ModelIdentity, Sampling, Timings

OLD, NEW = (Version(f"m@{n}", str(n), str(n) * 64) for n in (1, 2))
ORDER = Order(model="m@2", skip_evaluation=True, bake=60)


def rollout(phase: Phase, **changes: Any) -> Rollout:
    options = Options(evaluation=None, promotion="auto", canary=0.0, canary_time=60, bake=600, gap=False)
    fields = {"id": "rol-0123456789abcdef", "model": "m", "before": OLD, "after": NEW, "options": options}
    return Rollout(**{**fields, "phase": phase, **changes})


class Pool:
    """Engines that are ready once they are started, and idle."""

    def __init__(self, version: Version) -> None:
        self.settings = SimpleNamespace(identity=SimpleNamespace(name="m", version=version.version))
        self.version, self.ready, self.failed, self.stopped = version, False, False, False
        self.engines, self.line, self.running, self.slots = [], [], 0, 0

    def start(self) -> None:
        self.ready = True

    def trouble(self) -> str:
        return "no trouble"

    def refuse_new(self, reason: str) -> None:
        pass

    async def stop(self) -> None:
        self.ready, self.stopped = False, True


class Engines:
    def __init__(self) -> None:
        self.pools: dict[str, Any] = {"m": Pool(OLD)}
        self.pools["m"].start()
        self.aside: dict[str, Any] = {}

    def configured(self, _model: str) -> str:
        return "m@1"

    def serving(self, model: str) -> Version:
        return self.pools[model].version

    async def find(self, _model: str, ref: str) -> Version:
        return {"m@1": OLD, "m@2": NEW}[ref]

    async def prepare(self, model: str, ref: str) -> Candidate:
        version = await self.find(model, ref)
        return Candidate(version, Pool(version), 1, 1)  # type: ignore[arg-type]


class SlowShelf(Shelf):
    """A disk on which what `slow` picks takes a while; what is being written now stands in `writing`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.slow: Callable[[object], bool] = lambda _: False
        self.writing: list[object] = []

    def save(self, rollout: Rollout) -> None:
        self._wait(rollout)
        super().save(rollout)

    def pin(self, model: str, pin: Pin) -> None:
        self._wait(pin)
        super().pin(model, pin)

    def _wait(self, what: object) -> None:
        if self.slow(what):
            self.writing.append(what)
            time.sleep(0.4)


class Stage:
    def __init__(self, directory: Path) -> None:
        self.engines, self.shelf, self.watch = Engines(), SlowShelf(directory), Watch()
        config = RolloutConfig(min_requests=5, drain=1)
        self.conductor = Conductor(Means(self.engines, self.shelf, config, self.watch, {}))

    async def until(self, found: Callable[[], bool]) -> None:
        limit = time.monotonic() + 8
        while not found():
            assert time.monotonic() < limit
            await asyncio.sleep(0.01)

    async def in_phase(self, started: Rollout, phase: str) -> None:
        await self.until(lambda: self.conductor.get(started.id).phase == phase)


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    stage = Stage(directory)
    try:
        yield stage
    finally:
        await stage.conductor.close()


def is_phase(phase: str) -> Callable[[object], bool]:
    return lambda what: isinstance(what, Rollout) and what.phase == phase


async def test_an_abort_during_a_write_neither_blocks_the_loop_nor_is_overwritten(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.shelf.slow = lambda what: isinstance(what, Rollout) and what.phase == "loading" and what.warm
        started = await stage.conductor.start(ORDER, None)
        await stage.until(lambda: bool(stage.shelf.writing))
        stage.shelf.slow = lambda _: False
        loop, late = asyncio.get_running_loop(), list[float]()
        wanted = loop.time() + 0.05
        loop.call_at(wanted, lambda: late.append(loop.time() - wanted))
        ended = await stage.conductor.abort(started.id, None)
        assert ended.phase == "aborted"
        assert late[0] < 0.3
        assert stage.shelf.load()[0].phase == "aborted"


async def test_an_abort_while_the_pin_is_written_leaves_the_old_pin(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.shelf.slow = lambda what: isinstance(what, Pin) and what.version == NEW
        started = await stage.conductor.start(ORDER, None)
        await stage.until(lambda: bool(stage.shelf.writing))
        assert (await stage.conductor.abort(started.id, None)).phase == "aborted"
        await asyncio.sleep(0.5)
        assert stage.shelf.pins()["m"].version == OLD
        assert stage.engines.serving("m") == OLD


async def test_a_second_word_for_a_phase_does_not_end_the_next_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        order = Order(model="m@2", skip_evaluation=True, bake=60, promotion="manual")
        started = await stage.conductor.start(order, None)
        await stage.in_phase(started, "waiting")
        stage.shelf.slow = is_phase("baking")
        first = asyncio.create_task(stage.conductor.promote(started.id, None))
        await stage.until(lambda: bool(stage.shelf.writing))
        await stage.conductor.promote(started.id, None)
        await first
        await asyncio.sleep(1)
        assert stage.conductor.get(started.id).phase == "baking"
        assert not stage.engines.aside["m@1"].stopped


async def test_a_rollback_just_before_the_old_version_retires_is_done(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        started = await stage.conductor.start(ORDER, None)
        await stage.in_phase(started, "baking")
        stage.shelf.slow = is_phase("retiring")
        promoting = asyncio.create_task(stage.conductor.promote(started.id, None))
        await stage.until(lambda: bool(stage.shelf.writing))
        assert (await stage.conductor.rollback(started.id, None)).phase == "rolled_back"
        await promoting
        assert stage.engines.serving("m") == OLD
        await stage.until(lambda: not stage.engines.aside)


async def test_what_breaks_while_the_old_version_retires_leaves_no_engines(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        started = await stage.conductor.start(ORDER, None)
        await stage.in_phase(started, "baking")
        old = stage.engines.aside["m@1"]
        stop, failures = old.stop, [RuntimeError("a surprise")]

        async def broken() -> None:
            if failures:
                raise failures.pop()
            await stop()

        old.stop = broken
        await stage.conductor.promote(started.id, None)
        await stage.in_phase(started, "succeeded")
        assert old.stopped
        assert not stage.engines.aside


async def test_nobody_is_sent_back_to_a_version_that_does_not_answer(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        started = await stage.conductor.start(ORDER, None)
        await stage.in_phase(started, "baking")
        stage.engines.aside["m@1"].ready = False
        for number in range(20):
            stage.watch.note(NEW.digest, failed=number < 4, first_token_s=None)
        await asyncio.sleep(1.2)
        assert stage.conductor.get(started.id).phase == "baking"
        stage.engines.aside["m@1"].ready = True
        await stage.in_phase(started, "rolled_back")


async def test_a_full_disk_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    Shelf(tmp_path).save(rollout("baking"))
    async with staged(tmp_path) as stage:
        stage.engines.pools["m"].version = NEW

        def full(_: Rollout) -> None:
            raise ShelfFull("no room")

        stage.shelf.save = full  # type: ignore[method-assign]
        await stage.conductor.open()
        assert stage.conductor.current() is not None


async def test_a_server_that_stops_starts_no_rollout(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.conductor.close()
        with pytest.raises(NotReady, match="stopping"):
            await stage.conductor.start(ORDER, None)
        assert stage.shelf.load() == []


async def test_two_who_start_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        both = [stage.conductor.start(ORDER, None) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [isinstance(one, RolloutConflict) for one in found].count(True) == 1


def test_the_files_of_rollouts_are_bounded_while_a_server_runs(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for number in range(KEPT + 5):
        shelf.save(rollout("succeeded", id=f"rol-{number:016x}", created=float(number)))
    assert len(list((tmp_path / "rollouts").glob("rol-*"))) == KEPT


class Leaving:
    """An engine that takes a while to end; whoever ends its owner leaves its child behind."""

    def __init__(self) -> None:
        self.name, self.state, self.props, self.last_error = "m/0", EngineState.STARTING, {}, None
        self.ended = False
        self._stop = asyncio.Event()

    async def run(self) -> None:
        await self._stop.wait()
        await asyncio.sleep(0.2)
        self.ended = True
        self.state = EngineState.STOPPED

    def stop(self) -> None:
        self._stop.set()


def real_pool() -> ModelPool:
    settings = PoolSettings(
        identity=ModelIdentity("m", "1", "1" * 64),
        slots=1,
        context=0,
        dialect="llamacpp",
        wire_model="m",
        tools="emulated",
        queue=QueueConfig(),
        generation=GenerationConfig(),
    )
    return ModelPool(settings, lambda _: [Leaving()])  # type: ignore[list-item]


async def test_who_gives_up_waiting_for_engines_to_end_does_not_end_their_owners() -> None:
    pool = real_pool()
    pool.start()
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.stop(), 0.05)
    await pool.stop()
    assert pool.engines[0].ended  # type: ignore[attr-defined]


@pytest.mark.parametrize("admitted", [True, False])
async def test_who_comes_to_engines_that_were_stopped_is_told_at_once(admitted: bool) -> None:
    """A later prompt of a call that was let in before must not wait for its deadline."""
    pool = real_pool()
    pool.start()
    await asyncio.sleep(0)
    pool.refuse_new("the version is being changed")
    await pool.stop()
    request = GenerationRequest(
        "r",
        "completion",
        "m",
        time.monotonic() + 60,
        prompt="hello",
        sampling=Sampling(max_tokens=1),
        admitted=admitted,
    )
    async with asyncio.timeout(2):
        with pytest.raises(NotReady, match="the version is being changed"):
            await anext(pool.generate(request, Timings()))
