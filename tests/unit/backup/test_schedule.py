"""When backups are made: due times, missed ones, clocks that jump, tries that fail. On a clock of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.backup.order import Result
from stoker.backup.schedule import Schedule, Times, next_time
from stoker.config import Settings
from stoker.errors import ConfigError

MINUTE, HOUR, DAY = 60, 3600, 86_400
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC).timestamp()
GOOD, BAD = Result(ok=True, snapshot="s"), Result(ok=False, reason="no room")
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - what the strategy wants


class World:
    """A schedule in a world whose time passes only while somebody waits, or a backup is made."""

    def __init__(
        self,
        cron: str = "0 3 * * *",
        *,
        results: Sequence[Result] = (),
        takes: float = 90.0,
        made: float | None = None,
        **times: Any,
    ) -> None:
        self.now = START
        self.begun: list[datetime] = []
        self.jumps: dict[float, float] = {}
        self._results = list(results)
        self._takes = takes
        self._until = START
        self.under_way = 0

        async def last_made() -> float | None:
            return made

        settings = Settings(backup={"schedule": cron, "repository": "/srv/backups"})
        self.schedule = Schedule(
            settings,
            times=Times(**{"jitter": 0.0, **times}),
            make=self._make,
            clock=lambda: self.now,
            sleep=self._sleep,
            last_made=last_made,
        )

    async def until(self, hours: float) -> list[str]:
        """Let so many hours pass; when backups began, as day and time."""
        self._until = START + hours * HOUR
        with pytest.raises(asyncio.CancelledError):
            await self.schedule.run()
        return [f"{moment:%d %H:%M}" for moment in self.begun]

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds
        for moment in [moment for moment in self.jumps if self.now >= moment]:
            self.now += self.jumps.pop(moment)
        if self.now >= self._until:
            raise asyncio.CancelledError

    async def _make(self) -> Result:
        self.under_way += 1
        assert self.under_way == 1, "two at once"
        assert self.schedule.running
        self.begun.append(datetime.fromtimestamp(self.now, UTC))
        await self._sleep(self._takes)
        self.under_way -= 1
        return self._results.pop(0) if self._results else GOOD


@pytest.mark.parametrize(
    ("expression", "after", "due"),
    [
        ("0 3 * * *", "2026-11-24T02:59:59", "2026-11-24T03:00:00"),
        ("0 3 * * *", "2026-11-24T03:00:00", "2026-11-25T03:00:00"),
        ("*/15 * * * *", "2026-11-24T03:00:00.5", "2026-11-24T03:15:00"),
        ("30 4 * * mon", "2026-11-24T03:00:00", "2026-11-30T04:30:00"),
        ("0 0 29 2 *", "2026-11-24T03:00:00", "2028-02-29T00:00:00"),
        ("0 2 * * *", "2026-03-28T12:00:00", "2026-03-29T02:00:00"),  # which summer time leaves out
    ],
)
def test_the_next_time(expression: str, after: str, due: str) -> None:
    assert next_time(expression, datetime.fromisoformat(after + "+00:00")) == datetime.fromisoformat(due + "+00:00")


def test_times_are_utc_whatever_zone_is_asked_in() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert next_time("0 3 * * *", datetime(2026, 11, 24, 11, 0, tzinfo=tokyo)) == datetime(
        2026, 11, 24, 3, 0, tzinfo=UTC
    )


@pytest.mark.parametrize("expression", ["never", "61 * * * *", "", "0 0 31 2 *"])
def test_nonsense_is_refused_with_the_setting_s_name(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"backup\.schedule") as caught:
        next_time(expression, datetime(2026, 1, 1, tzinfo=UTC))
    assert caught.value.param == "backup.schedule"


@given(MOMENTS, st.sampled_from(["*/7 * * * *", "0 3 * * *", "15 1,13 * * 0", "0 0 1 * *"]))
def test_the_next_time_is_later_and_there_is_none_between(after: datetime, expression: str) -> None:
    due = next_time(expression, after)
    assert due > after
    assert next_time(expression, due - timedelta(seconds=1)) == due
    between = after + (due - after) / 2
    assert next_time(expression, between) == due


async def test_a_backup_each_night() -> None:
    world = World()
    assert await world.until(60) == ["25 03:00", "26 03:00"]
    assert world.schedule.runs == {"succeeded": 2, "failed": 0}
    assert world.schedule.trouble is None
    assert not world.schedule.running


async def test_the_next_one_is_told() -> None:
    world = World()
    assert world.schedule.next_at == START + 15 * HOUR
    await world.until(20)
    assert world.schedule.next_at == START + 39 * HOUR


async def test_a_time_that_was_missed_while_the_server_was_away_is_made_up_for_at_once() -> None:
    assert await World(made=START - 3 * DAY).until(10) == ["24 12:00"]
    assert await World(made=START - 8 * HOUR).until(10) == []
    assert await World(made=None).until(10) == []  # nothing was ever made: nothing was missed


async def test_a_snapshot_from_the_future_hides_nothing() -> None:
    assert await World(made=START + 30 * DAY).until(40) == ["25 03:00", "26 03:00"]


async def test_times_that_pass_during_a_backup_are_made_up_for_once() -> None:
    world = World("0 * * * *", takes=3.5 * HOUR)
    # 13:00 to 16:30, then one for 14, 15 and 16 o'clock
    assert await world.until(9) == ["24 13:00", "24 16:30", "24 20:00"]


async def test_a_clock_that_is_set_forward_over_several_times_makes_one_backup() -> None:
    world = World()
    world.jumps[START + HOUR] = 5 * DAY
    begun = await world.until(5 * 24 + 6)
    assert len(begun) == 1
    assert begun[0].startswith("29 13:0")


async def test_a_clock_that_was_years_ahead_does_not_stop_backups_for_years() -> None:
    world = World()
    world.jumps[START + HOUR] = -9 * 365 * DAY
    world._until = START
    task = asyncio.create_task(world.schedule.run())
    while len(world.begun) < 2:
        await asyncio.sleep(0)
        world._until = world.now + DAY
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.begun[1] - world.begun[0] == timedelta(days=1)


async def test_a_clock_that_is_corrected_by_a_little_makes_no_second_backup() -> None:
    world = World(takes=1.0)
    world.jumps[START + 15 * HOUR + 1] = -5.0
    assert await world.until(20) == ["25 03:00"]


async def test_replicas_begin_at_times_of_their_own() -> None:
    worlds = [World(jitter=60.0) for _ in range(8)]
    for world in worlds:
        await world.until(20)
    moments = {world.begun[0] for world in worlds}
    assert len(moments) == len(worlds)
    assert all(0 <= moment.minute * 60 + moment.second <= 60 for moment in moments)


@pytest.mark.parametrize(
    ("results", "times", "runs", "trouble"),
    [
        ([BAD], ["03:00", "03:11"], {"succeeded": 1, "failed": 1}, None),
        ([BAD] * 3, ["03:00", "03:11", "03:23", "03:34"], {"succeeded": 1, "failed": 3}, None),
        ([BAD] * 4, ["03:00", "03:11", "03:23", "03:34"], {"succeeded": 0, "failed": 4}, "no room"),
    ],
)
async def test_what_fails_is_tried_again_three_times(
    results: list[Result], times: list[str], runs: dict[str, int], trouble: str | None
) -> None:
    world = World(results=results)
    assert await world.until(24) == [f"25 {time}" for time in times]
    assert world.schedule.runs == runs
    assert world.schedule.trouble == trouble


async def test_the_next_night_forgets_the_trouble() -> None:
    world = World(results=[BAD] * 4)
    await world.until(48)
    assert world.schedule.runs == {"succeeded": 1, "failed": 4}
    assert world.schedule.trouble is None


async def test_a_defect_does_not_end_the_schedule() -> None:
    world = World()
    whole: Callable[[], Any] = world._make
    broken = iter([RuntimeError("a defect")])

    async def make() -> Result:
        for error in broken:
            raise error
        return await whole()

    world.schedule._make = make
    assert await world.until(48) == ["26 03:00"]
    assert not world.schedule.running


async def test_a_repository_that_cannot_be_asked_is_no_reason_not_to_begin() -> None:
    world = World()

    async def broken() -> float | None:
        raise OSError("no")

    world.schedule._last_made = broken
    assert await world.until(20) == ["25 03:00"]


def test_a_schedule_needs_a_time_and_a_place() -> None:
    with pytest.raises(ConfigError, match=r"backup\.repository"):
        Schedule(Settings())
