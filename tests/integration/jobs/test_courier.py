"""Results on their way to callbacks, over a real log, a worker and real sockets: delivered, tried again, given up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hook_server import KEY, HookServer, answer, reset
from tests.job_logs import SOON_S, sqlite_log
from tests.job_work import AwayLog, FakeTranslator, body, ended, queue, until, working

from stoker.config.jobs import WebhookConfig
from stoker.errors import ConfigError
from stoker.jobs.courier import Courier, webhook_policy
from stoker.jobs.envelope import pack_callback, unpack_deliveries
from stoker.jobs.sender import AT_ONCE, Sender
from stoker.jobs.signing import verify
from stoker.jobs.webhooks import WebhookPolicy
from stoker.store.jobs import Job, JobLog


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[JobLog]:
    async with sqlite_log(tmp_path) as opened:
        yield opened


def courier_to(log: Any, policy: WebhookPolicy) -> Courier:
    return Courier(log, Sender(policy), policy)


@pytest.fixture
def quick(make_policy: Any) -> WebhookPolicy:
    """Pauses that nobody notices."""
    policy: WebhookPolicy = make_policy(backoff_s=0.001, backoff_max_s=0.002, attempts=4)
    return policy


@contextlib.asynccontextmanager
async def at_work(courier: Courier) -> AsyncIterator[None]:
    task = asyncio.create_task(courier.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not courier._under_way


async def job_with_callback(log: JobLog, url: str, text: str = "hi", **more: Any) -> Job:
    (job,) = await queue(log, body(text, **more), callback=pack_callback(url))
    return job


async def deliveries(log: JobLog, job: Job) -> list[tuple[int, int | None]]:
    found = await log.get(job.id)
    assert found is not None
    return [(entry.attempt, entry.status) for entry in unpack_deliveries(found.deliveries)]


async def noted(log: JobLog, job: Job, count: int) -> list[tuple[int, int | None]]:
    """The delivery log once it has so many entries."""
    limit = time.monotonic() + SOON_S
    while len(seen := await deliveries(log, job)) < count:
        assert time.monotonic() < limit, f"only {seen}"
        await asyncio.sleep(0.005)
    return seen


async def test_a_result_arrives_signed_and_is_noted(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    courier = courier_to(log, quick)
    async with working(log, FakeTranslator(), courier=courier):
        job = await job_with_callback(log, f"{hook.url}/hook")
        await ended(log, job)
        assert await noted(log, job, 1) == [(1, 200)]
    (seen,) = hook.seen
    assert verify([KEY], seen.headers, seen.body, now=time.time())
    assert seen.headers["webhook-id"] == f"msg_{job.id}"
    told = orjson.loads(seen.body)
    assert (told["type"], told["data"]["id"], told["data"]["result"]) == ("job.succeeded", job.id, {"answer": "hi"})
    assert courier.outcomes == Counter(delivered=1)


async def test_each_kind_of_end_is_told(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    async with working(log, FakeTranslator(), courier=courier_to(log, quick)):
        failed = await job_with_callback(log, hook.url, fail="RequestError")
        cancelled = await job_with_callback(log, hook.url, wait=True, text="wait")
        await log.cancel(cancelled.id)
        for job in (failed, cancelled):
            await noted(log, job, 1)
    told = {orjson.loads(seen.body)["type"] for seen in hook.seen}
    assert told == {"job.failed", "job.cancelled"}


async def test_a_receiver_that_fails_is_tried_again_under_the_same_id(
    log: JobLog, hook: HookServer, quick: WebhookPolicy
) -> None:
    hook.script.extend([answer(500), reset, answer(204)])
    courier = courier_to(log, quick)
    async with working(log, FakeTranslator(), courier=courier):
        job = await job_with_callback(log, hook.url)
        assert await noted(log, job, 3) == [(1, 500), (2, None), (3, 204)]
    assert {seen.headers["webhook-id"] for seen in hook.seen} == {f"msg_{job.id}"}
    assert courier.outcomes == Counter(failed=2, delivered=1)
    assert not await log.due_callbacks(1.0, 10, time.time() + 1e6)


async def test_attempts_come_to_an_end(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    hook.script.extend([answer(500)] * 20)
    async with working(log, FakeTranslator(), courier=courier_to(log, quick)):
        job = await job_with_callback(log, hook.url)
        await noted(log, job, 4)
        await asyncio.sleep(0.1)
    assert len(hook.seen) == 4
    assert not await log.due_callbacks(1.0, 10, time.time() + 1e6)


async def test_a_receiver_that_is_gone_is_left_alone(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    hook.script.append(answer(410))
    async with working(log, FakeTranslator(), courier=courier_to(log, quick)):
        job = await job_with_callback(log, hook.url)
        assert await noted(log, job, 1) == [(1, 410)]
        await asyncio.sleep(0.1)
    assert len(hook.seen) == 1


async def test_what_is_due_outlives_a_restart(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    hook.script.append(answer(500))
    patient = WebhookPolicy((KEY,), 4, 0.5, 0.5, 30.0, allow_private=True)
    async with working(log, FakeTranslator(), courier=courier_to(log, patient)):
        job = await job_with_callback(log, hook.url)
        await noted(log, job, 1)
    async with at_work(courier_to(log, quick)):
        assert await noted(log, job, 2) == [(1, 500), (2, 200)]


async def test_a_store_that_is_away_when_a_delivery_is_to_be_noted_is_waited_for(
    log: JobLog, hook: HookServer, quick: WebhookPolicy
) -> None:
    away = AwayLog(log)
    received = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        away.away = True
        received.set()
        await answer(200)(reader, writer)

    hook.script.append(act)
    async with working(log, FakeTranslator()):
        job = await job_with_callback(log, hook.url)
        await ended(log, job)
    async with at_work(courier_to(away, quick)):
        await received.wait()
        await until(lambda: "settle_callback" in away.failed)
        away.away = False
        assert await noted(log, job, 1) == [(1, 200)]
    assert len(hook.seen) == 1


async def test_many_are_delivered_and_no_more_at_once_than_may_be(
    log: JobLog, hook: HookServer, quick: WebhookPolicy
) -> None:
    courier = courier_to(log, quick)
    jobs = await queue(log, *(body(f"{n}") for n in range(100)), callback=pack_callback(hook.url))
    most = 0
    async with working(log, FakeTranslator(), courier=courier):
        while courier.outcomes.total() < len(jobs):
            most = max(most, len(courier._under_way))
            await asyncio.sleep(0.002)
        for job in jobs:
            await noted(log, job, 1)
    assert most <= AT_ONCE
    assert len(hook.seen) == 100


async def test_two_couriers_do_not_deliver_twice(log: JobLog, hook: HookServer, quick: WebhookPolicy) -> None:
    jobs = await queue(log, *(body(f"{n}") for n in range(40)), callback=pack_callback(hook.url))
    async with working(log, FakeTranslator()), at_work(courier_to(log, quick)), at_work(courier_to(log, quick)):
        for job in jobs:
            await noted(log, job, 1)
    assert len(hook.seen) == 40


async def test_where_it_may_not_go_it_is_not_sent(log: JobLog, hook: HookServer, make_policy: Any) -> None:
    """The configuration has changed since the callback was accepted."""
    courier = courier_to(log, make_policy(allow_private=False, attempts=1))
    async with working(log, FakeTranslator(), courier=courier):
        job = await job_with_callback(log, hook.url)
        assert await noted(log, job, 1) == [(1, None)]
    assert not hook.seen
    assert courier.outcomes == Counter(refused=1)


def test_the_policy_is_the_configured_one() -> None:
    secret = "whsec_" + "A" * 43 + "="
    policy = webhook_policy(WebhookConfig(secrets=(secret,), attempts=3, timeout=7, allowed_hosts=("hooks.internal",)))
    assert (policy.secrets, policy.attempts, policy.timeout_s) == ((b"\0" * 32,), 3, 7.0)
    assert policy.allowed_hosts == ("hooks.internal",)
    assert not webhook_policy(WebhookConfig()).secrets
    with pytest.raises(ConfigError):
        webhook_policy(WebhookConfig(secrets=("nonsense",)))
