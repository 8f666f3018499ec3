"""Redis that is killed, revived, paused, emptied or closed to us, in the middle of work."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import structlog
from pydantic import SecretStr
from tests.redis_server import RedisProcess

from stoker.config.serving import StoreConfig
from stoker.errors import ConfigError
from stoker.store.circuit import Circuit
from stoker.store.fallback import FallbackCounters, FallbackKeyValue
from stoker.store.memory_counters import MemoryCounters
from stoker.store.opening import Stores, open_stores
from stoker.store.protocols import Hold, StoreError, Window
from stoker.store.redis import RedisCounters, RedisKeyValue, RedisServer

SOON_S = 30.0  # what is waited for at most; nothing is measured
LIMIT = 10
SECRET = "hunter2"


class Replica:
    """One gateway's view of the store, with short pauses between probes."""

    def __init__(self, url: str, timeout: float = 0.2) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()
        self.server = RedisServer(url, "test:", timeout)
        self.circuit = Circuit(self.server.name, self.server.probe, self._count, pause_s=0.05, notice_every_s=600)
        self.shared = RedisCounters(self.server)
        self.counters = FallbackCounters(self.shared, MemoryCounters(), self.circuit)
        self.values = FallbackKeyValue(RedisKeyValue(self.server), self.circuit)

    def _count(self, operation: str, error: str) -> None:
        self.failures[operation, error] += 1

    async def grants(self, attempts: int = 2 * LIMIT) -> int:
        outcomes = [await self.counters.take([Window("a", LIMIT, 600)]) for _ in range(attempts)]
        return sum(outcome.granted for outcome in outcomes)

    async def well_again(self) -> None:
        async with asyncio.timeout(SOON_S):
            while not self.circuit.closed:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.circuit.close()
        await self.counters.close()
        await self.server.close()


@pytest.fixture
def valkey() -> Iterator[RedisProcess]:
    with RedisProcess() as running:
        yield running


@pytest_asyncio.fixture
async def replicas(valkey: RedisProcess) -> AsyncIterator[list[Replica]]:
    opened = [Replica(valkey.url), Replica(valkey.url)]
    yield opened
    for replica in opened:
        await replica.close()


async def test_limits_stay_within_the_number_of_replicas(valkey: RedisProcess, replicas: list[Replica]) -> None:
    first, second = replicas
    granted = Counter({first: await first.grants(6), second: await second.grants(2)})
    assert granted.total() == 8
    valkey.kill()
    granted += Counter({replica: await replica.grants() for replica in replicas})
    assert granted == {first: LIMIT, second: LIMIT}  # what each had granted before counted
    valkey.start()  # and remembers nothing
    for replica in replicas:
        await replica.well_again()
        assert await replica.grants() == 0
    assert first.failures["take", "connection"] == 1
    assert first.failures["take", "down"] > 0


async def test_a_server_that_forgot_everything_loosens_nothing(valkey: RedisProcess, replicas: list[Replica]) -> None:
    assert await replicas[0].grants() == LIMIT
    valkey.command("FLUSHALL")
    assert await replicas[0].grants() == 0
    assert not replicas[0].failures
    # What the record refused was given back to the shared store, so that others have it.
    assert await replicas[1].grants() == LIMIT


async def test_places_that_the_record_refuses_are_given_back(valkey: RedisProcess, replicas: list[Replica]) -> None:
    first, second = replicas
    held = await first.counters.take([Hold("h", 1, "one")])
    valkey.command("FLUSHALL")
    assert not (await first.counters.take([Hold("h", 1, "two")])).granted
    other = await second.counters.take([Hold("h", 1, "three")])
    assert other.granted
    await second.counters.release(other)
    await first.counters.release(held)
    assert (await first.counters.take([Hold("h", 1, "four")])).granted


