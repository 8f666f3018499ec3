"""Spans as a real collector gets them, and that no collector, however bad, disturbs the service."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import opentelemetry.trace
import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tests.otlp_collector import Collector, attributes

from stoker.config.watching import TracingConfig
from stoker.errors import ConfigError, EngineDied
from stoker.observability import otlp, tracing
from stoker.observability.tracing import TEXT_CHARS, Trace, Tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
SECRET = "hunter2-hunter2"
CLOSE_S = 0.5
MB = 1_000_000


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No environment but what a test sets, and no tracer of an earlier test that is still ending."""
    for name in os.environ:
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    yield
    for thread in threading.enumerate():
        if thread.name == "traces-end":
            thread.join()


@pytest.fixture
def root_log() -> Iterator[list[str]]:
    """What libraries say in the standard library's log, and it reaches the root's handlers."""
    said: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    notes = Notes()
    logging.getLogger().addHandler(notes)
    yield said
    logging.getLogger().removeHandler(notes)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def tracer_to(url: str, **config: Any) -> Tracer:
    return Tracer.open(TracingConfig(endpoint=url, **config), "1.2.3")


def begun(tracer: Tracer, traceparent: str | None = None, tracestate: str | None = None) -> Trace:
    trace = tracer.begin(traceparent, tracestate)
    assert trace is not None
    return trace


def serve(tracer: Tracer, requests: int) -> None:
    """What a service does with a request."""
    for number in range(requests):
        trace = begun(tracer)
        for step in range(4):
            with trace.child("step", {"number": number}) as span:
                span.set({"step": step})
        trace.event("first_token")
        trace.finish("chat m", {"http.response.status_code": 200}, None)


# --- off


