"""Tokens per second through Stoker, against the bare engine with the same plan, at 1 to 16 clients.

The bare side is the same engine program with the same arguments, spoken to directly; both are loaded, one works at a
time, and they take turns within each round. Optionally llama-cpp-python's own server, where an interpreter has it:

    python benchmarks/throughput.py [--rounds 5] [--llama-cpp-python PYTHON]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import aiohttp

import harness
from stoker.cli import loadgen
from stoker.cli.bench import PROMPTS
from stoker.cli.loadgen import Prompts, Target
from stoker.cli.loadstats import Sample, summarise

PEER_LEVEL = 8


def target_of(running: harness.Running, model: str) -> Target:
    """The load generator's view of a server; every answer has exactly 48 tokens, so that all sides do equal work."""
    base, path = loadgen.parse_address(running.url)
    return Target(base=base, socket=path, model=model, max_tokens=48, ignore_eos=True)


async def rate(target: Target, clients: int, requests: int, seed: int) -> float:
    """Tokens per second of one visit to one side."""
    async with loadgen.session_for(target) as session:
        samples = await loadgen.run_level(session, target, Prompts(PROMPTS, seed), clients, requests=requests)
    level = summarise(clients, samples)
    if level.errors:
        sys.exit(f"{target.place}: {level.errors}")
    return level.tokens_per_s


async def peer_rate(running: harness.Running, clients: int, requests: int, seed: int) -> float:
    """Tokens per second of llama-cpp-python's server, without streams, because its streams carry no token counts."""
    prompts = Prompts(PROMPTS, seed)
    left = iter(range(requests))
    samples: list[Sample] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for number in left:
            message = {"role": "user", "content": prompts.make(clients, number)}
            begun = time.perf_counter()
            body = {"messages": [message], "max_tokens": 48, "temperature": 0}
            async with session.post(f"{running.url}/v1/chat/completions", json=body) as response:
                answer = await response.json()
            samples.append(Sample(begun, time.perf_counter(), completion_tokens=answer["usage"]["completion_tokens"]))

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(session))
    return summarise(clients, samples).tokens_per_s


@contextlib.contextmanager
def peer_server(python: str | None, model: str, threads: int) -> Iterator[harness.Running | None]:
    """llama-cpp-python's server where `python` has it; None, with the reason printed, otherwise."""
    missing = python is None or subprocess.run([python, "-c", "import llama_cpp.server"], check=False).returncode != 0
    if python is None or missing:
        print("llama-cpp-python: not measured; name an interpreter that has its server with --llama-cpp-python")
        yield None
        return
    port = harness.free_port()
    command = [python, "-m", "llama_cpp.server", "--model", model, "--port", str(port), "--n_ctx", "2048"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "false"]
    with harness.started(command, ("127.0.0.1", port), "/v1/models") as running:
        yield running


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="interpreter that has llama-cpp-python[server]")


def main() -> int:
    options = harness.arguments(__doc__, add)
    levels = [1, 4] if options.quick else [int(part) for part in options.clients.split(",")]
    rounds = 1 if options.quick else options.rounds
    stoker_rates: dict[int, list[float]] = {level: [] for level in levels}
    bare_rates: dict[int, list[float]] = {level: [] for level in levels}
    peer_rates: list[float] = []
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(harness.gateway(harness.real_model(options.model)))
        bare = stack.enter_context(harness.bare_engine(served))
        twin = served.engine()
        plan = " ".join(twin.cmdline()[3:]) if twin else ""
        threads = int(plan.split("--threads ", 1)[1].split()[0]) if "--threads " in plan else 2
        peer = stack.enter_context(peer_server(options.llama_cpp_python, str(options.model), threads))
        sides = [(target_of(served, "model"), stoker_rates), (target_of(bare, ""), bare_rates)]
        for target, _ in sides:
            asyncio.run(rate(target, 1, 2, 0))
        for turn in range(rounds):
            for level in levels:
                requests = level if options.quick else max(6, 2 * level)
                order = sides if turn % 2 == 0 else sides[::-1]
                for target, rates in order:
                    rates[level].append(asyncio.run(rate(target, level, requests, 1000 + turn)))
                if peer and level == PEER_LEVEL:
                    peer_rates.append(asyncio.run(peer_rate(peer, level, requests, 1000 + turn)))
                ratio = stoker_rates[level][-1] / bare_rates[level][-1]
                print(
                    f"round {turn + 1} {level:>2} clients: "
                    f"{stoker_rates[level][-1]:.1f} / {bare_rates[level][-1]:.1f} = {ratio:.3f}"
                )
    report = harness.Report(
        "throughput",
        ("clients", "Stoker, tok/s", "bare engine, tok/s", "ratio (median of rounds)", "lowest and highest ratio"),
    )
    ratios = {n: [a / b for a, b in zip(stoker_rates[n], bare_rates[n], strict=True)] for n in levels}
    for level in levels:
        found = ratios[level]
        report.rows.append(
            (
                str(level),
                f"{harness.median(stoker_rates[level]):.1f}",
                f"{harness.median(bare_rates[level]):.1f}",
                f"{harness.median(found):.3f}",
                f"{min(found):.3f} to {max(found):.3f}",
            )
        )
        if not options.quick:
            report.aims.append(
                harness.Aim(f"{level} clients, Stoker / bare", harness.median(found), 0.97, "", at_most=False)
            )
    if peer_rates:
        times = harness.median([a / b for a, b in zip(stoker_rates[PEER_LEVEL], peer_rates, strict=True)])
        report.notes.append(
            f"llama-cpp-python's own server at {PEER_LEVEL} clients (`interrupt_requests` off): "
            f"{harness.median(peer_rates):.1f} tok/s; Stoker gives {times:.1f} times that."
        )
        report.aims.append(harness.Aim("8 clients, Stoker / llama-cpp-python", times, 3.0, "", at_most=False))
    else:
        report.notes.append("llama-cpp-python's own server was not measured in this run.")
    report.notes.append(
        f"{rounds} rounds, the sides alternating; answers of 48 tokens. The plan of both: `{engine_flags(plan)}`."
    )
    report.raw = {"stoker": stoker_rates, "bare": bare_rates, "llama_cpp_python": peer_rates, "plan": plan}
    return report.finish(options.out)


def engine_flags(command: str) -> str:
    """The engine's arguments without the paths, which mean nothing elsewhere."""
    words = command.split()
    kept = [
        f"{flag} {value}"
        for flag, value in zip(words[::2], words[1::2], strict=False)
        if flag not in {"--model", "--socket"}
    ]
    return " ".join(kept)


if __name__ == "__main__":
    sys.exit(main())