async def test_a_request_that_began_in_an_outage_ends_after_it(valkey: RedisProcess, replicas: list[Replica]) -> None:
    replica = replicas[0]
    claims = [Window("tokens", 100, 600, 90), Hold("h", 1, "one")]
    valkey.kill()
    alone = await replica.counters.take(claims)
    assert alone.granted
    assert not (await replica.counters.take(claims)).granted
    valkey.start()
    await replica.well_again()
    await replica.counters.settle(alone, {"tokens": 10})
    await replica.counters.release(alone)
    both = await replica.counters.take(claims)
    assert both.granted
    valkey.kill()
    await replica.counters.settle(both, {"tokens": 0})
    await replica.counters.release(both)
    again = await replica.counters.take(claims)
    assert again.granted
    assert again.standings[0].remaining == 0


async def test_a_paused_server_is_a_miss_and_is_not_waited_for_again(
    valkey: RedisProcess, replicas: list[Replica]
) -> None:
    replica = replicas[0]
    await replica.values.set("kept", b"value", 60)
    assert await replica.values.get("kept") == b"value"
    valkey.pause()
    async with asyncio.timeout(SOON_S):
        assert await replica.values.get("kept") is None
        await replica.values.set("lost", b"value", 60)
        for _ in range(100):
            assert await replica.values.get("kept") is None
        assert await replica.grants() == LIMIT
    assert replica.failures["get", "timeout"] == 1
    assert replica.failures["get", "down"] == 100
    assert replica.failures["set", "down"] == 1
    assert replica.failures["take", "down"] == 2 * LIMIT
    valkey.resume()
    await replica.well_again()
    assert await replica.values.get("kept") == b"value"
    assert await replica.values.get("lost") is None


async def test_answers_that_came_too_late_are_nobody_else_s(valkey: RedisProcess) -> None:
    server = RedisServer(valkey.url, "test:", 0.2)
    values = RedisKeyValue(server)
    names = [str(number) for number in range(200)]
    for name in names:
        await values.set(name, name.encode(), 60)
    valkey.pause()
    late = await asyncio.gather(*(values.get(name) for name in names), return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in late)
    assert Counter(answer.reason for answer in late if isinstance(answer, StoreError))["timeout"] <= 32
    valkey.resume()
    patient = RedisKeyValue(RedisServer(valkey.url, "test:", SOON_S))
    server.timeout = SOON_S
    for asked in (patient, values):
        assert await asyncio.gather(*(asked.get(name) for name in names)) == [name.encode() for name in names]
    await patient._server.close()
    await server.close()


async def test_a_gateway_that_is_late_itself_does_not_blame_the_server(replicas: list[Replica]) -> None:
    values = replicas[0].values
    await values.set("a", b"1", 60)
    asking = [asyncio.create_task(values.get("a")) for _ in range(5)]
    await asyncio.sleep(0)  # the question is sent
    time.sleep(2 * replicas[0].server.timeout)  # and the event loop stands still, as without CPU
    assert await asyncio.gather(*asking) == [b"1"] * 5
    assert not replicas[0].failures


async def test_a_caller_that_leaves_takes_no_place_with_it(valkey: RedisProcess) -> None:
    replica = Replica(valkey.url, timeout=SOON_S)
    valkey.pause()
    taking = asyncio.create_task(replica.counters.take([Hold("h", 1, "one", ttl_s=0.2)]))
    await asyncio.sleep(0.05)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert taking.cancelled()
    valkey.resume()
    async with asyncio.timeout(SOON_S):
        while not (await replica.counters.take([Hold("h", 1, "two")])).granted:
            await asyncio.sleep(0.02)
    assert not replica.failures
    await replica.close()


async def test_scripts_that_the_server_forgot_are_sent_again(valkey: RedisProcess, replicas: list[Replica]) -> None:
    assert await replicas[0].grants(3) == 3
    valkey.command("SCRIPT", "FLUSH")
    assert await replicas[0].grants() == LIMIT - 3
    assert not replicas[0].failures


async def test_a_broken_ring_starts_afresh(valkey: RedisProcess, replicas: list[Replica]) -> None:
    valkey.command("SET", "test:{limits}:a", "garbage")
    assert await replicas[0].grants() == LIMIT
    assert not replicas[0].failures


