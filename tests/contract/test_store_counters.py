"""What every store of counters must do, in memory, in Redis, and in Redis with a fallback."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.redis_server import RedisProcess

from stoker.store.circuit import Circuit
from stoker.store.fallback import FallbackCounters
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import HOLD_WAIT_S, Counters, Hold, Window
from stoker.store.redis import RedisCounters, RedisServer

SOON_S = 30.0


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest_asyncio.fixture(params=["memory", "redis", "fallback"])
async def counters(request: pytest.FixtureRequest) -> AsyncIterator[Counters]:
    if request.param == "memory":
        yield MemoryCounters()
        return
    valkey = request.getfixturevalue("valkey")
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    shared = RedisCounters(server)
    circuit = Circuit(server.name, server.probe, lambda *_: None)
    opened = FallbackCounters(shared, MemoryCounters(), circuit) if request.param == "fallback" else shared
    yield opened
    await opened.close()
    await circuit.close()
    await server.close()


async def test_a_window_slides(counters: Counters) -> None:
    for now in (100.0, 130.0):
        outcome = await counters.take([Window("a", 2, 60)], now=now)
        assert outcome.granted
    refused = await counters.take([Window("a", 2, 60)], now=159.0)
    assert not refused.granted
    assert refused.standings[0].remaining == 0
    assert refused.standings[0].wait_s == pytest.approx(1.0)  # until the first is a window past
    assert refused.standings[0].reset_s == pytest.approx(31.0)  # until both are
    again = await counters.take([Window("a", 2, 60)], now=160.0)
    assert again.granted
    assert not (await counters.take([Window("a", 2, 60)], now=160.0)).granted


async def test_a_burst_waits_no_longer_than_the_window(counters: Counters) -> None:
    for _ in range(10):
        assert (await counters.take([Window("a", 10, 60)], now=100.5)).granted
    refused = await counters.take([Window("a", 10, 60)], now=100.5)
    assert refused.standings[0].wait_s == pytest.approx(60.0)
    assert (await counters.take([Window("a", 10, 60, 10)], now=160.5)).granted


async def test_all_or_nothing(counters: Counters) -> None:
    wide, narrow = Window("wide", 10, 60), Window("narrow", 1, 60)
    hold = Hold("places", 5, "one")
    assert (await counters.take([wide, narrow], now=100)).granted
    refused = await counters.take([wide, hold, narrow], now=101)
    assert not refused.granted
    assert [standing.wait_s for standing in refused.standings] == pytest.approx([0, 0, 59])
    left = await counters.take([wide, hold], now=101)
    assert [standing.remaining for standing in left.standings] == [8, 4]


async def test_more_than_the_limit_can_never_be_granted(counters: Counters) -> None:
    refused = await counters.take([Window("a", 10, 60, 11)], now=100)
    assert not refused.granted
    assert math.isinf(refused.standings[0].wait_s)
    assert (await counters.take([Window("a", 10, 60, 10)], now=100)).granted


async def test_nothing_claimed_is_always_granted(counters: Counters) -> None:
    assert (await counters.take([])).granted
    assert (await counters.take([Window("a", 1, 60)], now=100)).granted
    assert (await counters.take([Window("a", 1, 60, 0)], now=100)).granted


async def test_settling_corrects_the_taking_where_it_stands(counters: Counters) -> None:
    first = await counters.take([Window("a", 100, 60, 80)], now=100)
    assert not (await counters.take([Window("a", 100, 60, 80)], now=110)).granted
    await counters.settle(first, {"a": 15})
    second = await counters.take([Window("a", 100, 60, 80)], now=110)
    assert second.granted
    assert second.standings[0].remaining == 5
    await counters.settle(second, {"a": 200})  # more than there was
    refused = await counters.take([Window("a", 100, 60, 1)], now=111)
    assert refused.standings[0].wait_s == pytest.approx(59)
    assert (await counters.take([Window("a", 100, 60, 100)], now=170)).granted
    await counters.settle(first, {"a": 100})  # long forgotten: no harm
    assert not (await counters.take([Window("a", 100, 60, 1)], now=171)).granted


async def test_settling_touches_only_what_was_named(counters: Counters) -> None:
    taken = await counters.take([Window("requests", 2, 60), Window("tokens", 100, 60, 90)], now=100)
    await counters.settle(taken, {"tokens": 0})
    again = await counters.take([Window("requests", 2, 60), Window("tokens", 100, 60, 100)], now=100)
    assert [standing.remaining for standing in again.standings] == [0, 0]


async def test_holds_come_back(counters: Counters) -> None:
    first = await counters.take([Hold("h", 2, "one")])
    second = await counters.take([Hold("h", 2, "two")])
    refused = await counters.take([Hold("h", 2, "three")])
    assert [o.granted for o in (first, second, refused)] == [True, True, False]
    assert (refused.standings[0].remaining, refused.standings[0].wait_s) == (0, HOLD_WAIT_S)
    await counters.release(first)
    await counters.release(first)
    assert (await counters.take([Hold("h", 2, "three")])).granted
    assert not (await counters.take([Hold("h", 2, "four")])).granted


async def test_exact_under_concurrency(counters: Counters) -> None:
    claims = [Window("a", 137, 600), Window("tokens", 10**6, 600, 100), Hold("h", 10**4, "{}")]

    async def one(number: int) -> bool:
        await asyncio.sleep(0)
        hold = Hold("h", 10**4, str(number))
        return (await counters.take([*claims[:2], hold])).granted

    granted = await asyncio.gather(*(one(number) for number in range(400)))
    assert sum(granted) == 137
    left = await counters.take([Window("tokens", 10**6, 600, 0), Hold("h", 10**4, "last")])
    assert [standing.remaining for standing in left.standings] == [10**6 - 13_700, 10**4 - 138]


TAKER = """
import asyncio, sys
from stoker.store.protocols import Window
from stoker.store.redis import RedisCounters, RedisServer

