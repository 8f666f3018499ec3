"""Batches on a real log, a real desk and a real disk: stopped at any step, each request is made once and told once."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.job_logs import SOON_S, sqlite_log
from tests.job_work import QUICK, FakeTranslator, observer, pipeline, working

from stoker.admission.auth import Caller
from stoker.admission.limits import RateLimited
from stoker.config import GuardPolicy, RateConfig
from stoker.config.jobs import JobsConfig
from stoker.errors import NotFound
from stoker.jobs import batch_work, batches
from stoker.jobs.batch_shelf import Batch, Mark, Shelf
from stoker.jobs.batches import Batches, Conflict, TooManyBatches, View
from stoker.jobs.desk import JobDesk
from stoker.jobs.files import FileStore
from stoker.store.jobs import JobLog
from stoker.store.protocols import StoreError

ANN = Caller(
    "10.0.0.1", "ann", models=("m",), rate=RateConfig(tokens=10**9), guard=GuardPolicy(mode="off"), trusted=True
)
BOB = Caller("10.0.0.2", "bob")
URL = "/query"


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "POLL_S", 0.01)
    monkeypatch.setattr(batches, "LOOK_S", 0.02)
    monkeypatch.setattr(batches, "_PAUSE_S", 0.01)
    monkeypatch.setattr(batches, "_UNMADE_S", 0.05)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[JobLog]:
    async with sqlite_log(tmp_path / "log") as opened:
        yield opened


@contextlib.asynccontextmanager
async def office(
    directory: Path, log: Any, config: JobsConfig = QUICK, *, desk: Any = None, run: bool = True
) -> AsyncIterator[Batches]:
    """Batches, worked on; with a body bound of 1,000 bytes."""
    files = FileStore(directory / "files", file_octets=1 << 24, total_octets=1 << 26)
    await files.open()
    desk = desk or JobDesk(log, pipeline(), FakeTranslator(), config, None)
    made = Batches(files, desk, config, body_octets=1000, observer=observer())
    running = asyncio.create_task(made.run()) if run else None
    try:
        yield made
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        files.close()


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"text": custom_id, **body}}


async def begin(made: Batches, *lines: dict[str, Any], caller: Caller = ANN, purpose: str = "batch") -> View:
    async with made.files.uploading(caller.principal.tenant) as writing:
        await writing.write(b"".join(orjson.dumps(each) + b"\n" for each in lines))
        file = await made.files.keep(writing, "in.jsonl", purpose)
    return await made.create(caller, URL, file.id)


async def ended(made: Batches, view: View) -> View:
    async with asyncio.timeout(SOON_S):
        while not (found := await made.get(ANN, view.batch.id)).batch.ended:
            await asyncio.sleep(0.01)
    return found


async def rows(made: Batches, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = b"".join([piece async for piece in made.files.pieces("key:ann", file_id)])
    return [orjson.loads(row) for row in content.splitlines()]


async def told(made: Batches, batch: Batch) -> tuple[list[str], list[str]]:
    """The names in the files of answers and of errors."""
    good, bad = await rows(made, batch.output_file_id), await rows(made, batch.error_file_id)
    return [row["custom_id"] for row in good], [row["custom_id"] for row in bad]


async def test_each_request_is_told_in_its_place(tmp_path: Path, log: JobLog) -> None:
    lines = [line(f"{n}", **({"fail": "RequestError"} if n % 10 == 3 else {})) for n in range(450)]
    translator = FakeTranslator()
    async with office(tmp_path, log) as made, working(log, translator):
        view = await begin(made, *lines)
        assert (view.batch.status, view.batch.total) == ("validating", 0)
        done = await ended(made, view)
        good, bad = await told(made, done.batch)
    assert (done.batch.status, done.batch.total, done.completed, done.failed) == ("completed", 450, 405, 45)
    assert good == [f"{n}" for n in range(450) if n % 10 != 3]
    assert bad == [f"{n}" for n in range(450) if n % 10 == 3]
    assert set(Counter(translator.made).values()) == {1}
    caller = translator.callers[0]
    assert (caller.key_name, caller.models) == ("ann", ("m",))


async def test_the_caller_is_kept_as_it_was(tmp_path: Path, log: JobLog) -> None:
    async with office(tmp_path, log, run=False) as made:
        view = await begin(made, line("a"))
        kept = (await made.get(ANN, view.batch.id)).batch.caller
    for name in ("address", "key_name", "models", "rate", "guard", "trusted", "principal"):
        assert getattr(kept, name) == getattr(ANN, name)


class Stopped(Exception):
    """Stands for the end of the process."""


class StoppingShelf(Shelf):
    """Ends the process before or after its `at`-th write."""

    def __init__(self, files: FileStore, at: int, *, after: bool) -> None:
        super().__init__(files)
        self.left = at
        self.after = after
        self.stopped = asyncio.Event()

    async def _perhaps(self, write: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.after:
            await write
        if self.left <= 0:
            if self.left < 0 or not self.after:
                write.close()
            self.stopped.set()
            await asyncio.Event().wait()
        return await write

    async def save(self, batch: Batch) -> None:
        await self._perhaps(super().save(batch))

    async def reject(self, batch: Batch, line: bytes) -> int:
        octets: int = await self._perhaps(super().reject(batch, line))
        return octets


@pytest.mark.parametrize("after", [True, False])
async def test_it_can_be_stopped_at_every_step(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(batch_work, "CHUNK", 4)
    lines: list[dict[str, Any]] = [line(f"{n}") for n in range(14)]
    lines[5]["body"] = lines[9]["body"] = {"no": "text"}
    translator = FakeTranslator()
    stops = 0
    async with working(log, translator):
        for at in range(1, 60):
            directory = tmp_path / f"{at}"
            translator.made.clear()
            async with office(directory, log, run=False) as made:
                view = await begin(made, *lines)
                shelf = StoppingShelf(made.files, at, after=after)
                made._shelf = shelf
                running = asyncio.create_task(made.run())
                finished = asyncio.create_task(ended(made, view))
                stopping = asyncio.create_task(shelf.stopped.wait())
                await asyncio.wait({finished, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stops += shelf.stopped.is_set()
                for task in (running, finished, stopping):
                    task.cancel()
                await asyncio.gather(running, finished, stopping, return_exceptions=True)
            async with office(directory, log) as made:
                done = await ended(made, view)
                good, bad = await told(made, done.batch)
                async with asyncio.timeout(SOON_S):
                    while await made._shelf.marks():
                        await asyncio.sleep(0.005)
                assert not list((directory / "files").rglob("*.rejects"))
            assert bad == ["5", "9"], at
            assert good == [f"{n}" for n in range(14) if n not in {5, 9}], at
            assert sorted(translator.made) == sorted(good), at
            if not shelf.stopped.is_set():
                break
    assert stops > 15


class Moody:
    """A desk that refuses with each of `moods` before it takes anything in; `later` after it has."""

    def __init__(self, desk: JobDesk, moods: Sequence[Exception], later: Sequence[Exception] = ()) -> None:
        self._desk = desk
        self.moods = list(moods)
        self.later = list(later)
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    async def submit(self, orders: Any, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(orders))
        if self.moods:
            raise self.moods.pop(0)
        submission = await self._desk.submit(orders, *args, **kwargs)
        if self.later:
            raise self.later.pop(0)
        return submission


async def test_refusals_that_pass_are_waited_out(tmp_path: Path, log: JobLog) -> None:
    desk = JobDesk(log, pipeline(), FakeTranslator(), QUICK, None)
    moods = [
        RateLimited("wait", retry_after=0.01, headers=[]),
        StoreError("down", "away"),
        RateLimited("never so many", retry_after=None, headers=[]),
    ]
    moody = Moody(desk, moods)
    translator = FakeTranslator()
    async with office(tmp_path, log, desk=moody) as made, working(log, translator):
        done = await ended(made, await begin(made, *(line(f"{n}") for n in range(10))))
    assert (done.batch.status, done.completed, done.failed) == ("completed", 10, 0)
    assert moody.sizes[:4] == [10, 10, 10, 5]
    assert set(Counter(translator.made).values()) == {1}


async def test_what_was_kept_without_being_acknowledged_is_not_asked_twice(tmp_path: Path, log: JobLog) -> None:
    desk = JobDesk(log, pipeline(), FakeTranslator(), QUICK, None)
    moody = Moody(desk, [], [StoreError("timeout", "too slow"), ZeroDivisionError()])
    translator = FakeTranslator()
    async with office(tmp_path, log, desk=moody) as made, working(log, translator):
        done = await ended(made, await begin(made, *(line(f"{n}") for n in range(10))))
    assert (done.completed, done.failed) == (10, 0)
    assert Counter(translator.made) == Counter(f"{n}" for n in range(10))


async def test_what_no_limit_can_ever_grant_is_told_so_and_holds_nothing_up(tmp_path: Path, log: JobLog) -> None:
    caller = Caller(key_name="ann", rate=RateConfig(tokens=1))
    async with office(tmp_path, log) as made, working(log, FakeTranslator()):
        done = await ended(made, await begin(made, line("a"), line("b"), line("c"), caller=caller))
        found = await rows(made, done.batch.error_file_id)
    assert (done.batch.status, done.completed, done.failed) == ("completed", 0, 3)
    assert [(row["custom_id"], row["response"]["status_code"]) for row in found] == [("a", 429), ("b", 429), ("c", 429)]


async def test_only_so_many_are_queued_ahead(tmp_path: Path, log: JobLog) -> None:
    config = QUICK.model_copy(update={"per_key": 20})
    most = 0
    translator = FakeTranslator()
    async with office(tmp_path, log, config) as made:
        views = [await begin(made, *(line(f"{batch}-{n}") for n in range(30))) for batch in range(2)]
        for _ in range(30):
            most = max(most, (await log.counts("key:ann"))["queued"])
            await asyncio.sleep(0.01)
        assert 0 < most <= 20
        async with working(log, translator):
            for view in views:
                assert (await ended(made, view)).completed == 30


async def test_a_batch_that_takes_too_long_expires(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_S", 0.5)
    translator = FakeTranslator()
    async with office(tmp_path, log) as made, working(log, translator, slots=2):
        lines = [line("quick"), *(line(f"slow-{n}", wait=True) for n in range(300))]
        done = await ended(made, await begin(made, *lines))
        good, bad = await told(made, done.batch)
        errors = {row["error"]["code"] for row in await rows(made, done.batch.error_file_id)}
    assert (done.batch.status, done.completed, done.failed) == ("expired", 1, 300)
    assert (good, bad) == (["quick"], [f"slow-{n}" for n in range(300)])
    assert errors <= {"batch_expired", "cancelled"}


async def test_two_processes_share_the_work_and_none_is_done_twice(tmp_path: Path, log: JobLog) -> None:
    translator = FakeTranslator()
    async with office(tmp_path, log) as one, office(tmp_path, log) as two, working(log, translator):
        views = [await begin(made, *(line(f"{n}-{i}") for i in range(20))) for n, made in enumerate((one, two) * 5)]
        for view in views:
            assert (await ended(two, view)).completed == 20
    assert len(translator.made) == len(set(translator.made)) == 200


async def test_results_that_are_gone_are_told_as_lost(tmp_path: Path, log: JobLog) -> None:
    config = QUICK.model_copy(update={"keep": 0.001})
    desk = JobDesk(log, pipeline(), FakeTranslator(), config, None)
    async with office(tmp_path, log, desk=desk) as made, working(log, FakeTranslator()):
        view = await begin(made, line("a"))
        async with asyncio.timeout(SOON_S):
            while not (await made.get(ANN, view.batch.id)).batch.ended:
                await log.collect()
                await asyncio.sleep(0.001)
        done = await made.get(ANN, view.batch.id)
        found = await rows(made, done.batch.output_file_id) + await rows(made, done.batch.error_file_id)
    assert [row["custom_id"] for row in found] == ["a"]


async def test_an_input_that_was_removed_fails_the_batch(tmp_path: Path, log: JobLog) -> None:
    async with office(tmp_path, log, run=False) as made:
        view = await begin(made, line("a"))
        with pytest.raises(Conflict, match=view.batch.id):
            await made.delete_file("key:ann", view.batch.input_file_id)
        for path in (tmp_path / "files").rglob("file-*"):
            path.unlink()
        running = asyncio.create_task(made.run())
        done = await ended(made, view)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (done.batch.status, done.batch.faults[0]["code"]) == ("failed", "input_file_gone")


async def test_marks_without_batches_are_forgotten_and_strange_ones_left(tmp_path: Path, log: JobLog) -> None:
    active = tmp_path / "files" / "active"
    active.mkdir(parents=True)
    mark = Mark("0" * 32, "batch_" + "0" * 32)
    (active / mark.name).touch()
    (active / "README").touch()
    async with office(tmp_path, log), asyncio.timeout(SOON_S):
        while (active / mark.name).exists():
            await asyncio.sleep(0.01)
    assert [path.name for path in active.iterdir()] == ["README"]


async def test_batches_are_their_owners_alone_and_bounded(
    tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "UNENDED", 3)
    async with office(tmp_path, log, run=False) as made:
        views = [await begin(made, line("a")) for _ in range(3)]
        with pytest.raises(TooManyBatches):
            await begin(made, line("a"))
        await begin(made, line("a"), caller=BOB)
        for act in (made.get, made.cancel):
            with pytest.raises(NotFound):
                await act(BOB, views[0].batch.id)
            with pytest.raises(NotFound):
                await act(ANN, "../" + views[0].batch.id)
        page, more = await made.page(ANN, None, 2)
        assert ([view.batch.id for view in page], more) == ([views[2].batch.id, views[1].batch.id], True)
        page, more = await made.page(ANN, views[1].batch.id, 2)
        assert ([view.batch.id for view in page], more) == ([views[0].batch.id], False)


async def test_old_batches_are_forgotten(tmp_path: Path, log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.jobs.batch_shelf.MAX_KEPT", 2)
    async with office(tmp_path, log) as made:
        views = [await ended(made, await begin(made)) for _ in range(3)]
        page, _ = await made.page(ANN, None, 10)
        assert [view.batch.id for view in page] == [views[2].batch.id, views[1].batch.id]
    shutil.rmtree(tmp_path / "files")
