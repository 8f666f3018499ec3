"""A model's slots under every interleaving of arrivals, departures, deadlines, deaths, drains and stops.

The engines are objects in this process, and time is the event loop's own: it jumps to the next timer as soon as nobody
can run, and passes by `tick` in each step of the loop, so that deadlines, grants and deaths fall into one step as often
as a test likes. A loop that has nothing left to wait for is a request that would hang for ever, and fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.config import GenerationConfig, QueueConfig
from stoker.engine import pool as pool_module
from stoker.engine.pool import ATTEMPTS, ModelPool, PoolSettings
from stoker.engine.process import EngineState
from stoker.errors import DeadlineExceeded, EngineDied, NotReady, Overloaded, StokerError
from stoker.types import Chunk, EmbeddingRequest, GenerationRequest, ModelIdentity, Priority, Sampling, Timings, Usage

FAR = 1e6
RECHECK_S = 0.25


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    now = 0.0
    tick = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        self.now += self.tick
        if not events:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self.now += max(0.0, timeout)
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, tick: float = 0.0) -> None:
        self.clock = JumpingSelector()
        self.clock.tick = tick
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class LoopTime:
        @staticmethod
        def monotonic() -> float:
            return asyncio.get_running_loop().time()

    monkeypatch.setattr(pool_module, "time", LoopTime)


def run(scenario: Coroutine[Any, Any, None], tick: float = 0.0) -> None:
    with asyncio.Runner(loop_factory=partial(JumpingLoop, tick)) as runner:
        runner.run(scenario)


class FakeClient:
    """Says one word a second and step, until its engine dies."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.dead = asyncio.Event()

    async def stream(self, call: Any, deadline: float) -> AsyncGenerator[Chunk]:
        words = int(call.body["messages"][0]["content"])
        with self.engine.occupied():
            for number in range(words):
                await self._step(deadline)
                yield Chunk(text=f"{number} ")
            await self._step(deadline)
            yield Chunk(finish_reason="stop", usage=Usage(1, words))

    async def embed(self, _model: str, inputs: Any, deadline: float) -> tuple[list[list[float]], Usage]:
        with self.engine.occupied():
            await self._step(deadline)
            return [[1.0] for _ in inputs], Usage(len(inputs))

    async def _step(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        until = min(loop.time() + 1.0, deadline)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self.dead.wait()
                raise EngineDied("killed")
        if until == deadline:
            raise DeadlineExceeded("too late")


class FakeEngine:
    """An engine that does what the test says."""

    def __init__(self, name: str, slots: int, on_change: Callable[[], None]) -> None:
        self.name = name
        self.state = EngineState.STARTING
        self.pid = None
        self.restarts = self.stalls = 0
        self.load_seconds = 0.0
        self.last_error: str | None = None
        self.away_s = 0.0
        self.props: dict[str, Any] = {}
        self.client: Any = None
        self.busy = 0
        self._slots = slots
        self._on_change = on_change
        self._stop = asyncio.Event()

    @contextlib.contextmanager
    def occupied(self):
        self.busy += 1
        assert self.busy <= self._slots, "more requests at an engine than it has slots"
        try:
            yield
        finally:
            self.busy -= 1

    async def run(self) -> None:
        await self._stop.wait()
        self._end(EngineState.STOPPED)

    def stop(self) -> None:
        self._stop.set()

    def note_success(self) -> None:
        pass

    def note_broken(self) -> None:
        if self.state is EngineState.READY:
            self.state = EngineState.CHECKING
            asyncio.get_running_loop().call_later(RECHECK_S, self._recheck)

    def _recheck(self) -> None:
        if self.state is EngineState.CHECKING:
            self._enter(EngineState.READY)

    def revive(self) -> None:
        if self.state not in {EngineState.READY, EngineState.STOPPED, EngineState.FAILED}:
            self.client = FakeClient(self)
            self.props = {"chat_template_caps": {}}
            self._enter(EngineState.READY)

    def break_connections(self) -> None:
        """What a death looks like before the owner has noticed it; the engine may also be alive and well."""
        if self.client is not None:
            self.client.dead.set()
            self.client = FakeClient(self)

    def die(self) -> None:
        if self.state is not EngineState.STOPPED:
            self._end(EngineState.RESTARTING)

    def give_up(self) -> None:
        if self.state is not EngineState.STOPPED:
            self._end(EngineState.FAILED)

    def _end(self, state: EngineState) -> None:
        if self.client is not None:
            self.client.dead.set()
        self.client = None
        self._enter(state)

    def _enter(self, state: EngineState) -> None:
        self.state = state
        self._on_change()


@dataclass
class House:
    """A pool, its engines, and everybody who came."""

    slots: int = 2
    replicas: int = 1
    places: int = 100
    job_share: float = 0.125
    tasks: list[asyncio.Task[str]] = field(default_factory=list)
    answered: list[tuple[GenerationRequest, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = PoolSettings(
            identity=ModelIdentity("m", "1", "0" * 64),
            slots=self.slots,
            context=0,
            dialect="llamacpp",
            wire_model="m",
            tools="emulated",
            queue=QueueConfig(max_requests=self.places, max_tokens=10**9),
            generation=GenerationConfig(),
            job_share=self.job_share,
        )
        self.engines: list[FakeEngine] = []

        def make(on_change: Callable[[], None]) -> list[FakeEngine]:
            self.engines = [FakeEngine(f"m/{n}", self.slots, on_change) for n in range(self.replicas)]
            return self.engines

        self.pool = ModelPool(settings, make)
        self.pool.start()

    def arrive(self, words: int, patience: float = FAR, **more: Any) -> asyncio.Task[str]:
        """A request for so many words; the task's result is its text, or the name of its error."""
        deadline = asyncio.get_running_loop().time() + patience
        fields = {"messages": ({"role": "user", "content": str(words)},), "sampling": Sampling(max_tokens=words)}
        request = GenerationRequest("r", "chat", "m", deadline, **{**fields, **more})  # type: ignore[arg-type]
        timings = Timings()

        async def ask() -> str:
            async with contextlib.aclosing(self.pool.generate(request, timings)) as chunks:
                text = "".join([chunk.text async for chunk in chunks])
                self.answered.append((request, timings.engine))
                return text

        return self._enter(ask())

    def embed(self, inputs: int, patience: float = FAR) -> asyncio.Task[str]:
        deadline = asyncio.get_running_loop().time() + patience

        async def ask() -> str:
            vectors, _ = await self.pool.embed(EmbeddingRequest("r", "m", deadline, ("x",) * inputs), Timings())
            return f"{len(vectors)} vectors"

        return self._enter(ask())

    def _enter(self, work: Coroutine[Any, Any, str]) -> asyncio.Task[str]:
        async def outcome() -> str:
            try:
                return await work
            except StokerError as error:
                return type(error).__name__

        self.tasks.append(asyncio.create_task(outcome()))
        return self.tasks[-1]

    async def settle(self) -> None:
        """Let everybody run who can, without moving the clock; then no slot may be free while somebody waits."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert self.pool.running <= self.slots * self.replicas
        free = any(
            engine.state is EngineState.READY and self.pool._leases[engine.name] < self.slots for engine in self.engines
        )
        assert not (free and len(self.pool.line)), "somebody waits while a slot is free"

    async def close(self) -> list[str]:
        """What came of everybody, in order of arrival; nothing of them may be left."""
        outcomes = [
            "left" if isinstance(outcome, asyncio.CancelledError) else outcome
            for outcome in await asyncio.gather(*self.tasks, return_exceptions=True)
        ]
        assert self.pool.running == 0, "a slot was never given back"
        assert all(engine.busy == 0 for engine in self.engines)
        assert len(self.pool.line) == self.pool.line.tokens == 0
        assert not self.pool._waiters
        await self.pool.stop()
        return outcomes  # type: ignore[return-value]


def words(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


ticks = st.sampled_from([0.0, 0.03, 0.125, 0.3])
moments = st.sampled_from([0.0, RECHECK_S, 0.5, 1.0, 2.0, 3.0])
patiences = st.sampled_from([0.0, -1.0, 0.5, 1.0, 2.0, 3.0, 5.0, FAR, FAR])
actions = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 3), patiences),
    st.tuples(st.just("arrive"), st.integers(0, 3), patiences),
    st.tuples(st.just("embed"), st.integers(1, 20), patiences),
    st.tuples(st.just("leave"), st.integers(0, 50)),
    st.tuples(st.just("die"), st.integers(0, 1)),
    st.tuples(st.just("revive"), st.integers(0, 1)),
    st.tuples(st.just("revive later"), st.integers(0, 1), moments),
    st.tuples(st.just("break connections"), st.integers(0, 1)),
    st.tuples(st.just("give up"), st.integers(0, 1)),
    st.tuples(st.just("pass"), moments),
    st.tuples(st.just("pass"), moments),
    st.tuples(st.just("drain")),
    st.tuples(st.just("stop")),
)
rarely = {"drain", "stop", "give up"}


async def play(script: list[tuple[Any, ...]], slots: int, replicas: int, places: int) -> None:
    house = House(slots, replicas, places)
    for engine in house.engines:
        engine.revive()
    asked: list[str] = []
    for action in script:
        match action:
            case ("arrive", int(count), float(patience)):
                house.arrive(count, patience)
                asked.append(words(count))
            case ("embed", int(count), float(patience)):
                house.embed(count, patience)
                asked.append(f"{count} vectors")
            case ("leave", int(number)) if house.tasks:
                house.tasks[number % len(house.tasks)].cancel()
            case ("revive later", int(number), float(seconds)):
                asyncio.get_running_loop().call_later(seconds, house.engines[number % replicas].revive)
            case ("die" | "revive" | "give up" | "break connections" as what, int(number)):
                getattr(house.engines[number % replicas], what.replace(" ", "_"))()
            case ("pass", float(seconds)):
                await asyncio.sleep(seconds)
                await house.settle()
            case ("drain",):
                house.pool.refuse_new()
            case ("stop",):
                await house.pool.stop()
    for engine in house.engines:
        engine.revive()
    await house.settle()
    refusals = {error.__name__ for error in (DeadlineExceeded, EngineDied, NotReady, Overloaded)}
    for wanted, outcome in zip(asked, await house.close(), strict=True):
        assert outcome in {wanted, "left"} | refusals


@settings(max_examples=300, deadline=None)
@given(st.lists(actions.filter(lambda action: action[0] not in rarely), max_size=40), st.integers(1, 3), st.data())
def test_no_slot_leaks_and_nobody_hangs_whatever_happens(
    script: list[tuple[Any, ...]], slots: int, data: st.DataObject
) -> None:
    replicas, places = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([0, 1, 3, 100]))
    run(play(script, slots, replicas, places), data.draw(ticks))


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=30), st.integers(1, 3), ticks)
def test_nor_when_it_is_drained_stopped_or_given_up_meanwhile(
    script: list[tuple[Any, ...]], slots: int, tick: float
) -> None:
    run(play(script, slots, 2, 10), tick)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), moments, st.booleans()), min_size=1, max_size=20), st.integers(1, 3))
def test_nothing_is_lost_that_had_not_begun(arrivals: list[tuple[int, float, bool]], slots: int) -> None:
    async def scenario() -> None:
        house = House(slots, replicas=2)
        for count, pause, kill in arrivals:
            house.arrive(count)
            await asyncio.sleep(pause)
            if kill:
                house.engines[0].die()
                house.engines[0].revive()
            house.engines[1].revive()
        outcomes = await house.close()
        for (count, _, _), outcome in zip(arrivals, outcomes, strict=True):
            assert outcome in {words(count), "EngineDied"}
            if not any(kill for _, _, kill in arrivals):
                assert outcome == words(count)

    run(scenario())


def test_a_slot_granted_in_the_step_of_the_deadline_is_given_back() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        loop = asyncio.get_running_loop()
        loop.call_at(2.0, house.engines[0].revive)
        loop.call_at(2.0, lambda: None)
        late = house.arrive(1, patience=2.0)
        await house.settle()
        patient = house.arrive(1)
        assert await house.close() == ["DeadlineExceeded", words(1)]
        assert late.done()
        assert patient.done()

    run(scenario())


def test_a_slot_granted_in_the_step_of_the_departure_is_given_back() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        house.engines[0].revive()
        first, second = house.arrive(3), house.arrive(3)
        third = house.arrive(1)
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        second.cancel()
        assert await house.close() == ["left", "left", words(1)]
        assert third.done()

    run(scenario())


def test_a_request_under_which_every_engine_dies_is_given_up() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        doomed, patient = house.arrive(2), house.arrive(1)
        for _ in range(ATTEMPTS):
            house.engines[0].revive()
            await asyncio.sleep(0.5)
            house.engines[0].die()
            await house.settle()
        house.engines[0].revive()
        assert await house.close() == ["EngineDied", words(1)]
        assert doomed.done()
        assert patient.done()

    run(scenario())


def test_who_waits_for_an_engine_that_is_given_up_hears_so_at_once() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        house.engines[0].revive()
        running, waiting = house.arrive(5), house.arrive(1)
        await asyncio.sleep(1.5)
        house.engines[0].give_up()
        await house.settle()
        assert running.result() == "EngineDied"  # its first word had been said
        assert waiting.result() == "NotReady"
        await house.close()

    run(scenario())


def test_a_drain_finishes_who_was_let_in_and_lets_nobody_in() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        house.engines[0].revive()
        house.arrive(1)
        house.arrive(1)
        await house.settle()
        house.pool.refuse_new()
        house.arrive(1)
        assert await house.close() == [words(1), words(1), "NotReady"]

    run(scenario())


def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        house = House(slots=1, places=1)
        house.engines[0].revive()
        for _ in range(3):
            house.arrive(1)
            await house.settle()
        assert await house.close() == [words(1), words(1), "Overloaded"]
        assert house.pool.refused == 1

    run(scenario())


def test_a_wait_beyond_the_deadline_is_refused_on_arrival_once_the_speed_is_known() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        house.engines[0].revive()
        for _ in range(12):
            house.arrive(2)
        await asyncio.sleep(3 * 10 + 1)  # ten are done, three seconds each
        hopeless = house.arrive(2, patience=0.5)
        await house.settle()
        assert hopeless.result() == "Overloaded"
        await house.close()

    run(scenario())


def test_failures_and_departures_say_nothing_about_the_speed() -> None:
    async def scenario() -> None:
        house = House(slots=1)
        house.engines[0].revive()
        for _ in range(10):
            house.arrive(2)
        await asyncio.sleep(3 * 10)
        known = house.pool.meter.wait(1000, 1)
        for _ in range(20):
            leaving = house.arrive(50)
            await asyncio.sleep(0.01)
            leaving.cancel()
            await house.settle()
        assert house.pool.meter.wait(1000, 1) == known > 0
        house.tasks = [task for task in house.tasks if not task.cancelled()]
        await house.close()

    run(scenario())


def test_the_later_prompts_of_a_call_pass_a_full_line_and_a_drain() -> None:
    async def scenario() -> None:
        house = House(slots=1, places=1)
        house.engines[0].revive()
        house.arrive(3)
        house.arrive(1)
        await house.settle()
        house.pool.refuse_new()
        house.arrive(1, admitted=True)
        house.arrive(1)
        assert await house.close() == [words(3), words(1), words(1), "NotReady"]

    run(scenario())


def test_under_full_job_load_whoever_comes_waits_one_generation_at_most() -> None:
    async def scenario() -> None:
        house = House(slots=2)
        house.engines[0].revive()
        for _ in range(40):
            house.arrive(3, priority=Priority.JOB)  # four seconds each
        loop = asyncio.get_running_loop()
        for _ in range(10):
            await asyncio.sleep(2.5)
            arrived = loop.time()
            assert await house.arrive(1) == words(1)
            assert loop.time() - arrived <= 4.0 + 2.0  # a slot comes free, and its own words are said
        assert set(await house.close()) == {words(3), words(1)}

    run(scenario())


def test_jobs_go_on_under_interactive_load_at_their_share() -> None:
    async def scenario() -> None:
        house = House(slots=1, places=1000)
        house.engines[0].revive()
        for _ in range(200):
            house.arrive(0)  # a second each
        jobs = [house.arrive(0, priority=Priority.JOB) for _ in range(30)]
        await asyncio.sleep(160.5)
        assert abs(sum(job.done() for job in jobs) - 160 / 8) <= 1
        await house.close()

    run(scenario())


def test_jobs_take_nobody_s_place_in_the_line_and_are_refused_by_none() -> None:
    async def scenario() -> None:
        house = House(slots=1, places=1)
        house.engines[0].revive()
        jobs = [house.arrive(1, priority=Priority.JOB) for _ in range(5)]
        await house.settle()
        waiting = house.arrive(1)
        await house.settle()
        refused = house.arrive(1)
        await house.settle()
        assert refused.result() == "Overloaded"
        house.pool.refuse_new()
        late = house.arrive(1, priority=Priority.JOB)
        await house.settle()
        assert late.result() == "NotReady"  # an accepted one waits for another replica, or another day
        await house.close()
        assert {task.result() for task in (*jobs, waiting)} == {words(1)}

    run(scenario())


def test_who_has_waited_still_goes_where_its_prefix_is() -> None:
    async def scenario() -> None:
        house = House(slots=1, replicas=2)
        for engine in house.engines:
            engine.revive()
        for _ in range(4):
            for system in ("you are kind", "you are brief"):
                said = ({"role": "system", "content": system}, {"role": "user", "content": "1"})
                house.arrive(1, messages=(said[1], said[0]))
        await house.close()
        homes: dict[str, list[str]] = {}
        for request, engine in house.answered:
            homes.setdefault(str(request.messages[1]["content"]), []).append(engine)
        assert len(house.answered) == 8
        for engines in homes.values():
            assert max(engines.count(name) for name in set(engines)) >= 3, homes

    run(scenario())


def test_a_restart_does_not_make_the_wait_look_longer() -> None:
    async def scenario() -> None:
        house = House(slots=4)
        house.engines[0].revive()
        for _ in range(20):
            house.arrive(1)
        await asyncio.sleep(2.5)
        before = house.pool.expected_wait()
        house.engines[0].die()
        assert house.pool.expected_wait() == before > 0
        house.engines[0].revive()
        assert set(await house.close()) <= {words(1), "EngineDied"}

    run(scenario())
