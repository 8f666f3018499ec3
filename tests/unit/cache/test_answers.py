"""The cache in the path: hits, joins, leaving, failing; with a store in memory and one that is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.cache.answers import AnswerCache, Lookup
from stoker.cache.entry import decode, encode
from stoker.config import CacheConfig
from stoker.errors import DeadlineExceeded, EngineDied, StokerError
from stoker.store.memory import MemoryKeyValue
from stoker.types import Chunk, GenerationRequest, ModelIdentity, Sampling, ToolCallDelta, Usage

MODEL = ModelIdentity("m", "1", "a" * 64)
WORDS = [Chunk(text=f"w{number} ") for number in range(5)]
END = Chunk(finish_reason="stop", usage=Usage(7, 5, 2))


def request(text: str = "hi", seconds: float = 30.0) -> GenerationRequest:
    message = {"role": "user", "content": text}
    deadline = time.monotonic() + seconds
    return GenerationRequest("r", "chat", "m", deadline, (message,), sampling=Sampling(temperature=0.0))  # type: ignore[arg-type]


class Engine:
    """Makes answers, counts them, and waits between words for leave to go on."""

    def __init__(self, *, error: StokerError | None = None, held: bool = False) -> None:
        self.begun = self.cancelled = 0
        self.error = error
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def generate(self) -> AsyncGenerator[Chunk]:
        self.begun += 1
        try:
            for word in WORDS:
                yield word
                await self.go.wait()
            if self.error is not None:
                raise self.error
            yield END
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class House:
    def __init__(self, config: CacheConfig | None = None) -> None:
        self.store = MemoryKeyValue(1 << 20)
        self.cache = AnswerCache(config or CacheConfig(), self.store, b"")

    async def ask(self, engine: Engine, asked: GenerationRequest | None = None) -> tuple[str, str]:
        """The text, and how the cache served it."""
        lookup = Lookup()
        chunks = self.cache.answer(asked or request(), MODEL, lookup, engine.generate)
        async with aclosing(chunks):
            text = "".join([chunk.text async for chunk in chunks])
        return text, lookup.outcome


TEXT = "".join(word.text for word in WORDS)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_a_miss_then_hits() -> None:
    house, engine = House(), Engine()
    assert await house.ask(engine) == (TEXT, "miss")
    assert await house.ask(engine) == (TEXT, "hit")
    assert await house.ask(engine, request("other")) == (TEXT, "miss")
    assert engine.begun == 2


async def test_a_hit_has_its_age_and_everything_else() -> None:
    house, lookup = House(), Lookup()
    await house.ask(Engine())
    chunks = [c async for c in house.cache.answer(request(), MODEL, lookup, Engine().generate)]
    assert lookup.age_s is not None
    assert 0 <= lookup.age_s < 5
    assert chunks[-1] == END
    assert chunks[0].text == TEXT


async def test_many_at_once_are_one_generation_and_late_ones_hear_everything() -> None:
    house, engine = House(), Engine(held=True)
    early = [asyncio.create_task(house.ask(engine)) for _ in range(50)]
    await settled(lambda: engine.begun == 1)
    await asyncio.sleep(0.01)
    late = asyncio.create_task(house.ask(engine))
    await asyncio.sleep(0.01)
    engine.go.set()
    outcomes = [outcome for _, outcome in await asyncio.gather(*early, late)]
    assert outcomes.count("miss") == 1
    assert outcomes.count("joined") == 50
    assert {text for text, _ in await asyncio.gather(*early, late)} == {TEXT}
    assert engine.begun == 1
    assert not len(house.cache.flights)


async def test_followers_are_served_live() -> None:
    house, engine = House(), Engine(held=True)
    first, second = (house.cache.answer(request(), MODEL, Lookup(), engine.generate) for _ in range(2))
    assert (await anext(first)).text == "w0 "
    assert (await anext(second)).text == "w0 "  # though the generation is far from its end
    await first.aclose()
    await second.aclose()


async def test_the_first_may_leave_and_the_last_one_ends_it() -> None:
    house, engine = House(), Engine(held=True)
    leader, follower, third = (asyncio.create_task(house.ask(engine)) for _ in range(3))
    await settled(lambda: engine.begun == 1)
    await asyncio.sleep(0.01)
    leader.cancel()
    await asyncio.sleep(0.01)
    assert engine.cancelled == 0
    third.cancel()
    follower.cancel()
    await asyncio.gather(leader, follower, third, return_exceptions=True)
    assert engine.cancelled == 1
    assert not len(house.cache.flights)
    engine.go.set()
    assert await house.ask(engine) == (TEXT, "miss")  # nothing of it was kept


async def test_errors_reach_everybody_and_are_not_kept() -> None:
    house, engine = House(), Engine(error=EngineDied("gone"), held=True)
    asking = [asyncio.create_task(house.ask(engine)) for _ in range(3)]
    await settled(lambda: engine.begun == 1)
    engine.go.set()
    assert all(isinstance(result, EngineDied) for result in await asyncio.gather(*asking, return_exceptions=True))
    assert await house.ask(Engine()) == (TEXT, "miss")


async def test_who_has_more_time_than_the_first_is_not_cut_off_with_it() -> None:
    house = House()
    begun = []

    async def slow() -> AsyncGenerator[Chunk]:
        begun.append(1)
        if len(begun) == 1:
            await asyncio.sleep(0.05)
            raise DeadlineExceeded("the first one's")
        yield END

    hasty = asyncio.create_task(_drain(house.cache.answer(request(seconds=0.05), MODEL, Lookup(), slow)))
    await settled(lambda: bool(begun))
    patient = asyncio.create_task(_drain(house.cache.answer(request(), MODEL, Lookup(), slow)))
    assert await patient == [END]
    with pytest.raises(DeadlineExceeded):
        await hasty


async def test_who_has_less_time_leaves_at_its_own_deadline() -> None:
    house, engine = House(), Engine(held=True)
    patient = asyncio.create_task(house.ask(engine))
    await settled(lambda: engine.begun == 1)
    with pytest.raises(DeadlineExceeded):
        await house.ask(engine, request(seconds=0.05))
    engine.go.set()
    assert await patient == (TEXT, "miss")


async def test_what_is_too_large_or_cut_off_is_not_stored() -> None:
    house = House(CacheConfig(max_entry_kib=1))

    async def long() -> AsyncGenerator[Chunk]:
        yield Chunk(text="x" * 2000)
        yield END

    async def cut() -> AsyncGenerator[Chunk]:
        yield replace(END, finish_reason="length")

    for source in (long, cut):
        for _ in range(2):
            lookup = Lookup()
            await _drain(house.cache.answer(request(source.__name__), MODEL, lookup, source))
            assert lookup.outcome == "miss"
    assert house.store.entries == 0


async def test_declining_neither_reads_nor_joins_nor_stores() -> None:
    house, engine = House(), Engine()
    declined = replace(request(), cache=False)
    assert await house.ask(engine, declined) == (TEXT, "bypass")
    assert await house.ask(engine) == (TEXT, "miss")
    assert await house.ask(engine, replace(request(), cache=False)) == (TEXT, "bypass")


async def test_clearing_by_model_and_all() -> None:
    house, other = House(), ModelIdentity("n", "1", "b" * 64)
    await house.ask(Engine())
    await _drain(house.cache.answer(request(), other, Lookup(), Engine().generate))
    assert await house.cache.clear(other) == 1
    assert await house.ask(Engine()) == (TEXT, "hit")
    assert await house.cache.clear(None) == 1
    assert await house.ask(Engine()) == (TEXT, "miss")


class Nonsense(MemoryKeyValue):
    """A store in which somebody else has written."""

    raw = b""

    async def get(self, _key: str) -> bytes | None:
        return self.raw


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"finish": 1, "calls": 3}', b"\xff", b"null"])
async def test_nonsense_in_the_store_is_a_miss(raw: bytes) -> None:
    house, store = House(), Nonsense(1000)
    store.raw = raw
    house.cache = AnswerCache(CacheConfig(), store, b"")
    assert await house.ask(Engine()) == (TEXT, "miss")


async def _drain(chunks: AsyncGenerator[Chunk]) -> list[Chunk]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


texts = st.text(max_size=20)
deltas = st.builds(ToolCallDelta, st.integers(0, 2), st.none() | texts, st.none() | texts, texts)
pieces = st.builds(Chunk, texts, texts, st.lists(deltas, max_size=2).map(tuple))


@given(st.lists(pieces, max_size=6))
def test_an_entry_says_what_the_stream_said(said: list[Chunk]) -> None:
    entry = decode(encode([*said, END], 12.5))
    assert entry is not None
    assert entry.made_at == 12.5
    back = entry.chunks
    assert "".join(c.text for c in back) == "".join(c.text for c in said)
    assert "".join(c.reasoning for c in back) == "".join(c.reasoning for c in said)
    assert back[-1].finish_reason == "stop"
    assert back[-1].usage == END.usage
    for index in range(3):
        arguments = "".join(d.arguments for c in said for d in c.tool_calls if d.index == index)
        made = sorted({d.index for c in said for d in c.tool_calls})
        if index in made:
            (call,) = [d for c in back for d in c.tool_calls if d.index == made.index(index)]
            assert call.arguments == arguments