def test_off_imports_nothing_and_hands_on() -> None:
    program = f"""
import sys
from stoker.config.watching import TracingConfig
from stoker.observability.tracing import Tracer
tracer = Tracer.open(TracingConfig(), "1")
assert tracer.begin(None, None) is None
assert tracer.begin("junk", None) is None
trace = tracer.begin("{SAMPLED}", "foo=1")
with trace.child("step", {{"a": 1}}) as span:
    span.set({{"b": 2}})
    span.event("c")
    span.failed("d")
    assert trace.headers() == {{"traceparent": "{SAMPLED}", "tracestate": "foo=1"}}
trace.event("e")
trace.finish("f", {{}}, None)
assert not trace.recording and trace.trace_id == "{TRACE}"
heavy = [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "requests", "google", "urllib3")]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_off_closes_and_errors_pass_through() -> None:
    tracer = Tracer.open(TracingConfig(), "1")
    with pytest.raises(EngineDied), begun(tracer, SAMPLED).child("step"):
        raise EngineDied("it")
    await tracer.close()
    assert tracer.begin(None, None) is None


async def test_the_sdks_own_switch_is_honoured(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracer = tracer_to(collector.url)
    assert tracer.begin(None, None) is None
    assert not begun(tracer, SAMPLED).recording
    await tracer.close()


# --- what arrives


async def test_a_request_arrives_whole(collector: Collector) -> None:
    tracer = tracer_to(collector.url, headers={"X-Api-Key": SECRET})
    before = time.time_ns()
    trace = begun(tracer)
    assert trace.recording
    with trace.child("queue", {"stoker.position": 3, "left.out": None}) as queue:
        queue.event("moved", {"stoker.position": 1})
    with trace.child("engine", {"gen_ai.request.model": "m"}, kind="client") as engine:
        engine.set({"gen_ai.response.finish_reasons": ["stop", "length"], "ratio": 0.5, "hit": True})
        with trace.child("prompt", parent=engine):
            pass
    trace.event("first_token", {"ms": 12.5, "left.out": None})
    trace.finish("chat m", {"http.response.status_code": 200, "left.out": None}, None)
    await tracer.close()

    assert [span.name for span in collector.wait(4)] == ["queue", "prompt", "engine", "chat m"]
    server, queue_, engine_ = collector.span("chat m"), collector.span("queue"), collector.span("engine")
    prompt = collector.span("prompt")
    assert {span.trace_id.hex() for span in collector.spans} == {trace.trace_id}
    assert server.parent_span_id == b""
    assert queue_.parent_span_id == engine_.parent_span_id == server.span_id
    assert prompt.parent_span_id == engine_.span_id
    assert (server.kind, engine_.kind) == (SentSpan.SPAN_KIND_SERVER, SentSpan.SPAN_KIND_CLIENT)
    assert queue_.kind == prompt.kind == SentSpan.SPAN_KIND_INTERNAL
    assert attributes(server.attributes) == {"http.response.status_code": 200}
    assert attributes(queue_.attributes) == {"stoker.position": 3}
    assert attributes(engine_.attributes) == {
        "gen_ai.request.model": "m",
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "ratio": 0.5,
        "hit": True,
    }
    assert [(event.name, attributes(event.attributes)) for event in server.events] == [("first_token", {"ms": 12.5})]
    assert [(event.name, attributes(event.attributes)) for event in queue_.events] == [
        ("moved", {"stoker.position": 1})
    ]
    assert {span.status.code for span in collector.spans} == {Status.STATUS_CODE_UNSET}
    for span in collector.spans:
        assert before <= server.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= server.end_time_unix_nano <= time.time_ns()
    assert set(collector.scopes) == {("stoker", "1.2.3")}
    ((path, headers),) = collector.requests
    assert path == "/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["x-api-key"] == SECRET


async def test_the_callers_trace_goes_on(collector: Collector) -> None:
    tracer = tracer_to(collector.url, sample=0)
    trace = begun(tracer, f"01-{TRACE}-{SPAN}-01-future", "foo=1 , bar=2")
    assert (trace.recording, trace.trace_id) == (True, TRACE)
    with trace.child("engine", kind="client"):
        within = trace.headers()
    after = trace.headers()
    trace.finish("chat m", {}, None)
    await tracer.close()
    collector.wait(2)
    server, engine = collector.span("chat m"), collector.span("engine")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, SPAN)
    assert server.trace_state == engine.trace_state == "foo=1,bar=2"
    assert within == {"traceparent": f"00-{TRACE}-{engine.span_id.hex()}-01", "tracestate": "foo=1,bar=2"}
    assert after == {"traceparent": f"00-{TRACE}-{server.span_id.hex()}-01", "tracestate": "foo=1,bar=2"}


async def test_who_decides(collector: Collector) -> None:
    always, never = tracer_to(collector.url, sample=1), tracer_to(collector.url, sample=0)
    unsampled = begun(always, UNSAMPLED, "foo=1")
    assert not unsampled.recording
    assert unsampled.headers() == {"traceparent": UNSAMPLED, "tracestate": "foo=1"}
    assert begun(never, SAMPLED).recording
    assert never.begin(None, None) is None
    assert never.begin("00-junk", "foo=1") is None
    fresh = begun(always, f"00-{'0' * 32}-{SPAN}-00", "foo=1")
    assert fresh.recording
    assert fresh.trace_id != TRACE
    assert "tracestate" not in fresh.headers()  # it belongs to a parent that does not count
    await always.close()
    await never.close()


async def test_the_share_that_is_sampled(collector: Collector) -> None:
    tracer = tracer_to(collector.url, sample=0.25)
    traced = sum(tracer.begin(None, None) is not None for _ in range(4000))
    assert 1000 - 165 < traced < 1000 + 165  # six standard deviations
    await tracer.close()


async def test_resource_and_what_the_environment_says_of_it(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said in (
        {},
        {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.name=a", "OTEL_SERVICE_NAME": "b"},
    ):
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        tracer = tracer_to(collector.url, service_name="mine")
        serve(tracer, 1)
        await tracer.close()
    first, second = collector.resources
    assert (first["service.name"], first["service.version"]) == ("mine", "1.2.3")
    assert uuid.UUID(first["service.instance.id"]) != uuid.UUID(second["service.instance.id"])
    assert (second["service.name"], second["deployment.environment"]) == ("b", "test")


@pytest.mark.parametrize("environment", ["OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_EXPORTER_OTLP_HEADERS=tenant=a"])
async def test_the_exporters_environment_counts(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    monkeypatch.setenv(*environment.split("=", 1))
    tracer = tracer_to(collector.url)
    serve(tracer, 1)
    await tracer.close()
    assert len(collector.spans) == 5
    headers = collector.requests[0][1]
    assert (headers.get("content-encoding"), headers.get("tenant")) in {("gzip", None), (None, "a")}


async def test_what_protobuf_cannot_carry_costs_nothing_else(collector: Collector) -> None:
    tracer = tracer_to(collector.url)
    trace = begun(tracer)
    hostile = {"half": "a\ud800b", "huge": 1 << 70, "least": -(1 << 63), "long": "x" * 5000, "list": ["\udfff", "ü"]}
    with trace.child("step", hostile):
        pass
    trace.finish("chat \ud800" + "x" * 5000, {}, None)
    await tracer.close()
    assert attributes(collector.span("step").attributes) == {
        "half": "a?b",
        "huge": hex(1 << 70),
        "least": -(1 << 63),
        "long": "x" * TEXT_CHARS,
        "list": ["?", "ü"],
    }
    assert collector.spans[1].name.startswith("chat ?xxx")


async def test_failures_have_a_type(collector: Collector) -> None:
    tracer = tracer_to(collector.url)
    trace = begun(tracer)
    with pytest.raises(EngineDied), trace.child("known"):
        raise EngineDied("a prompt, perhaps")
    with pytest.raises(ZeroDivisionError), trace.child("unknown"):
        raise ZeroDivisionError("a prompt, perhaps")
    with pytest.raises(EngineDied), trace.child("told") as told:  # noqa: PT012
        told.failed("stalled")
        raise EngineDied("again")
    with pytest.raises(asyncio.CancelledError), trace.child("cancelled"):
        raise asyncio.CancelledError
    trace.finish("chat m", {}, "engine_died")
    await tracer.close()
    types = {"known": "engine_died", "unknown": "ZeroDivisionError", "told": "stalled", "chat m": "engine_died"}
    for span in collector.wait(5):
        failed = span.name in types
        assert span.status.code == (Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET)
        assert attributes(span.attributes) == ({"error.type": types[span.name]} if failed else {})
        assert "prompt" not in str(span)


async def test_what_comes_after_the_end_is_nothing(collector: Collector) -> None:
    tracer = tracer_to(collector.url)
    trace = begun(tracer)
    with structlog.testing.capture_logs() as lines:
        with trace.child("late") as late:
            trace.finish("chat m", {"a": 1}, None)
            trace.finish("other", {"a": 2}, "error")
            trace.event("too_late")
        late.set({"too": "late"})
        late.event("too_late")
        late.failed("too_late")
        await tracer.close()
    assert lines == []
    assert sorted(span.name for span in collector.spans) == ["chat m", "late"]
    server = collector.span("chat m")
    assert attributes(server.attributes) == {"a": 1}
    assert not server.events
    assert not collector.span("late").attributes


async def test_steps_that_stand_still_in_generators_and_tasks_do_not_mix(collector: Collector) -> None:
    tracer = tracer_to(collector.url)
    current = opentelemetry.trace.get_current_span()

    async def stream(trace: Trace, name: str) -> AsyncIterator[str]:
        with trace.child(name, kind="client"):
            yield trace.headers()["traceparent"]
            await asyncio.sleep(0)
            assert opentelemetry.trace.get_current_span() is current
            with trace.child("inner"):
                yield trace.headers()["traceparent"]
            yield trace.headers()["traceparent"]

    async def request(name: str) -> list[list[str]]:
        trace = begun(tracer)
        streams = [stream(trace, f"{name}{number}") for number in range(3)]
        told: list[list[str]] = [[], [], []]
        for _ in range(3):
            for number, one in enumerate(streams):
                told[number].append(await anext(one))
                await asyncio.sleep(0)
        for number in (1, 0, 2):  # they end in another order than they began
            await streams[number].aclose()
            told.append([trace.headers()["traceparent"]])
        trace.finish(name, {}, None)
        return told

    a, b = await asyncio.gather(request("a"), request("b"))
    await tracer.close()
    collector.wait(14)
    for name, told in (("a", a), ("b", b)):
        server = collector.span(name)
        assert told[3] == told[4] == [told[2][0]]  # of the last that is open
        assert told[5] == [f"00-{server.trace_id.hex()}-{server.span_id.hex()}-{told[5][0][-2:]}"]
        for number in range(3):
            step = collector.span(f"{name}{number}")
            assert (step.trace_id, step.parent_span_id) == (server.trace_id, server.span_id)
            assert step.status.code == Status.STATUS_CODE_UNSET
            assert told[number][0].split("-")[2] == step.span_id.hex()
    inner = [span for span in collector.spans if span.name == "inner"]
    assert sorted(span.parent_span_id for span in inner) == sorted(
        collector.span(name).span_id for name in "ab" for _ in range(3)
    )


# --- collectors that are bad


def dead_url() -> str:
    with Collector() as gone:
        return gone.url


def spoil(collector: Collector, how: str) -> str:
    """Make the collector bad; returns its address."""
    match how:
        case "down":
            return dead_url()
        case "nowhere":
            return "http://collector.invalid:4318"
        case "slow":
            collector.delay_s = 60
        case "garbage":
            collector.raw = b"\x00\xff garbage \r\n\r\n" * 100
        case "bad headers":
            collector.raw = b"HTTP/1.1 500 No\r\n: x\r\n\xff\xfe\r\nSecret " + SECRET.encode() + b"\r\n\r\n"
        case "closing":
            collector.raw = b""
        case "endless":
            collector.status, collector.endless = 500, True
        case "redirect":
            collector.status, collector.headers = 307, {"location": f"{collector.url}/elsewhere?key={SECRET}"}
        case _:
            collector.status = int(how)
    return collector.url


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("down", "Connection refused"),
        ("nowhere", None),  # whatever this host's resolver says
        ("slow", "no answer so far"),
        ("garbage", "BadStatusLine"),
        ("bad headers", "HTTP 500"),
        ("closing", "RemoteDisconnected"),
        ("endless", "HTTP 500"),
        ("redirect", "HTTP 307"),
        ("400", "HTTP 400"),
        ("401", "HTTP 401"),
        ("429", "HTTP 429"),
        ("500", "HTTP 500"),
        ("503", "HTTP 503"),
    ],
)
async def test_a_bad_collector_disturbs_nobody(  # noqa: PLR0917
    collector: Collector,
    how: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    root_log: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_S", CLOSE_S)
    monkeypatch.setattr(otlp, "SEND_S", 1.5)  # one retry
    address = spoil(collector, how).replace("http://", f"http://user:{SECRET}@") + f"/base/?key={SECRET}"
    tracer = tracer_to(address, headers={"Authorization": f"Bearer {SECRET}"})
    with structlog.testing.capture_logs() as lines:
        serve(tracer, 350)  # four batches, less than the queue holds
        await asyncio.sleep(0.1)
        serve(tracer, 10)
        began = time.monotonic()
        await tracer.close()
        took = time.monotonic() - began
        assert tracer.begin(None, None) is None
        await tracer.close()
    assert took < CLOSE_S + 5  # the SDK alone would take 30 s for some
    warning, *more = lines
    assert (warning["log_level"], warning["event"], more) == ("warning", "traces_lost", [])
    assert warning["endpoint"].endswith("/base/v1/traces")
    assert said is None or said in warning["error"]
    assert SECRET not in str(lines)
    assert root_log == []
    assert capfd.readouterr() == ("", "")
    assert not any("elsewhere" in path for path, _ in collector.requests)


async def test_an_answer_without_an_end_holds_nothing_up(collector: Collector) -> None:
    collector.endless = True
    tracer = tracer_to(collector.url)
    with structlog.testing.capture_logs() as lines:
        serve(tracer, 300)  # three batches
        await tracer.close()
    assert len(collector.spans) == 1500
    assert lines == []


async def test_headers_that_cannot_be_sent_are_not_quoted(collector: Collector) -> None:
    tracer = tracer_to(collector.url, headers={"X-Key": f"{SECRET}\r\nX-Other: 1"})
    serve(tracer, 1)
    with structlog.testing.capture_logs() as lines:
        await tracer.close()
    (line,) = lines
    assert (line["event"], line["lost_spans"]) == ("traces_lost", 5)
    assert "headers" in line["error"]
    assert SECRET not in str(lines)
    assert collector.requests == []


async def test_a_malformed_environment_is_not_quoted(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"no equals sign {SECRET}")
    with structlog.testing.capture_logs() as lines:
        tracer = tracer_to(collector.url)
        serve(tracer, 1)
        await tracer.close()
    assert [line["event"] for line in lines] == ["tracing_impaired"]
    assert SECRET not in str(lines)
    assert len(collector.spans) == 5


async def test_a_collector_that_comes_back_gets_what_follows(collector: Collector) -> None:
    collector.status = 500
    tracer = tracer_to(collector.url)
    serve(tracer, 103)  # a batch and a bit
    while not collector.requests:
        await asyncio.sleep(0.01)
    collector.status = 200
    serve(tracer, 1)
    await tracer.close()
    assert len(collector.spans) == 104 * 5 - 512


async def test_memory_is_bounded_while_the_collector_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_S", CLOSE_S)
    tracer = tracer_to(dead_url())
    with structlog.testing.capture_logs() as lines:
        serve(tracer, 1000)
        before = resident()
        serve(tracer, 20_000)
        grown = resident() - before
        await tracer.close()
    assert grown < 25 * MB  # 100,000 spans are more than 300 MB
    (line,) = lines
    assert line["event"] in {"traces_lost", "tracing_impaired"}  # the queue may be full before an attempt has failed


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- manners


async def test_nothing_global_is_left_behind(collector: Collector) -> None:
    provider = opentelemetry.trace.get_tracer_provider()
    threads = set(threading.enumerate())
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "urllib3")]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]
    tracer = tracer_to(collector.url)
    serve(tracer, 1)
    assert opentelemetry.trace.get_tracer_provider() is provider
    await tracer.close()
    left = {thread.name for thread in threading.enumerate()} - {thread.name for thread in threads}
    assert not [name for name in left if "Otel" in name or "traces" in name]
    assert before == [(True, list(logger.handlers)) for logger in loggers]


def test_a_process_that_just_ends_is_not_held_up() -> None:
    program = f"""
