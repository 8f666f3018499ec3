"""Both counters against one model: a list of everything that was taken, with its time.

The model is what a sliding window means. The adapters may forget a taking up to a step late, never early; when all
times lie on steps they must agree with it exactly. Each other's figures they must repeat to the microsecond.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.redis_server import RedisProcess

from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import MICRO, STEPS, Claim, Counters, Hold, Outcome, Window
from stoker.store.redis import RedisCounters, RedisServer

SPANS = {"a": (5, 60), "b": (100, 60), "c": (40, 600)}  # limit, seconds
PLACES = 3
FOR_EVER_S = 1e6  # the time told to the counters runs faster than the one by which holds run out
START = 1_000 * MICRO


@dataclass
class Taking:
    at: int
    key: str
    amount: int


@dataclass
class Model:
    """Everything that was taken, and the places that are held."""

    takings: list[Taking] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def used(self, window: Window, now: int, late: int = 0) -> int:
        """What a window that ends at `now` holds, or one that is `late` microseconds longer."""
        since = now - int(window.window_s * MICRO) - late
        return sum(taking.amount for taking in self.takings if taking.key == window.key and taking.at > since)

    def fits(self, claim: Claim, now: int, late: int = 0) -> bool:
        if isinstance(claim, Hold):
            return len(self.held) < claim.limit
        return not claim.amount or self.used(claim, now, late) + claim.amount <= claim.limit

    def take(self, claims: list[Claim], now: int) -> list[Taking]:
        self.held |= {claim.id for claim in claims if isinstance(claim, Hold)}
        new = [Taking(now, claim.key, claim.amount) for claim in claims if isinstance(claim, Window)]
        self.takings += new
        return new


class Run:
    """Drives the model and both adapters with the same operations."""

    def __init__(self, adapters: tuple[Counters, Counters], prefix: str, on_steps: bool) -> None:
        self.adapters = adapters
        self.prefix = prefix
        self.on_steps = on_steps
        self.model = Model()
        self.now = START
        self.ids = itertools.count()
        self.open: list[tuple[list[Outcome], list[Taking]]] = []

    def claims(self, amounts: dict[str, int], hold: bool) -> list[Claim]:
        windows: list[Claim] = [Window(self.prefix + key, *SPANS[key], amount) for key, amount in amounts.items()]
        return [*windows, Hold(f"{self.prefix}h", PLACES, str(next(self.ids)), FOR_EVER_S)] if hold else windows

    async def both(self, claims: list[Claim]) -> list[Outcome]:
        outcomes = [await adapter.take(claims, now=self.now / MICRO) for adapter in self.adapters]
        first, second = outcomes
        assert first == second
        return outcomes

    async def take(self, claims: list[Claim]) -> Outcome:
        outcomes = await self.both(claims)
        granted = outcomes[0].granted
        exact = all(self.model.fits(claim, self.now) for claim in claims)
        if granted:
            assert exact  # never looser
            for claim, standing in zip(claims, outcomes[0].standings, strict=True):
                assert standing.wait_s == 0
                if isinstance(claim, Window) and self.on_steps:
                    used = self.model.used(claim, self.now) + claim.amount
                    assert standing.remaining == max(0, claim.limit - used)
            self.open.append((outcomes, self.model.take(claims, self.now)))
        else:
            assert not exact or not self.on_steps  # as strict as can be
            assert not all(self._fits_late(claim) for claim in claims)  # at most one step stricter
            assert any(standing.wait_s > 0 for standing in outcomes[0].standings)
        return outcomes[0]

    def _fits_late(self, claim: Claim) -> bool:
        late = int(claim.window_s * MICRO) // STEPS if isinstance(claim, Window) else 0
        return self.model.fits(claim, self.now, late)

    async def take_when_told(self, claims: list[Claim]) -> None:
        """If refused, come back a moment too early, and then at the time that was said."""
        refused = await self.take(claims)
        wait = max(
            (round(standing.wait_s * MICRO) for standing in refused.standings if standing.wait_s < 1e6), default=0
        )
        windows = [claim for claim in claims if isinstance(claim, Window)]
        if refused.granted or not wait or len(windows) < len(claims) or any(w.amount > w.limit for w in windows):
            return
        if not self.on_steps:
            self.now += wait - 1
            assert not (await self.both(claims))[0].granted
            wait = 1
        self.now += wait
        assert (await self.take(claims)).granted

    async def settle(self, which: int, used: int) -> None:
        if not self.open:
            return
        outcomes, takings = self.open.pop(which % len(self.open))
        for adapter, outcome in zip(self.adapters, outcomes, strict=True):
            await adapter.settle(outcome, {taking.key: used for taking in takings})
            await adapter.release(outcome)
        for taking in takings:
            taking.amount = used
        self.model.held -= {claim.id for claim in outcomes[0].claims if isinstance(claim, Hold)}


amounts = st.dictionaries(st.sampled_from(sorted(SPANS)), st.integers(0, 50), min_size=1)
operations = st.one_of(
    st.tuples(st.just("take"), amounts, st.booleans()),
    st.tuples(st.just("take"), st.just({"a": 1}), st.booleans()),
    st.tuples(st.just("told"), amounts, st.booleans()),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 120)),
)
pauses = st.one_of(
    st.just(0), st.integers(0, 3 * MICRO), st.integers(0, 70 * MICRO), st.sampled_from([MICRO, 60 * MICRO])
)
steps = st.sampled_from([0, 10, 20, 50, 60, 70, 590, 600]).map(lambda seconds: seconds * MICRO)


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


async def drive(valkey: RedisProcess, script: list, on_steps: bool) -> None:
    server = RedisServer(valkey.url, "model:", 30)
    valkey.command("FLUSHALL")
    run = Run((MemoryCounters(), RedisCounters(server)), "k:", on_steps)
    for pause, (name, first, second) in script:
        run.now += pause
        if name == "take":
            await run.take(run.claims(first, second))
        elif name == "told":
            await run.take_when_told(run.claims(first, False))
        else:
            await run.settle(first, second)
    for adapter in run.adapters:
        await adapter.close()
    await server.close()


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.lists(st.tuples(pauses, operations), max_size=40))
def test_never_looser_and_at_most_one_step_stricter(valkey: RedisProcess, script: list) -> None:
    asyncio.run(drive(valkey, script, on_steps=False))


@quick
@given(st.lists(st.tuples(steps, operations), max_size=40))
def test_exact_when_times_lie_on_steps(valkey: RedisProcess, script: list) -> None:
    asyncio.run(drive(valkey, script, on_steps=True))
