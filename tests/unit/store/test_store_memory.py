"""The embedded stores: bounds of memory, order of eviction, and what happens when there are too many keys."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from stoker.observability.notices import Seldom
from stoker.store.memory import OVERHEAD, MemoryKeyValue
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import MICRO, STEPS, Hold, Window
from stoker.store.ring import Ring


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_the_longest_unused_go_first() -> None:
    store = MemoryKeyValue(3 * (OVERHEAD + 10))
    for key in "abc":
        await store.set(key, b"123456789", 60)
    assert await store.get("a") is not None
    await store.set("d", b"123456789", 60)
    assert [await store.get(key) is not None for key in "abcd"] == [True, False, True, True]


async def test_what_is_larger_than_everything_is_not_kept() -> None:
    store = MemoryKeyValue(1000)
    await store.set("a", b"small", 60)
    await store.set("b", b"x" * 1000, 60)
    assert await store.get("a") == b"small"
    await store.set("a", b"x" * 1000, 60)
    assert await store.get("a") is None  # and the old value is no more either
    assert store.octets == store.entries == 0


async def test_values_whose_time_is_over_make_room() -> None:
    clock = Clock()
    store = MemoryKeyValue(1 << 20, clock)
    for number in range(100):
        await store.set(str(number), b"x", 10)
    clock.now += 10
    for number in range(100, 160):
        await store.set(str(number), b"x", 10)
    assert store.entries == 60
    assert await store.get("100") == b"x"
    clock.now += 10
    assert await store.get("100") is None
    assert store.entries == 59
    await store.close()
    assert store.entries == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000), st.booleans()), max_size=60))
async def test_the_bound_holds_and_the_sum_is_right(operations: list[tuple[str, int, bool]]) -> None:
    store = MemoryKeyValue(5000)
    for key, size, delete in operations:
        if delete:
            await store.delete(key)
        else:
            await store.set(key, b"x" * size, 60)
        assert store.octets == sum(entry.size for entry in store._entries.values()) <= 5000


@pytest.mark.parametrize("size", [10, 1000, 20_000])
async def test_the_bound_is_of_real_memory(size: int) -> None:
    bound = 4 << 20
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    store = MemoryKeyValue(bound)
    for number in range(3 * bound // (size + OVERHEAD)):
        await store.set(f"{number:064d}", random.randbytes(size), 60)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert bound * 0.5 < taken < bound * 1.05


async def test_idle_keys_are_forgotten() -> None:
    clock = Clock()
    counters = MemoryCounters(clock=clock)
    for number in range(1000):
        await counters.take([Window(f"k{number}", 5, 60), Window(f"d{number}", 5, 600)])
    assert counters.keys == 2000
    clock.now += 60
    for _ in range(300):
        await counters.take([Window("busy", 10**6, 60)])
    assert counters.keys == 1001
    held = await counters.take([Hold("h", 5, "one")])
    assert counters.keys == 1002
    await counters.release(held)
    assert counters.keys == 1001


async def test_too_many_keys_loosen_no_limit() -> None:
    clock = Clock()
    counters = MemoryCounters(max_keys=100, clock=clock)

    async def takes(key: str) -> bool:
        return (await counters.take([Window(key, 5, 60)])).granted

    assert [await takes("known") for _ in range(3)] == [True] * 3
    with structlog.testing.capture_logs() as lines:
        granted = [await takes(f"flood{number}") for number in range(20_000)]
    assert [line["event"] for line in lines] == ["rate_limit_keys_full"]
    assert sum(granted) <= 99 + 256 * 5  # its own rings, and the shared ones
    assert counters.keys <= 100 + 256
    assert [await takes("known") for _ in range(3)] == [True, True, False]
    clock.now += 60
    assert [await takes("late") for _ in range(6)] == [True] * 5 + [False]  # room again


async def test_claims_that_share_a_ring_are_both_counted() -> None:
    counters = MemoryCounters(max_keys=0)
    pair = [Window("one", 5, 60, 2), Window("two", 5, 60, 2)]
    assert (await counters.take(pair)).granted
    taken = await counters.take(pair)
    assert taken.granted
    await counters.settle(taken, {"one": 0, "two": 0})
    assert (await counters.take(pair)).granted
    await counters.close()
    assert counters.keys == 0


@given(st.lists(st.tuples(st.integers(0, 3 * MICRO), st.integers(0, 9)), max_size=300))
def test_a_ring_is_small_and_its_sum_right(takings: list[tuple[int, int]]) -> None:
    ring, now, span = Ring(), 0, 60 * MICRO
    for pause, amount in takings:
        now += pause
        ring.forget(now, span)
        ring.add(now, span, amount)
        assert len(ring) <= STEPS + 2
        assert ring.used == sum(ring._cells[2::3])
    assert ring.idle(now + span, span)


def test_a_ring_that_is_filled_all_the_time_is_small() -> None:
    ring, span = Ring(), MICRO + 1  # a span that steps do not divide
    for now in range(0, 20 * MICRO, 997):
        ring.forget(now, span)
        ring.add(now, span, 1)
        assert len(ring) <= STEPS + 2


def test_seldom_counts_what_it_leaves_out() -> None:
    clock = Clock()
    seldom = Seldom("test", 5, clock)
    with structlog.testing.capture_logs() as lines:
        for _ in range(10):
            seldom.warning("event", detail=1)
        clock.now += 5
        seldom.warning("event", detail=2)
    assert [(line["detail"], line["unsaid"]) for line in lines] == [(1, 0), (2, 9)]