from stoker.config.watching import TracingConfig
from stoker.observability.tracing import Tracer
tracer = Tracer.open(TracingConfig(endpoint="{dead_url()}"), "1")
for _ in range(2000):
    tracer.begin(None, None).finish("a", {{}}, None)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)  # trying to send takes 28 s


async def test_closing_never_raises(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    tracer = tracer_to(collector.url)
    serve(tracer, 1)
    closing = tracer._sender.close  # the real one must run too

    def fail(within_s: float) -> None:
        closing(within_s)
        raise RuntimeError

    monkeypatch.setattr(tracer._sender, "close", fail)
    await tracer.close()
    assert len(collector.spans) == 5


async def test_proxies_do_not_stand_between_this_host_and_itself(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", dead_url())
    tracer = tracer_to(collector.url)
    serve(tracer, 1)
    await tracer.close()
    assert len(collector.spans) == 5


@pytest.mark.parametrize(
    ("endpoint", "url", "loopback"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces", True),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces", True),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces", True),
        ("https://c.example/otlp/v1/traces/", "https://c.example/otlp/v1/traces", False),
        ("https://10.0.0.1/otlp", "https://10.0.0.1/otlp/v1/traces", False),
    ],
)
def test_addresses(endpoint: str, url: str, loopback: bool) -> None:
    assert otlp._target(endpoint) == (url, url, loopback)


def test_what_is_shown_of_an_address_holds_no_secret() -> None:
    target = otlp._target("https://user:pass@c.example:1/x?key=1")
    assert target.url == "https://user:pass@c.example:1/x/v1/traces?key=1"
    assert target.shown == "https://c.example:1/x/v1/traces"


@pytest.mark.parametrize("endpoint", ["http://h:99999", "http://[::1", "http://h:port"])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.endpoint"):
        tracer_to(endpoint)


def test_limits_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(ConfigError, match="OTEL_"):
        tracer_to("http://127.0.0.1:1")
    assert not logging.getLogger("opentelemetry").handlers
