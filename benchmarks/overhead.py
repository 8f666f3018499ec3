"""What the gateway itself costs: time added to a request, CPU added to a token, memory after 100,000 requests.

Times and CPU are measured in front of a stub engine, because a real engine's noise would hide a millisecond; the time
is given in front of the real one as well.

    python benchmarks/overhead.py [--pairs 2000] [--requests 100000] [--only latency,cpu,memory]
"""

from __future__ import annotations

import argparse
import sys
import time

import harness
from harness import Aim, RawClient, Report, chat, checked
from stoker.cli.loadstats import percentile


def pairs(
    front: harness.Running, bare: harness.Running, count: int, *, stream: bool, keep_alive: bool
) -> list[list[float]]:
    """Milliseconds of `count` one-token requests at each side, taking turns, after a tenth as many for warming up.

    Only the gateway's connections are kept, because llama.cpp's server closes kept ones under its clients; the stub's
    are treated like the gateway's.
    """
    message = chat(1, stream=stream, close=not keep_alive)
    times: list[list[float]] = [[], []]
    with (
        RawClient(front.address, keep_alive=keep_alive) as first,
        RawClient(bare.address, keep_alive=keep_alive and not isinstance(bare.address, str)) as second,
    ):
        sides = [(first, times[0]), (second, times[1])]
        for number in range(-(count // 10) - 1, count):
            for client, found in sides if number % 2 else sides[::-1]:
                seconds = checked(client.exchange(message)).seconds
                if number >= 0:
                    found.append(seconds * 1000)
    return times


def latency(report: Report, options: argparse.Namespace, *, real: bool) -> None:
    """Fill in the rows about added time: the difference of each percentile, Stoker minus bare."""
    count = max(options.pairs // 20, 10) if real else options.pairs
    engine = "SmolLM2" if real else "stub"
    model = harness.real_model(options.model) if real else harness.stub_model(options.model)
    with harness.gateway(model) as front, harness.bare_engine(front) if real else harness.bare_stub() as bare:
        for stream in (False, True):
            for keep_alive in (True, False):
                stoker, direct = pairs(front, bare, count, stream=stream, keep_alive=keep_alive)
                added = {q: percentile(stoker, q) - percentile(direct, q) for q in (50, 99)}
                kind = f"{'streamed' if stream else 'one piece'}, {'kept' if keep_alive else 'fresh'} connection"
                report.rows.append(
                    (
                        f"added time, {engine}, {kind}",
                        f"p50 {added[50]:.2f} ms, p99 {added[99]:.2f} ms",
                        f"{count} pairs; p50 {percentile(stoker, 50):.2f} against {percentile(direct, 50):.2f} ms",
                    )
                )
                report.raw[f"latency {engine} {kind}"] = {"stoker_ms": stoker, "bare_ms": direct}
                if not real and not options.quick:
                    report.aims.append(Aim(f"added to a one-token answer ({kind}), p50", added[50], 1.0, "ms"))
                    report.aims.append(Aim(f"added to a one-token answer ({kind}), p99", added[99], 5.0, "ms"))


def cpu(report: Report, options: argparse.Namespace) -> None:
    """Fill in the rows about the gateway's CPU time for each further token of a stream.

    Requests of many tokens against as many requests of one token: the difference is the tokens' own cost. The stub
    writes each token by itself, so that the gateway cannot relay several in one step.
    """
    tokens = 200
    for clients, pause in ((1, 2.0), (8, 8.0)):
        requests = 4 if options.quick else 40
        with harness.gateway(harness.stub_model(options.model, pause)) as front:
            pid = front.process.pid

            def cost(
                length: int, front: harness.Running = front, clients: int = clients, requests: int = requests
            ) -> float:
                begun = harness.cpu_seconds(front.process.pid)
                harness.pound(front.address, chat(length, stream=True), requests, clients)
                return harness.cpu_seconds(front.process.pid) - begun

            cost(tokens)
            begun, cpu_begun = time.perf_counter(), harness.cpu_seconds(pid)
            time.sleep(2)
            idle = (harness.cpu_seconds(pid) - cpu_begun) / (time.perf_counter() - begun)
            found = []
            for _ in range(1 if options.quick else 3):
                few = cost(1)
                many = cost(tokens)
                found.append((many - few) / (requests * (tokens - 1)) * 1e6)
        value = harness.median(found)
        report.rows.append(
            (
                f"CPU for each streamed token, {clients} client{'s' if clients > 1 else ''}",
                f"{value:.1f} us",
                f"{len(found)} runs of {requests * tokens} tokens, one every {pause:g} ms; idle {idle * 1000:.2f} ms/s",
            )
        )
        report.raw[f"cpu {clients}"] = found
        if not options.quick:
            report.aims.append(Aim(f"CPU for each streamed token, {clients} clients", value, 60.0, "us"))


def memory(report: Report, options: argparse.Namespace) -> None:
    """Fill in the rows about the gateway's resident memory under many requests, half of them streams."""
    total = 1000 if options.quick else options.requests
    step = max(total // 100, 1)
    with harness.gateway(harness.stub_model(options.model)) as front:
        pid = front.process.pid
        samples = [harness.rss_mb(pid)]
        answered = 0

        def count() -> None:
            nonlocal answered
            answered += 1
            if answered % step == 0:
                samples.append(harness.rss_mb(pid))

        begun = time.perf_counter()
        for number in range(10):
            harness.pound(front.address, chat(1, stream=bool(number % 2)), total // 10, 8, count)
        seconds = time.perf_counter() - begun
    half = len(samples) // 2
    growth = samples[-1] - samples[half]
    report.rows += [
        (
            f"memory after {total} requests",
            f"{samples[-1]:.1f} MB",
            f"{samples[0]:.1f} at first, {max(samples):.1f} at most; {total / seconds:.0f} requests/s from 8 clients",
        ),
        ("growth in the second half", f"{growth:.2f} MB", ""),
    ]
    report.raw["rss_mb"] = samples
    report.raw["requests_per_s"] = total / seconds
    if not options.quick:
        report.aims.append(Aim(f"memory after {total} requests", samples[-1], 120.0, "MB"))
        report.aims.append(Aim("growth in the second half", growth, 3.0, "MB"))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--only", default="latency,real,cpu,memory", help="parts to run")


def main() -> int:
    options = harness.arguments(__doc__, add)
    if options.quick:
        options.pairs = 200
    report = Report("overhead", ("what", "measured", "how"))
    parts = options.only.split(",")
    if "latency" in parts:
        latency(report, options, real=False)
    if "real" in parts:
        latency(report, options, real=True)
    if "cpu" in parts:
        cpu(report, options)
    if "memory" in parts:
        memory(report, options)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