async def main():
    server = RedisServer(sys.argv[1], "test:", 30)
    counters = RedisCounters(server)
    outcomes = await asyncio.gather(*(counters.take([Window("shared", 300, 600)]) for _ in range(400)))
    print(sum(outcome.granted for outcome in outcomes))
    await server.close()

asyncio.run(main())
"""


def test_replicas_together_are_granted_exactly_the_limit(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    command = [sys.executable, "-c", TAKER, valkey.url]
    replicas = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    granted = [int(replica.communicate(timeout=60)[0]) for replica in replicas]
    assert sum(granted) == 300


async def test_the_server_s_clock_counts_not_the_replica_s(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    counters = RedisCounters(server)
    seconds = int(valkey.command("TIME").split(b"\r\n")[2])
    outcome = await counters.take([Window("a", 1, 60)])
    assert outcome.stamp is not None
    assert 0 <= outcome.stamp / 1e6 - seconds < SOON_S
    await server.close()


async def test_a_clock_that_is_set_back_locks_nobody_out(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    counters = RedisCounters(server)
    assert (await counters.take([Window("a", 1, 60)], now=10_000)).granted
    back = await counters.take([Window("a", 1, 60)], now=9_990)  # a little: what was taken still counts
    assert not back.granted
    assert back.standings[0].wait_s == pytest.approx(60)
    assert (await counters.take([Window("a", 1, 60)], now=5_000)).granted  # by far: it starts afresh
    await server.close()


async def test_keys_vanish_and_stay_small(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    counters = RedisCounters(server)
    for step in range(5000):
        await counters.take([Window("a", 10**6, 60)], now=1000 + step / 10)
    assert int(valkey.command("STRLEN", "test:{limits}:a")[1:]) < 1500
    assert 0 < int(valkey.command("PTTL", "test:{limits}:a")[1:]) <= 60_000
    await counters.take([Hold("h", 5, "one", ttl_s=20)])
    assert 0 < int(valkey.command("PTTL", "test:{limits}:h")[1:]) <= 20_000
    await counters.close()
    await server.close()


async def test_holds_of_a_killed_replica_run_out_and_those_of_a_living_one_do_not(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    dead, living, other = RedisCounters(server), RedisCounters(server), RedisCounters(server)
    killed, kept = Hold("h", 2, "killed", ttl_s=0.6), Hold("h", 2, "kept", ttl_s=0.6)
    assert (await dead.take([killed])).granted
    assert (await living.take([kept])).granted
    assert not (await other.take([Hold("h", 2, "new")])).granted
    await dead.close()  # renews no more, and releases nothing
    async with asyncio.timeout(SOON_S):
        while valkey.command("ZCOUNT", "test:{limits}:h", "-inf", "+inf") != b":1\r\n":
            await asyncio.sleep(0.1)
            probe = await other.take([Hold("h", 2, "probe")])
            await other.release(probe)
    assert valkey.command("ZSCORE", "test:{limits}:h", "kept") != b"$-1\r\n"
    await living.close()
    await other.close()
    await server.close()


async def test_holds_return_to_a_server_that_lost_its_memory(valkey: RedisProcess) -> None:
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    counters, other = RedisCounters(server), RedisCounters(server)
    taken = await counters.take([Hold("h", 1, "one", ttl_s=0.3)])
    assert taken.granted
    valkey.command("FLUSHALL")
    async with asyncio.timeout(SOON_S):
        while valkey.command("ZCARD", "test:{limits}:h") != b":1\r\n":
            await asyncio.sleep(0.02)
    await counters.release(taken)
    assert (await other.take([Hold("h", 1, "two")])).granted
    await counters.close()
    await other.close()
    await server.close()
