"""What watching costs: CPU that a request's log line, counts and unsampled trace take, and a scrape of 20 models.

The line is written to a file by the log's own thread, whose CPU counts too. Nothing is done for a token, but for one
look at whether the log wants the answer's text.

    python benchmarks/observing.py [--requests 20000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import harness
from stoker.config import LogConfig, TracingConfig
from stoker.observability.content import ContentWriter
from stoker.observability.live import LiveFigures
from stoker.observability.logging import configure, shutdown
from stoker.observability.metrics import Metrics
from stoker.observability.record import Observer, Record
from stoker.observability.snapshot import Build, EngineFigures, ModelFigures, Snapshot
from stoker.observability.tracing import Tracer
from stoker.types import GenerationRequest, ModelIdentity, Sampling, Usage

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"  # its caller says that it is not recorded
MODEL = ModelIdentity("smollm2", "1", "ab" * 32)
REQUEST = GenerationRequest("r", "chat", "smollm2", 0.0, ({"role": "user", "content": "hello"},), sampling=Sampling(48))
MODELS = 20
ROUNDS = 5


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=20_000)


def request(observer: Observer) -> None:
    """A request's whole record, as routes and the pipeline fill it."""
    trace = observer.tracer.begin(PARENT, None)
    record = Record("r" * 32, "/v1/chat/completions", address=observer.content.address("192.0.2.7"), observer=observer)
    record.trace, record.model = trace, MODEL
    record.note_requests([REQUEST])
    record.note_first("miss", None)
    record.timings.attempts, record.timings.engine = 1, "smollm2/0"
    record.note("stop", Usage(40, 48), "miss")
    record.close()


def bare(_observer: Observer) -> None:
    """What is left without any of it: an object that says who asked."""
    record = Record("r" * 32, "/v1/chat/completions", address="192.0.2.7")
    record.model = MODEL
    record.note("stop", Usage(40, 48), "miss")


def cpu_us(act: Callable[[Observer], None], observer: Observer, times: int) -> float:
    """Microseconds of CPU, all threads together, for each call."""
    began = time.process_time()
    for _ in range(times):
        act(observer)
    time.sleep(0.1)  # the log's thread has its last batch
    return (time.process_time() - began) / times * 1e6


def crowd() -> Metrics:
    """The series of a server with 20 models, all of which were asked in every way."""
    metrics = Metrics(share=1)
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        for route in ("/v1/chat/completions", "/v1/embeddings"):
            for cache in ("hit", "miss", "joined", "bypass"):
                for error, status in (("", 200), ("overloaded", 503)):
                    metrics.note_request(
                        route=route,
                        model=name,
                        expert=None,
                        reason="named",
                        status=status,
                        cache=cache,
                        error=error,
                        seconds=1.0,
                        queue=0.1,
                        first_token=0.2,
                        usage=Usage(10, 20),
                    )
    models = [
        ModelFigures(
            name=name,
            version="1",
            digest="ab" * 32,
            running=1,
            waiting=1,
            waiting_tokens=1,
            slots=8,
            refused=0,
            kv_cache_ratio=0.5,
            engines=[EngineFigures(name=f"{name}/0", up=True, restarts=0, watchdog_kills=0, load_seconds=1.0)],
        )
        for name in names
    ]
    build = Build(version="1", engine="1", python="3")
    now = Snapshot(build=build, ready=True, draining=False, uptime_seconds=1.0, models=models)
    metrics.registry.register(LiveFigures(lambda: now))
    return metrics


def scrape_ms(metrics: Metrics) -> float:
    began = time.perf_counter()
    metrics.render()
    return (time.perf_counter() - began) * 1000


def token_ns() -> float:
    """Nanoseconds that a token costs more: one look at a field."""
    record = Record("r", "/query")
    loop = timeit.timeit("pass", number=1_000_000)
    look = timeit.timeit("if record.said is not None: pass", globals={"record": record}, number=1_000_000)
    return (look - loop) * 1000


def main() -> int:
    options = harness.arguments(__doc__, add)
    requests = 1000 if options.quick else options.requests
    with tempfile.TemporaryDirectory() as place, (Path(place) / "stderr").open("w") as stream:
        configure(LogConfig(format="json"), stream)
        observer = Observer(Metrics(), Tracer.open(TracingConfig(), "1"), ContentWriter(LogConfig()))
        rounds = [(cpu_us(request, observer, requests), cpu_us(bare, observer, requests)) for _ in range(ROUNDS)]
        asyncio.run(observer.tracer.close())
        shutdown()
    added = harness.median([watched - left for watched, left in rounds])
    crowded = crowd()
    lines = crowded.render().count(b"\n")
    scrapes = []
    for _ in range(20):
        time.sleep(0.05)
        scrapes.append(scrape_ms(crowded))
    report = harness.Report("observing", ("what", "measured"))
    report.rows += [
        ("CPU added to a request by log line, counts and an unsampled trace", f"{added:.0f} us"),
        ("added to a token", f"{token_ns():.0f} ns"),
        (f"a scrape with {MODELS} models, {lines} lines, median", f"{harness.median(scrapes):.1f} ms"),
        ("the slowest of 20 scrapes", f"{max(scrapes):.1f} ms"),
    ]
    report.notes.append(f"{ROUNDS} rounds of {requests} requests with and without, alternating; all threads' CPU.")
    report.raw = {"rounds_us": rounds, "scrapes_ms": scrapes}
    report.aims += [
        harness.Aim("watching a request, CPU", added, 150, "us"),
        harness.Aim("a scrape with 20 models", harness.median(scrapes), 20, "ms"),
    ]
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
