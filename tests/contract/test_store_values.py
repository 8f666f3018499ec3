"""What every store of values must do, in memory, in Redis, and in Redis with a fallback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.redis_server import RedisProcess

from stoker.store.circuit import Circuit
from stoker.store.fallback import FallbackKeyValue
from stoker.store.memory import MemoryKeyValue
from stoker.store.protocols import KeyValue
from stoker.store.redis import RedisKeyValue, RedisServer


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest_asyncio.fixture(params=["memory", "redis", "fallback"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[KeyValue]:
    if request.param == "memory":
        yield MemoryKeyValue(1 << 20)
        return
    valkey = request.getfixturevalue("valkey")
    valkey.command("FLUSHALL")
    server = RedisServer(valkey.url, "test:", 10)
    shared = RedisKeyValue(server)
    circuit = Circuit(server.name, server.probe, lambda *_: None)
    yield FallbackKeyValue(shared, circuit) if request.param == "fallback" else shared
    await circuit.close()
    await server.close()


async def test_a_value_comes_back_until_it_is_deleted(store: KeyValue) -> None:
    assert await store.get("a") is None
    await store.set("a", b"\x00\xffbytes\r\n", 60)
    assert await store.get("a") == b"\x00\xffbytes\r\n"
    await store.set("a", b"", 60)
    assert await store.get("a") == b""
    await store.delete("a")
    await store.delete("a")
    assert await store.get("a") is None


async def test_a_value_does_not_outlive_its_time(store: KeyValue) -> None:
    await store.set("short", b"1", 0.02)
    await store.set("long", b"2", 60)
    await asyncio.sleep(0.05)
    assert await store.get("short") is None
    assert await store.get("long") == b"2"


async def test_prefixes_are_taken_literally(store: KeyValue) -> None:
    names = ["m*:1", "m*:2", "m:1", "mx:1", "[m]:1", "m?:1", "m\\:1", "é:1"]
    for name in names:
        await store.set(name, b"x", 60)
    assert await store.delete_prefix("m*:") == 2
    assert await store.delete_prefix("[m]") == 1
    assert await store.delete_prefix("m?") == 1
    assert await store.delete_prefix("m\\") == 1
    assert await store.delete_prefix("é") == 1
    assert await store.delete_prefix("none") == 0
    assert [name for name in names if await store.get(name)] == ["m:1", "mx:1"]


async def test_many_values_by_prefix(store: KeyValue) -> None:
    await asyncio.gather(*(store.set(f"many:{n}", b"%d" % n, 60) for n in range(2500)))
    await store.set("other", b"o", 60)
    assert await store.get("many:2499") == b"2499"
    assert await store.delete_prefix("many:") == 2500
    assert await store.get("other") == b"o"


async def test_sizes_are_those_of_this_process(store: KeyValue) -> None:
    await store.set("a", b"x" * 1000, 60)
    here = isinstance(store, MemoryKeyValue)
    assert (store.entries, store.octets > 1000) == ((1, True) if here else (0, False))
