"""What tests of the jobs room share: calls that do as their bodies say, a real pipeline in front of no engine, a worker
at work, and a log that can be away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import orjson

from stoker import errors
from stoker.admission.auth import Caller
from stoker.admission.gate import Gate
from stoker.admission.limits import Limiter
from stoker.cache.answers import AnswerCache
from stoker.config import GenerationConfig, LogConfig, QueueConfig, Settings
from stoker.config.jobs import JobsConfig
from stoker.engine.pool import ModelPool, PoolSettings
from stoker.errors import RequestError, StokerError
from stoker.jobs.calls import Call, Tell
from stoker.jobs.desk import Order
from stoker.jobs.envelope import Envelope
from stoker.jobs.worker import Worker
from stoker.observability.content import ContentWriter
from stoker.observability.metrics import Metrics
from stoker.observability.record import Observer, Record
from stoker.observability.tracing import Tracer
from stoker.pipeline import Pipeline
from stoker.store.jobs import ENDED, Job, JobLog
from stoker.store.memory import MemoryKeyValue
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import StoreError
from stoker.types import EmbeddingRequest, GenerationRequest, ModelIdentity, Priority, Usage
from stoker.wayfinder import Wayfinder
from tests.job_logs import NO_LIMITS, SOON_S, new_job

ENDPOINT = "/query"
QUICK = JobsConfig(backoff=0.001, backoff_max=0.002, lease=SOON_S)


class FakeTranslator:
    """Calls that do what their bodies say: `{"text"}` answers it, after `{"steps"}` pieces, `{"wait"}` until it is
    allowed to, `{"fail"}` with an error by its name, `{"break"}` with none of ours. `made` counts them by text.
    """

    endpoints = frozenset({ENDPOINT, "/v1/embeddings"})

    def __init__(self) -> None:
        self.made: list[str] = []
        self.callers: list[Caller] = []
        self.headers: list[Mapping[str, str]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.failures: dict[str, list[StokerError]] = {}
        self.begins = True

    def read(self, endpoint: str, body: bytes, caller: Caller, headers: Mapping[str, str], deadline: float) -> Call:
        said = orjson.loads(body)
        if not isinstance(said, dict) or not isinstance(said.get("text"), str):
            raise RequestError("text: is missing", param="text")
        model = said.get("model", "")
        if endpoint == "/v1/embeddings":
            return Call((), EmbeddingRequest("e", model, deadline, (said["text"],)), self._never)
        messages: Any = ({"role": "user", "content": said["text"]},)
        request = GenerationRequest(
            "r", "chat", model, deadline, messages, principal=caller.principal, priority=Priority.JOB
        )

        async def run(record: Record, tell: Tell) -> bytes:
            self.callers.append(caller)
            self.headers.append(headers)
            return await self._run(said, record, tell)

        return Call([request], None, run)

    async def _run(self, said: dict[str, Any], record: Record, tell: Tell) -> bytes:
        text = said["text"]
        self.made.append(text)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.begins:
                record.timings.attempts = 1
            for step in range(said.get("steps", 0)):
                tell(b'{"text":"%d"}' % step)
                if step % 7 == 0:
                    await asyncio.sleep(0)
            if said.get("wait"):
                await self.gate.wait()
            await asyncio.sleep(said.get("sleep", 0))
            if self.failures.get(text):
                raise self.failures[text].pop(0)
            if "fail" in said:
                raise getattr(errors, said["fail"])("as was asked")
            if "break" in said:
                raise ZeroDivisionError
            record.note("stop", Usage(3, 5), "bypass")
            return orjson.dumps({"answer": text * said.get("times", 1)})
        finally:
            self.at_once -= 1

    async def _never(self, _record: Record, _tell: Tell) -> bytes:
        raise AssertionError


class AwayLog:
    """A job log whose operations fail while it is `away`, as when its store is."""

    def __init__(self, log: JobLog) -> None:
        self.log = log
        self.away = False
        self.failed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.log, name)
        if name == "follow" or not callable(operation):
            return operation

        async def perhaps(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                self.failed.append(name)
                raise StoreError("down", f"the store is away, which a test wants ({name})")
            return await operation(*args, **kwargs)

        return perhaps


def observer() -> Observer:
    return Observer(Metrics(), Tracer(None, 0.0), ContentWriter(LogConfig()))


def pipeline(settings: Settings | None = None, models: Sequence[str] = ("m",)) -> Pipeline:
    """The real one, whose models have no engines: what can be asked of it ends before them."""
    settings = settings or Settings()
    pools = {name: ModelPool(_pool_settings(name, settings), lambda _: []) for name in models}
    gate = Gate(settings, Limiter(settings.rate_limits, MemoryCounters()), None, Metrics())
    cache = AnswerCache(settings.cache, MemoryKeyValue(1 << 20), b"")
    return Pipeline(Wayfinder(pools, models[0], settings.routing.experts, None), gate, cache)


def _pool_settings(name: str, settings: Settings) -> PoolSettings:
    return PoolSettings(
        identity=ModelIdentity(name, "1", "0" * 64),
        slots=2,
        context=1024,
        dialect="llamacpp",
        wire_model=name,
        tools="emulated",
        queue=QueueConfig(),
        generation=GenerationConfig(),
        most_prompt_tokens=settings.limits.prompt_tokens,
    )


def record() -> Record:
    return Record("r", "/jobs", address="10.0.0.0/24")


def body(text: str = "hi", **more: Any) -> bytes:
    return orjson.dumps({"text": text, **more})


def order(text: str = "hi", **more: Any) -> Order:
    """An order whose body says `more`, but for the fields that an order has itself."""
    own = {name: more.pop(name) for name in list(more) if name in Order.__slots__ and name != "body"}
    return Order(**{"endpoint": ENDPOINT, "body": body(text, **more), **own})


async def queue(log: JobLog, *bodies: bytes, **fields: Any) -> list[Job]:
    """Put requests into the log as the desk does."""
    jobs = [new_job(**{"endpoint": ENDPOINT, "request": Envelope(said).pack(), **fields}) for said in bodies]
    return list((await log.submit(jobs, limits=NO_LIMITS)).jobs)


@contextlib.asynccontextmanager
async def working(
    log: Any, translator: FakeTranslator, config: JobsConfig = QUICK, slots: int = 4, **more: Any
) -> AsyncIterator[Worker]:
    """A worker at work; stopped in the end."""
    worker = Worker(log, translator, config, more.pop("observer", None) or observer(), slots=lambda: slots, **more)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.stop(0.0)
        await asyncio.wait_for(running, SOON_S)
        assert not worker.running


async def ended(log: JobLog, job: Job) -> Job:
    """The job once it has ended."""
    found = await log.wait_ended(job.id, SOON_S)
    assert found is not None
    assert found.state in ENDED, f"still {found.state} after {SOON_S} s"
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    limit = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < limit, "it never came about"
        await asyncio.sleep(0.005)


async def state_of(log: JobLog, job: Job) -> str:
    found = await log.get(job.id)
    assert found is not None
    return found.state