async def test_deleting_is_not_pretended(valkey: RedisProcess, replicas: list[Replica]) -> None:
    valkey.kill()
    with pytest.raises(StoreError):
        await replicas[0].values.delete_prefix("model:")
    with pytest.raises(StoreError):
        await replicas[0].values.delete("model:1")


async def test_a_server_that_refuses_writes_is_down(valkey: RedisProcess, replicas: list[Replica]) -> None:
    valkey.command("REPLICAOF", "127.0.0.1", "1")
    valkey.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    assert await replicas[0].grants() == LIMIT
    assert replicas[0].failures["take", "response"] == 1
    await asyncio.sleep(0.3)
    assert not replicas[0].circuit.closed  # its PING is fine, and yet it is of no use
    valkey.command("REPLICAOF", "NO", "ONE")
    await replicas[0].well_again()


async def test_the_log_says_it_once_and_says_when_it_is_over(valkey: RedisProcess, replicas: list[Replica]) -> None:
    with structlog.testing.capture_logs() as lines:
        valkey.kill()
        for _ in range(50):
            await replicas[0].values.get("a")
        valkey.start()
        await replicas[0].well_again()
    assert [line["event"] for line in lines] == ["store_down", "store_back"]
    assert lines[0]["log_level"] == "warning"
    assert str(valkey.socket) in lines[0]["server"]


async def test_the_password_is_told_to_nobody() -> None:
    with RedisProcess("--requirepass", SECRET) as valkey, structlog.testing.capture_logs() as lines:
        opened = Replica(f"unix://:{SECRET}@{valkey.socket}")
        assert await opened.grants() == LIMIT
        assert not opened.failures
        await opened.close()
        wrong = Replica(f"unix://:{SECRET}-not@{valkey.socket}")
        assert await wrong.grants() == LIMIT
        assert wrong.failures["take", "connection"] == 1
        with pytest.raises(StoreError) as failed:
            await wrong.server.probe()
        await wrong.close()
    assert SECRET not in json.dumps(lines)
    assert SECRET not in failed.value.message
    assert failed.value.__cause__ is None


def test_what_the_server_quotes_of_our_words_is_not_repeated() -> None:
    server = RedisServer(f"redis://user:{SECRET}%21@host:1/0", "test:", 1)
    quoted = f"ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'user' '{SECRET}!'"
    assert server._clean(ValueError(quoted)).endswith("'user' '***'")


@pytest.mark.parametrize("url", [f"http://:{SECRET}@host", f"redis://:{SECRET}@host:port", f"redis://h:1/?db={SECRET}"])
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RedisServer(url, "test:", 1)
    assert refused.value.param == "store.redis"
    assert SECRET not in refused.value.message
    assert refused.value.__suppress_context__


async def test_opening(valkey: RedisProcess) -> None:
    failures: list[tuple[str, str]] = []

    def opened(url: str | None) -> Stores:
        redis = None if url is None else SecretStr(url)
        return open_stores(StoreConfig(redis=redis), 1 << 20, lambda *failure: failures.append(failure))

    memory, shared = opened(None), opened(valkey.url)
    dead = opened("redis://user:pw@127.0.0.1:1/0")
    assert [stores.description for stores in (memory, shared, dead)] == [
        "memory",
        f"redis at {valkey.socket}",
        "redis at 127.0.0.1:1",
    ]
    for stores in (memory, shared, dead):
        await stores.key_value.set("a", b"1", 60)
        assert (await stores.counters.take([Window("a", 1, 60)])).granted
        assert not (await stores.counters.take([Window("a", 1, 60)])).granted
    assert [await stores.key_value.get("a") for stores in (memory, shared, dead)] == [b"1", b"1", None]
    assert await memory.ping() is None
    assert await shared.ping() is None
    assert "127.0.0.1:1" in str(await dead.ping())
    assert "pw" not in str(await dead.ping())
    assert failures[0] == ("set", "connection")
    for stores in (memory, shared, dead):
        await stores.close()
