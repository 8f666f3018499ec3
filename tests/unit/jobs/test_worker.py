"""The worker on a real log in SQLite: every job ends once, whatever becomes of the worker, the store and the engine."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs
from tests.job_logs import SOON_S, sqlite_log
from tests.job_work import (
    QUICK,
    AwayLog,
    FakeTranslator,
    body,
    ended,
    observer,
    queue,
    state_of,
    until,
    working,
)

from stoker.errors import EngineDied, Overloaded
from stoker.jobs.attempt import Telling
from stoker.jobs.envelope import Envelope, unpack_error
from stoker.jobs.worker import Worker
from stoker.store.jobs import EVENTS_KEPT, Beat, Held, JobLog


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[JobLog]:
    async with sqlite_log(tmp_path) as opened:
        yield opened


async def test_a_job_is_made_once_and_its_answer_kept(log: JobLog) -> None:
    translator = FakeTranslator()
    async with working(log, translator) as worker:
        (job,) = await queue(log, body("hi"))
        done = await ended(log, job)
        assert (done.state, done.result, done.error) == ("succeeded", b'{"answer":"hi"}', None)
        assert done.attempts == 1
        await until(lambda: not worker.running)
        assert worker.ended["succeeded"] == 1
    assert translator.made == ["hi"]


async def test_it_is_asked_as_it_was_accepted(log: JobLog) -> None:
    translator = FakeTranslator()
    kept = Envelope(body("hi"), {"cache-control": "no-cache"}, {}, "ann", ("m",), "10.0.0.0/24")
    async with working(log, translator):
        (job,) = await queue(log, body(), request=kept.pack())
        await ended(log, job)
    (caller,) = translator.callers
    assert (caller.key_name, caller.models, caller.address) == ("ann", ("m",), "10.0.0.0/24")
    assert caller.principal.tenant == "key:ann"
    assert translator.headers == [{"cache-control": "no-cache"}]


async def test_no_more_at_once_than_there_are_slots(log: JobLog) -> None:
    translator = FakeTranslator()
    jobs = await queue(log, *(body(f"{n}", wait=True) for n in range(9)))
    async with working(log, translator, slots=3):
        await until(lambda: translator.at_once == 3)
        await asyncio.sleep(0.1)
        assert translator.at_once == 3
        translator.gate.set()
        assert {(await ended(log, job)).state for job in jobs} == {"succeeded"}
    assert translator.most_at_once == 3


async def test_the_configured_number_goes_before_the_slots(log: JobLog) -> None:
    translator = FakeTranslator()
    jobs = await queue(log, *(body(f"{n}", sleep=0.001) for n in range(9)))
    async with working(log, translator, QUICK.model_copy(update={"concurrency": 2}), slots=0):
        for job in jobs:
            await ended(log, job)
    assert translator.most_at_once == 2


async def test_what_passes_is_tried_again_and_then_answered(log: JobLog) -> None:
    translator = FakeTranslator()
    translator.failures["hi"] = [EngineDied("gone"), Overloaded("full", retry_after=0.01)]
    async with working(log, translator) as worker:
        (job,) = await queue(log, body("hi"))
        done = await ended(log, job)
        assert (done.state, done.attempts) == ("succeeded", 3)
        await until(lambda: not worker.running)
        assert worker.ended == Counter(retried=2, succeeded=1)


async def test_a_pause_is_at_least_what_the_error_asks_for(log: JobLog) -> None:
    translator = FakeTranslator()
    translator.failures["hi"] = [Overloaded("full", retry_after=600.0)]
    before = time.time()
    async with working(log, translator) as worker:
        await queue(log, body("hi"))
        await until(lambda: worker.ended["retried"] == 1)
        (waiting,) = (await log.page(bodies=True)).jobs
        assert waiting.state == "queued"
        assert unpack_error(waiting.error or b"")["code"] == "overloaded"
        assert await log.oldest_due_s(before + 599) == 0
        assert await log.oldest_due_s(time.time() + 601) > 0


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ({"fail": "EngineDied"}, "engine_died"),
        ({"break": True}, "internal_error"),
        ({"fail": "EngineError"}, "engine_error"),
    ],
)
async def test_what_never_passes_ends_as_failed_after_the_last_attempt(log: JobLog, what: dict, code: str) -> None:
    translator = FakeTranslator()
    async with working(log, translator):
        (job,) = await queue(log, body("hi", **what), max_attempts=3)
        done = await ended(log, job)
    assert (done.state, done.attempts, done.result) == ("failed", 3, None)
    assert unpack_error(done.error or b"")["code"] == code
    assert translator.made == ["hi"] * 3


@pytest.mark.parametrize("error", ["RequestError", "ContextOverflow", "ModelNotFound", "DeadlineExceeded"])
async def test_what_would_fail_again_is_not_tried_again(log: JobLog, error: str) -> None:
    translator = FakeTranslator()
    async with working(log, translator):
        (job,) = await queue(log, body("hi", fail=error))
        done = await ended(log, job)
    assert (done.state, done.attempts) == ("failed", 1)
    assert unpack_error(done.error or b"")["message"] == "as was asked"


async def test_a_deadline_that_passes_in_the_line_is_tried_again(log: JobLog) -> None:
    translator = FakeTranslator()
    translator.begins = False
    async with working(log, translator):
        (job,) = await queue(log, body("hi", fail="DeadlineExceeded"), max_attempts=2)
        done = await ended(log, job)
    assert (done.state, done.attempts) == ("failed", 2)


@pytest.mark.parametrize("request_", [b"", b"not ours", b"[]\n{}", b'{"key":1'])
async def test_a_stored_request_that_cannot_be_read_fails_in_the_end(log: JobLog, request_: bytes) -> None:
    async with working(log, FakeTranslator()):
        (job,) = await queue(log, body(), request=request_, max_attempts=2)
        assert (await ended(log, job)).state == "failed"


async def test_an_endpoint_of_another_version_fails_at_once(log: JobLog) -> None:
    async with working(log, FakeTranslator()):
        (job,) = await queue(log, body(), endpoint="/v9/dreams")
        done = await ended(log, job)
    assert (done.state, done.attempts) == ("failed", 1)
    assert "/v9/dreams" in unpack_error(done.error or b"")["message"]


async def test_a_result_that_is_too_large_fails_and_is_not_kept(log: JobLog) -> None:
    config = QUICK.model_copy(update={"result_kib": 1})
    async with working(log, FakeTranslator(), config):
        (small,) = await queue(log, body("x", times=1011))
        (large,) = await queue(log, body("x", times=1012))
        done = await ended(log, large)
        assert len((await ended(log, small)).result or b"") == 1024
    assert (done.state, done.attempts, done.result) == ("failed", 1, None)
    assert unpack_error(done.error or b"")["code"] == "result_too_large"


async def test_a_running_job_that_is_cancelled_ends_at_once_when_the_worker_is_told(log: JobLog) -> None:
    translator = FakeTranslator()
    slow = QUICK.model_copy(update={"lease": 3600.0})
    async with working(log, translator, slow) as worker:
        (job,) = await queue(log, body("hi", wait=True))
        await until(lambda: translator.at_once == 1)
        assert await log.cancel(job.id) == "running"
        worker.look_at("another")
        worker.look_at(job.id)
        done = await ended(log, job)
        assert (done.state, done.result) == ("cancelled", None)
        assert translator.at_once == 0
        assert worker.ended["cancelled"] == 1


async def test_a_cancellation_from_elsewhere_comes_with_the_next_beat(log: JobLog) -> None:
    translator = FakeTranslator()
    async with working(log, translator, QUICK.model_copy(update={"lease": 1.0})):
        (job,) = await queue(log, body("hi", wait=True))
        await until(lambda: translator.at_once == 1)
        await log.cancel(job.id)
        assert (await ended(log, job)).state == "cancelled"
        await until(lambda: translator.at_once == 0)


async def test_a_queued_job_that_is_cancelled_is_never_made(log: JobLog) -> None:
    translator = FakeTranslator()
    (job, other) = await queue(log, body("cancelled"), body("other"))
    assert await log.cancel(job.id) == "cancelled"
    async with working(log, translator):
        await ended(log, other)
    assert translator.made == ["other"]


async def test_leases_are_renewed_for_as_long_as_jobs_run(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    translator, renew = FakeTranslator(), log.heartbeat
    renewed: list[tuple[list[str], float, list[Held]]] = []

    async def heartbeat(beats: Sequence[Beat], lease_s: float) -> list[Held]:
        held = await renew(beats, lease_s)
        renewed.append((sorted(beat.id for beat in beats), lease_s, held))
        return held

    monkeypatch.setattr(log, "heartbeat", heartbeat)
    async with working(log, translator) as worker:
        worker._beat_s = 0.01
        jobs = await queue(log, body("one", wait=True), body("two", wait=True))
        await until(lambda: translator.at_once == 2)
        seen = len(renewed)
        await until(lambda: len(renewed) >= seen + 3)
        assert renewed[-1] == (sorted(job.id for job in jobs), QUICK.lease, ["held", "held"])
        translator.gate.set()
        for job in jobs:
            assert (await ended(log, job)).attempts == 1


@pytest.mark.parametrize("lease", [1.0, 5.0, 30.0, 3600.0])
async def test_a_lease_survives_a_beat_that_does_not_come_through(log: JobLog, lease: float) -> None:
    worker = Worker(log, FakeTranslator(), QUICK.model_copy(update={"lease": lease}), observer(), slots=lambda: 1)
    assert 2 * worker._beat_s < lease


async def test_a_job_whose_lease_was_lost_is_dropped_and_its_result_is_another_s(log: JobLog) -> None:
    translator = FakeTranslator()
    away = AwayLog(log)
    async with working(away, translator, QUICK.model_copy(update={"lease": 1.0})) as loser:
        (job,) = await queue(log, body("hi", wait=True))
        await until(lambda: translator.at_once == 1)
        away.away = True
        second = FakeTranslator()
        async with working(log, second):
            second.gate.set()
            done = await ended(log, job)
            assert done.state == "succeeded"
            assert done.attempts >= 2
        away.away = False
        await until(lambda: loser.ended["lost"] == 1)
        assert translator.at_once == 0
    assert (await log.counts())["succeeded"] == 1


async def test_a_result_is_recorded_once_though_two_have_it(log: JobLog) -> None:
    away, translator = AwayLog(log), FakeTranslator()
    async with working(away, translator, QUICK.model_copy(update={"lease": 1.0})) as loser:
        (job,) = await queue(log, body("hi", wait=True))
        await until(lambda: translator.at_once == 1)
        away.away = True
        translator.gate.set()
        await until(lambda: "finish" in away.failed)
        second = FakeTranslator()
        second.gate.set()
        async with working(log, second):
            first = await ended(log, job)
        away.away = False
        await until(lambda: loser.ended["lost"] == 1)
        assert await log.get(job.id) == first
        assert not loser.ended["succeeded"]


async def test_a_store_that_is_away_for_a_while_costs_nothing_but_the_while(log: JobLog) -> None:
    away, translator = AwayLog(log), FakeTranslator()
    jobs = await queue(log, *(body(f"{n}", wait=True, steps=3) for n in range(8)))
    async with working(away, translator) as worker:
        await until(lambda: translator.at_once == 4)
        away.away = True
        translator.gate.set()
        await until(lambda: away.failed.count("finish") >= 4)
        assert worker.running == 4
        await until(lambda: {"finish", "heartbeat", "append"} <= set(away.failed))
        away.away = False
        assert {(await ended(log, job)).state for job in jobs} == {"succeeded"}
    assert sorted(translator.made) == sorted(f"{n}" for n in range(8))


async def test_a_store_that_is_away_from_the_start_is_waited_for(log: JobLog) -> None:
    away = AwayLog(log)
    away.away = True
    (job,) = await queue(log, body())
    with capture_logs() as lines:
        async with working(away, FakeTranslator()):
            await until(lambda: away.failed.count("wait_work") >= 3)
            away.away = False
            await ended(log, job)
    said = Counter(line["event"] for line in lines if line.get("what") == "claim")
    assert said == Counter(job_store_away=1, job_store_back=1)


async def test_a_defect_in_a_round_ends_no_loop(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 0

    async def collect(*_: object) -> None:
        nonlocal broken
        broken += 1
        raise ZeroDivisionError

    monkeypatch.setattr(log, "collect", collect)
    with capture_logs() as lines:
        async with working(log, FakeTranslator()):
            await until(lambda: broken >= 3)
            (job,) = await queue(log, body())
            await ended(log, job)
    assert any(line["event"] == "job_loop_failed" and line["what"] == "collect" for line in lines)


async def test_stopping_gives_back_what_has_not_begun_and_waits_for_the_rest(log: JobLog) -> None:
    begun, waiting = FakeTranslator(), FakeTranslator()
    waiting.begins = False
    (first,) = await queue(log, body("begun", wait=True))
    worker = Worker(log, begun, QUICK, observer(), slots=lambda: 1)
    running = asyncio.create_task(worker.run())
    await until(lambda: begun.at_once == 1)
    (second,) = await queue(log, body("waiting", wait=True))
    idle = Worker(log, waiting, QUICK, observer(), slots=lambda: 1)
    idling = asyncio.create_task(idle.run())
    await until(lambda: waiting.at_once == 1)

    await idle.stop(SOON_S)  # well before that, for what has not begun is given back
    await asyncio.wait_for(idling, SOON_S)
    given_back = await log.get(second.id)
    assert given_back is not None
    assert (given_back.state, given_back.attempts) == ("queued", 0)

    stopping = asyncio.create_task(worker.stop(SOON_S))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    begun.gate.set()
    await stopping
    await asyncio.wait_for(running, SOON_S)
    assert await state_of(log, first) == "succeeded"
    assert await state_of(log, second) == "queued"


async def test_stopping_gives_back_what_takes_too_long(log: JobLog) -> None:
    translator = FakeTranslator()
    (job,) = await queue(log, body("hi", wait=True))
    async with working(log, translator):
        await until(lambda: translator.at_once == 1)
    given_back = await log.get(job.id)
    assert given_back is not None
    assert (given_back.state, given_back.attempts) == ("queued", 0)
    async with working(log, translator):
        translator.gate.set()
        assert (await ended(log, job)).attempts == 1


async def test_what_fails_because_the_server_stops_is_given_back(log: JobLog) -> None:
    translator = FakeTranslator()
    (job,) = await queue(log, body("hi", wait=True, fail="NotReady"), max_attempts=1)
    worker = Worker(log, translator, QUICK, observer(), slots=lambda: 1)
    running = asyncio.create_task(worker.run())
    await until(lambda: translator.at_once == 1)
    stopping = asyncio.create_task(worker.stop(SOON_S))
    await asyncio.sleep(0)
    translator.gate.set()
    await stopping
    await running
    assert await state_of(log, job) == "queued"


async def test_a_worker_whose_store_is_away_stops_nevertheless(log: JobLog) -> None:
    away, translator = AwayLog(log), FakeTranslator()
    (job,) = await queue(log, body("hi", wait=True))
    async with working(away, translator):
        await until(lambda: translator.at_once == 1)
        away.away = True
    assert translator.at_once == 0
    assert await state_of(log, job) == "running"  # until its lease ends


async def test_a_stop_that_is_cut_short_is_finished_by_the_next(log: JobLog) -> None:
    translator = FakeTranslator()
    (job,) = await queue(log, body("hi", wait=True))
    async with working(log, translator) as worker:
        await until(lambda: translator.at_once == 1)
        patient = asyncio.create_task(worker.stop(SOON_S))
        await asyncio.sleep(0.01)
        patient.cancel()
        await asyncio.gather(patient, return_exceptions=True)
        assert translator.at_once == 1
        await worker.stop(0.0)
        assert translator.at_once == 0
    assert await state_of(log, job) == "queued"


async def test_a_worker_that_is_stopped_before_it_runs_does_nothing(log: JobLog) -> None:
    translator = FakeTranslator()
    await queue(log, body())
    worker = Worker(log, translator, QUICK, observer(), slots=lambda: 1)
    await worker.stop(0.0)
    await asyncio.wait_for(worker.run(), SOON_S)
    assert not translator.made


async def test_what_is_told_comes_to_who_follows_in_order_and_before_the_end(log: JobLog) -> None:
    translator = FakeTranslator()
    async with working(log, translator):
        (job,) = await queue(log, body("hi", steps=500, sleep=0.15))
        told = [event.data async for event in log.follow(job.id)]
        again = [event.data async for event in log.follow(job.id, after=490)]
    assert told == [b'{"text":"%d"}' % n for n in range(500)]
    assert again == told[490:]


async def test_each_attempt_tells_anew(log: JobLog) -> None:
    translator = FakeTranslator()
    translator.failures["hi"] = [EngineDied("gone")]
    async with working(log, translator):
        (job,) = await queue(log, body("hi", steps=3))
        told = [(event.attempt, event.data) async for event in log.follow(job.id)]
    pieces = [b'{"text":"%d"}' % n for n in range(3)]
    assert told == [*((1, piece) for piece in pieces), *((2, piece) for piece in pieces)]


def test_what_is_told_is_bounded_by_number_and_by_bytes() -> None:
    telling = Telling()
    for number in range(3 * EVENTS_KEPT):
        telling.add(b"%d" % number)
    assert telling.count == 3 * EVENTS_KEPT
    kept = telling.take()
    assert (len(kept), kept[-1]) == (EVENTS_KEPT, b"%d" % (3 * EVENTS_KEPT - 1))
    for _ in range(5):
        telling.add(b"x" * 400_000)
    assert telling.octets <= 1 << 20
    assert len(telling.take()) == 2
    telling.add(b"x" * 2_000_000)
    assert len(telling.take()) == 1  # a single one may be larger
    assert telling.octets == 0


async def test_progress_is_told_with_the_beats(log: JobLog) -> None:
    translator = FakeTranslator()
    async with working(log, translator, QUICK.model_copy(update={"lease": 1.0})):
        (job,) = await queue(log, body("hi", steps=5, wait=True))
        limit = time.monotonic() + SOON_S
        while (found := await log.get(job.id)) is not None and not found.progress:
            assert time.monotonic() < limit
            await asyncio.sleep(0.01)
        assert found is not None
        assert orjson.loads(found.progress or b"") == {"events": 5, "begun": True, "model": None}
        assert found.worker


async def test_each_attempt_is_recorded_like_a_request(log: JobLog) -> None:
    translator, told = FakeTranslator(), observer()
    translator.failures["hi"] = [EngineDied("gone")]
    kept = Envelope(body("hi"), key="ann", address="10.0.0.0/24").pack()
    with capture_logs() as lines:
        async with working(log, translator, observer=told):
            (job,) = await queue(log, body(), request=kept)
            await ended(log, job)
            (gone,) = await queue(log, body("wait", wait=True))
            await until(lambda: translator.at_once == 1)
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [503, 200, 499]
    assert [line["error"] for line in requests] == ["engine_died", None, None]
    assert [line["request_id"] for line in requests] == [job.id, job.id, gone.id]
    assert {(line["route"], line["key"], line["address"]) for line in requests[:2]} == {
        ("/query", "ann", "10.0.0.0/24")
    }
    assert requests[1]["tokens_out"] == 5
    ends = [(line["ended"], line["attempt"]) for line in lines if line["event"] == "job"]
    assert ends == [("retried", 1), ("succeeded", 2), ("released", 1)]
    counted = told.metrics.render().decode()
    assert 'stoker_requests_total{route="/query",model="",status="200",cache="bypass"} 1' in counted


async def test_nothing_is_left_of_many_jobs(log: JobLog) -> None:
    translator = FakeTranslator()
    jobs = await queue(log, *(body(f"{n}", steps=2) for n in range(300)))
    async with working(log, translator, slots=16) as worker:
        for job in jobs:
            assert (await ended(log, job)).state == "succeeded"
        await until(lambda: not worker.running)
        assert len(asyncio.all_tasks()) < 20
    assert Counter(translator.made) == Counter({f"{n}": 1 for n in range(300)})


async def test_tenants_take_turns(log: JobLog) -> None:
    translator = FakeTranslator()
    await queue(log, *(body(f"crowd {n}") for n in range(20)), tenant="crowd")
    (single,) = await queue(log, body("single"), tenant="single")
    async with working(log, translator, slots=1):
        await ended(log, single)
    assert translator.made.index("single") <= 1
