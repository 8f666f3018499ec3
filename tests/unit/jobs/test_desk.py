"""The desk on a real log in SQLite and the real pipeline: what is taken in, what is refused, and what is given out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.job_logs import sqlite_log
from tests.job_work import AwayLog, FakeTranslator, ended, order, pipeline, record, working

from stoker.admission.auth import Caller, Forbidden
from stoker.admission.limits import RateLimited
from stoker.config import ExpertConfig, RateConfig, Settings
from stoker.config.jobs import JobsConfig
from stoker.errors import ModelNotFound, NotFound, RequestError, StokerError
from stoker.jobs.desk import IdempotencyInFlight, JobDesk, Order
from stoker.jobs.document import job_document, message
from stoker.jobs.envelope import Envelope, pack_callback, pack_deliveries, pack_error, unpack_callback
from stoker.jobs.ids import Ids
from stoker.jobs.webhooks import Attempt, WebhookPolicy
from stoker.store.jobs import IdempotencyMismatch, Job, JobLog, QueueFull, Submission
from stoker.store.protocols import StoreError

ANN = Caller("10.0.0.1", "ann")
BOB = Caller("10.0.0.2", "bob")
NOBODY = Caller("10.0.0.3")
ADMIN = Caller("10.0.0.4", "root", frozenset({"inference", "admin"}))
HOOKS = WebhookPolicy((b"a secret of more than 24 bytes",), 3, 1.0, 10.0, 5.0, allow_private=False)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[JobLog]:
    async with sqlite_log(tmp_path) as opened:
        yield opened


def make_desk(log: Any, config: JobsConfig | None = None, settings: Settings | None = None, **more: Any) -> JobDesk:
    models = more.pop("models", ("m", "other"))
    policy = more.pop("policy", HOOKS)
    return JobDesk(log, pipeline(settings, models), FakeTranslator(), config or JobsConfig(), policy, **more)


async def submit(
    desk: JobDesk, *orders: Order, caller: Caller = ANN, headers: Mapping[str, str] | None = None, **more: Any
) -> Submission:
    return await desk.submit(orders or [order()], caller, headers or {}, record(), **more)


async def test_what_is_taken_in_is_kept_whole(log: JobLog) -> None:
    desk = make_desk(log)
    wanted = order("hi", metadata={"a": "b"}, batch="batch_1", custom_id="one", callback_url="https://example.com/h")
    before = time.time()
    (job,) = (await submit(desk, wanted, headers={"cache-control": "no-cache", "authorization": "secret"})).jobs
    kept = await log.get(job.id)
    assert kept is not None
    assert (kept.state, kept.tenant, kept.endpoint) == ("queued", "key:ann", "/query")
    assert (kept.batch, kept.custom_id, kept.max_attempts) == ("batch_1", "one", JobsConfig().attempts)
    assert kept.expires_at == pytest.approx(before + 86_400, abs=30)
    assert unpack_callback(kept.callback or b"") == "https://example.com/h"
    assert b"secret" not in kept.request
    envelope = Envelope.unpack(kept.request)
    assert envelope == Envelope(wanted.body, {"cache-control": "no-cache"}, {"a": "b"}, "ann", (), "10.0.0.0/24")


async def test_ids_are_given_in_the_order_of_orders(log: JobLog) -> None:
    jobs = (await submit(make_desk(log), *(order(f"{n}", custom_id=f"{n}") for n in range(300)))).jobs
    assert [job.custom_id for job in jobs] == [f"{n}" for n in range(300)]
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)


def test_ids_ascend_even_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids()
    moments = iter([5_000_000_000_000, 5_000_000_000_000, 4_000_000_000_000, 6_000_000_000_000])
    monkeypatch.setattr("stoker.jobs.ids.time.time_ns", lambda: next(moments))
    made = [ids.next() for _ in range(4)]
    assert made == sorted(made)
    assert len(set(made)) == 4
    assert all(len(one) == 32 and one[12] == "7" and one[16] in "89ab" for one in made)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (order(endpoint="/v1/models"), "endpoint"),
        (Order("/query", b"{}"), "text"),
        (order(callback_url="https://10.0.0.1/"), "callback_url"),
        (order(callback_url="nonsense"), "callback_url"),
        (order(expires_at=1.0), "expires_in"),
        (order(not_before=4e9, expires_at=3e9), "not_before"),
        (order(metadata={f"{n}": "" for n in range(17)}), "metadata"),
        (order(metadata={"a": "x" * 513}), "metadata"),
        (order(metadata={"x" * 65: ""}), "metadata"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_field_and_nothing_kept(log: JobLog, wanted: Order, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        await submit(make_desk(log), order("fine"), wanted)
    assert caught.value.param == param
    assert not (await log.page()).jobs


async def test_a_model_that_is_not_there_or_not_for_this_key_is_refused_at_once(log: JobLog) -> None:
    desk = make_desk(log)
    with pytest.raises(ModelNotFound):
        await submit(desk, order(model="none such"))
    with pytest.raises(Forbidden):
        await submit(desk, order(model="other"), caller=replace(ANN, models=("m",)))
    await submit(desk, order(model="m"), caller=replace(ANN, models=("m",)))
    with pytest.raises(Forbidden):
        await submit(desk, order(model="other", endpoint="/v1/embeddings"), caller=replace(ANN, models=("m",)))


async def test_no_webhooks_no_callbacks(log: JobLog) -> None:
    with pytest.raises(RequestError) as caught:
        await submit(make_desk(log, policy=None), order(callback_url="https://example.com/"))
    assert caught.value.param == "callback_url"


async def test_too_many_at_once_are_refused(log: JobLog) -> None:
    desk = make_desk(log)
    for orders in ([], [order()] * 1001):
        with pytest.raises(RequestError):
            await desk.submit(orders, ANN, {}, record())


async def test_headers_that_choose_an_expert_are_kept(log: JobLog) -> None:
    experts = (ExpertConfig(name="legal", model="m", description="law", header="x-team: law"),)
    settings = Settings(models=({"name": "m", "source": "m.gguf"},), routing={"experts": experts})
    desk = make_desk(log, settings=settings)
    (job,) = (await submit(desk, headers={"x-team": "law", "x-other": "no"})).jobs
    kept = await desk.get(job.id, ANN)
    assert Envelope.unpack(kept.request).headers == {"x-team": "law"}


async def test_a_submission_is_one_request_and_pays_for_all_its_tokens(log: JobLog) -> None:
    limits = {"key": RateConfig(requests=2, tokens=100_000, window=60)}
    desk = make_desk(log, settings=Settings(rate_limits=limits, generation={"max_tokens": 16}))
    first = record()
    await desk.submit([order(), order()], ANN, {}, first)
    headers = dict(first.headers)
    assert headers[b"x-ratelimit-remaining-requests"] == b"1"
    left = int(headers[b"x-ratelimit-remaining-tokens"])
    second = record()
    await desk.submit([order()], ANN, {}, second)
    spent = left - int(dict(second.headers)[b"x-ratelimit-remaining-tokens"])
    assert 100_000 - left == 2 * spent > 0  # and nothing of it was given back
    with pytest.raises(RateLimited):
        await submit(desk)
    assert len((await log.page()).jobs) == 3


async def test_no_place_among_those_at_once_is_held(log: JobLog) -> None:
    desk = make_desk(log, settings=Settings(rate_limits={"key": RateConfig(concurrency=1)}))
    for _ in range(5):
        await submit(desk)


async def test_what_could_not_be_kept_costs_no_tokens(log: JobLog) -> None:
    away = AwayLog(log)
    limits = {"key": RateConfig(tokens=1100, window=60)}
    desk = make_desk(away, settings=Settings(rate_limits=limits))
    away.away = True
    for _ in range(5):
        with pytest.raises(StoreError):
            await submit(desk)
    away.away = False
    await submit(desk)


async def test_a_full_queue_is_said_with_when_to_come_again(log: JobLog) -> None:
    desk = make_desk(log, JobsConfig(per_key=2, total=3))
    await submit(desk, order(), order())
    with pytest.raises(QueueFull) as caught:
        await submit(desk)
    assert (caught.value.status, caught.value.scope) == (429, "tenant")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    await submit(desk, caller=BOB)
    with pytest.raises(QueueFull) as caught:
        await submit(desk, caller=NOBODY)
    assert caught.value.scope == "total"


async def test_the_same_key_gives_the_same_job_and_costs_nothing_more(log: JobLog) -> None:
    limits = {"key": RateConfig(tokens=2100, window=60)}
    desk = make_desk(log, settings=Settings(rate_limits=limits, generation={"max_tokens": 16}))
    first = await submit(desk, idempotency_key="k")
    for _ in range(5):
        again = await submit(desk, order(expires_at=time.time() + 1000), idempotency_key="k")
        assert (again.replayed, again.jobs[0].id) == (True, first.jobs[0].id)
    assert len((await log.page()).jobs) == 1
    other = await submit(desk, caller=BOB, idempotency_key="k")  # keys are each caller's own
    assert not other.replayed


async def test_the_same_key_for_something_else_is_refused(log: JobLog) -> None:
    desk = make_desk(log)
    await submit(desk, order("one"), idempotency_key="k")
    for wanted in (order("two"), order("one", metadata={"a": "b"}), order("one", not_before=4e9 - 9e8)):
        with pytest.raises(IdempotencyMismatch):
            await submit(desk, wanted, idempotency_key="k")
    await submit(desk, idempotency_key="said", said=b"one")
    assert (await submit(desk, order("x"), idempotency_key="said", said=b"one")).replayed
    with pytest.raises(IdempotencyMismatch):
        await submit(desk, idempotency_key="said", said=b"two")


async def test_a_key_that_is_under_way_is_said(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make_desk(log)
    gate, store = asyncio.Event(), log.submit

    async def slowly(*args: Any, **kwargs: Any) -> Submission:
        await gate.wait()
        return await store(*args, **kwargs)

    monkeypatch.setattr(log, "submit", slowly)
    first = asyncio.create_task(submit(desk, idempotency_key="k"))
    await asyncio.sleep(0.01)
    with pytest.raises(IdempotencyInFlight) as caught:
        await submit(desk, idempotency_key="k")
    assert (caught.value.status, caught.value.retry_after) == (409, 1)
    gate.set()
    job = (await first).jobs[0]
    assert (await submit(desk, idempotency_key="k")).jobs[0].id == job.id
    assert not desk._in_flight


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_keys_have_a_length(log: JobLog, key: str) -> None:
    with pytest.raises(RequestError):
        await submit(make_desk(log), idempotency_key=key)


async def test_a_job_is_its_caller_s_alone(log: JobLog) -> None:
    desk = make_desk(log)
    (job,) = (await submit(desk)).jobs
    for act in (desk.get(job.id, BOB), desk.cancel(job.id, BOB), desk.wait(job.id, BOB, 0.0), desk.get("none", ANN)):
        with pytest.raises(NotFound):
            await act
    assert (await desk.get(job.id, ANN)).state == "queued"
    assert (await desk.get(job.id, ADMIN)).id == job.id
    (nobodys,) = (await submit(desk, caller=NOBODY)).jobs
    assert (await desk.get(nobodys.id, Caller("192.0.2.1"))).tenant == "anonymous"  # who has no key, shares


async def test_positions_and_pages(log: JobLog) -> None:
    desk = make_desk(log)
    jobs = [(await submit(desk, order(f"{n}", batch="b"))).jobs[0] for n in range(5)]
    await submit(desk, caller=BOB)
    assert [await desk.position(job) for job in jobs[:2]] != [None, None]
    await desk.cancel(jobs[1].id, ANN)
    assert await desk.position(await desk.get(jobs[1].id, ANN)) is None
    seen, cursor = [], None
    while True:
        page = await desk.page(ANN, cursor=cursor, limit=2)
        seen += [job.id for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [job.id for job in reversed(jobs)]
    cancelled = await desk.page(ANN, states=["cancelled"])
    assert [job.id for job in cancelled.jobs] == [jobs[1].id]
    oldest = await desk.page(ANN, oldest_first=True, bodies=True, limit=1)
    assert Envelope.unpack(oldest.jobs[0].request).body == order("0").body
    assert (await desk.batch_counts("b"))["queued"] == 4
    for wrong in ({"cursor": "?"}, {"limit": 0}, {"limit": 1001}):
        with pytest.raises(RequestError):
            await desk.page(ANN, **wrong)


async def test_who_has_no_key_gets_no_list_of_what_others_without_one_asked(log: JobLog) -> None:
    desk = make_desk(log)
    await submit(desk, order(batch="b"), caller=NOBODY)
    with pytest.raises(Forbidden):
        await desk.page(NOBODY)
    assert len((await desk.page(NOBODY, batch="b")).jobs) == 1  # the batch's name is known to its owner alone
    operator = replace(NOBODY, scopes=ADMIN.scopes)
    assert len((await desk.page(operator)).jobs) == 1


async def test_cancelling_wakes_the_worker_of_a_running_job_only(log: JobLog) -> None:
    woken: list[str] = []
    desk = make_desk(log, cancelling=woken.append)
    (queued,) = (await submit(desk)).jobs
    assert (await desk.cancel(queued.id, ANN)).state == "cancelled"
    assert not woken
    (job,) = (await submit(desk)).jobs
    (claimed,) = await log.claim("w", 60.0, 1)
    asked = await desk.cancel(job.id, ANN)
    assert (asked.state, asked.cancelling) == ("running", True)
    assert woken == [job.id]
    await log.finish(job.id, claimed.token, "cancelled")
    assert (await desk.cancel(job.id, ANN)).state == "cancelled"  # again does no harm


async def test_waiting_ends_with_the_job_or_the_time(log: JobLog) -> None:
    desk = make_desk(log)
    (job,) = (await submit(desk, order("hi"))).jobs
    assert (await desk.wait(job.id, ANN, 0.01)).state == "queued"
    waiting = asyncio.create_task(desk.wait(job.id, ANN, 30.0))
    async with working(log, FakeTranslator()):
        assert (await waiting).state == "succeeded"


async def test_following_hears_to_the_end(log: JobLog) -> None:
    desk = make_desk(log)
    (job,) = (await submit(desk, order("hi", steps=3))).jobs
    async with working(log, FakeTranslator()):
        told = [event.data async for event in desk.follow(job.id)]
    assert told == [b'{"text":"%d"}' % n for n in range(3)]


async def test_a_job_s_document_has_all_and_the_result_byte_for_byte(log: JobLog) -> None:
    desk = make_desk(log)
    wanted = order("hi", metadata={"a": "b"}, callback_url="https://example.com/h", batch="b", custom_id="c")
    (job,) = (await submit(desk, wanted)).jobs
    shown = orjson.loads(orjson.dumps(job_document(await desk.get(job.id, ANN), position=3)))
    assert (shown["object"], shown["state"], shown["position"]) == ("job", "queued", 3)
    assert shown["metadata"] == {"a": "b"}
    assert shown["callback"] == {"url": "https://example.com/h", "deliveries": []}
    assert shown["created_at"].endswith("Z")
    async with working(log, FakeTranslator()):
        done = await ended(log, job)
    assert b'"result":{"answer":"hi"}' in orjson.dumps(job_document(done))
    told = orjson.loads(message(done))
    assert told["type"] == "job.succeeded"
    assert told["data"]["timings"]["running_ms"] >= 0
    assert "callback" not in told["data"]


def test_a_document_of_a_failed_job_tells_errors_and_deliveries() -> None:
    error = pack_error(RequestError("wrong" * 1000, param="text"))
    log = pack_deliveries([Attempt(1, 12.5, 500, "the receiver answered 500", 0.25)])
    job = Job(
        "1" * 32,
        "t",
        "/query",
        Envelope(b"{}").pack(),
        state="failed",
        error=error,
        callback=pack_callback("https://example.com/"),
        deliveries=log,
    )
    shown = orjson.loads(orjson.dumps(job_document(job)))
    assert (shown["error"]["code"], shown["error"]["status"], shown["error"]["param"]) == (
        "invalid_request",
        400,
        "text",
    )
    assert len(shown["error"]["message"]) == 2000
    assert shown["callback"]["deliveries"] == [
        {
            "attempt": 1,
            "at": "1970-01-01T00:00:12.500Z",
            "status": 500,
            "error": "the receiver answered 500",
            "duration_ms": 250.0,
        }
    ]
    lost = replace(job, error=b'{"code":"worker_lost","message":"m"}', request=b"")
    assert job_document(lost)["error"]["status"] == StokerError.status
    assert "metadata" not in job_document(lost)
