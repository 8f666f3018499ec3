"""Bells: no news is lost between looking and waiting, and nobody who left is remembered."""

from __future__ import annotations

import asyncio

from stoker.store.bells import Bells


async def test_news_while_one_looks_is_heard() -> None:
    bells = Bells()
    with bells.watch("a") as bell:
        bell.hush()
        bells.ring(["a", "nobody's"])
        assert await bell.heard(0)
        bell.hush()
        assert not await bell.heard(0.01)
        bells.ring(["b"])
        assert not await bell.heard(0)
        bells.ring_all()
        assert await bell.heard(0)


async def test_all_who_wait_hear_it_and_nobody_else_is_kept() -> None:
    bells = Bells()

    async def wait() -> bool:
        with bells.watch("a") as bell:
            return await bell.heard(30)

    waiting = [asyncio.create_task(wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert bells.topics == ["a"]
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert bells.watched("a")
    bells.ring(["a"])
    assert await asyncio.gather(*waiting[1:]) == [True, True]
    assert bells.topics == []
    assert not bells.watched("a")
