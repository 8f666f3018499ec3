"""Measures what the simulation needs to know of this machine: steps, prompts, beginnings, starts, and Redis's work.

Of several rounds the quickest counts: whatever else runs on a machine only ever slows.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
from scaling.engine import EngineSpec, steps_between
from stoker.admission.keys import hash_of, new_key
from stoker.cli import loadgen
from stoker.cli.loadgen import Target
from stoker.cli.loadstats import Sample

sys.path.insert(0, str(harness.HERE.parent))
from tests.redis_server import RedisProcess

CLIENTS = (1, 2, 4, 8)
STORY = "the old harbour town woke slowly while gulls turned over grey roofs and fishermen counted their empty nets "


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured: seconds of a step for so many answers, of a token of a prompt, from start to ready; commands
    and seconds of CPU that Redis spends on a request; seconds of CPU of the gateway for each streamed token.
    """

    steps: dict[int, float]
    prompt_s: float
    first_new_s: float
    first_known_s: float
    prompt_tokens: int
    start_s: float
    redis_commands: float
    redis_s: float
    gateway_token_s: float

    def engine(self, prefixes: int = 16) -> EngineSpec:
        """A replica as this machine runs one."""
        return EngineSpec(steps_between(self.steps, max(self.steps)), self.prompt_s, prefixes=prefixes)


def from_document(raw: dict[str, Any]) -> Measured:
    """As it was written to a result's JSON."""
    return Measured(**{**raw, "steps": {int(number): seconds for number, seconds in raw["steps"].items()}})


def text(mark: str, tokens: int) -> str:
    """A prompt of about so many tokens that begins with its own mark."""
    words = (STORY * (tokens // 18 + 1)).split()
    return f"{mark}: " + " ".join(words[:tokens])


async def at_once(target: Target, prompts: list[str]) -> list[Sample]:
    """All prompts at the same time; ends the program when one is not answered."""
    async with loadgen.session_for(target) as session:
        samples = await asyncio.gather(*(loadgen.send(session, target, prompt) for prompt in prompts))
    wrong = [sample.error for sample in samples if sample.error]
    if wrong:
        sys.exit(f"the server could not be measured: {wrong[0]}")
    return list(samples)


def first_s(sample: Sample) -> float:
    """Seconds to the first token."""
    return (sample.first_ms or sample.total_ms) / 1000


def step_s(samples: list[Sample]) -> float:
    """Seconds of a step with all of them under way: by the one that came to its first token last, because from then on
    no prompt was read.
    """
    last = max(samples, key=lambda sample: sample.first or 0.0)
    return (last.per_token_ms or 0.0) / 1000


def prompts_of(target: Target, rounds: int) -> tuple[float, float, float, int]:
    """Seconds for each token of a prompt, by the difference of long and short ones; seconds to the first token of a
    long one, and of one whose beginning the engine has just seen; tokens of the long one.
    """
    one = replace(target, max_tokens=2)
    short, long, known, lengths = [], [], [], []
    for number in range(rounds):
        begin = text(f"Note {number} of the long ones", 500)
        short.append(asyncio.run(at_once(one, [text(f"Note {number} of the short ones", 60)]))[0])
        long.append(asyncio.run(at_once(one, [begin + " What comes next?"]))[0])
        known.append(first_s(asyncio.run(at_once(one, [begin + " And who is there?"]))[0]))
        lengths.append((long[-1].prompt_tokens or 0) - (short[-1].prompt_tokens or 0))
    new = min(map(first_s, long))
    slope = min((first_s(b) - first_s(a)) / n for a, b, n in zip(short, long, lengths, strict=True))
    return slope, new, min(known), long[0].prompt_tokens or 0


def engine_times(options: Any) -> dict[str, Any]:
    """Steps and prompts of the real engine."""
    rounds = 1 if options.quick else 5
    tokens = 24 if options.quick else 96
    with harness.gateway(harness.real_model(options.model), plan={"slots": max(CLIENTS)}) as front:
        base, socket = loadgen.parse_address(front.url)
        target = Target(base=base, socket=socket, model="model", max_tokens=tokens, ignore_eos=True)
        asyncio.run(at_once(target, ["Say a word."]))
        slope, new, known, length = prompts_of(target, rounds)
        steps: dict[int, float] = {}
        for clients in CLIENTS:
            turns = [
                [text(f"{number}.{turn} of {clients}", 20) for number in range(clients)]
                for turn in range(1 if options.quick else 4)
            ]
            found = [step_s(asyncio.run(at_once(target, prompts))) for prompts in turns]
            steps[clients] = min(found)
    return {
        "steps": steps,
        "prompt_s": slope,
        "first_new_s": new,
        "first_known_s": known,
        "prompt_tokens": length,
    }


def redis_work(options: Any) -> tuple[float, float]:
    """Commands and seconds of CPU that Redis spends on a request with a key and limits that is not in the cache."""
    count = 50 if options.quick else 1000
    key = new_key()
    limits = [{"name": "bench", "hash": hash_of(key), "rate": {"requests": 1_000_000, "tokens": 1_000_000_000}}]
    with RedisProcess() as redis, harness.RawClient("") as client:
        store = {"redis": redis.url, "timeout": 1.0}
        cache = {"policy": "deterministic", "cut_off": True}
        model = harness.stub_model(options.model)
        with harness.gateway(model, keys=limits, cache=cache, store=store) as front:
            client.address, client.keep_alive = front.address, True
            client.exchange(_with_key("warm up", key))
            before, spent = commands(redis), harness.cpu_seconds(_pid(redis))
            for number in range(count):
                harness.checked(client.exchange(_with_key(f"request {number}", key)))
            return (commands(redis) - before) / count, (harness.cpu_seconds(_pid(redis)) - spent) / count


def commands(redis: RedisProcess) -> int:
    """Commands that the server has processed, those of its scripts included."""
    answer = redis.command("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r"calls=(\d+)", answer))


def _pid(redis: RedisProcess) -> int:
    if redis.process is None:
        sys.exit("Redis has ended")
    return redis.process.pid


def _with_key(prompt: str, key: str) -> bytes:
    message = harness.chat(1, stream=False, prompt=prompt)
    return message.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {key}\r\n\r\n".encode(), 1)


def measure(options: Any) -> dict[str, Any]:
    """All of it, as it is written to the result; the start and the gateway's CPU come from their own benchmarks."""
    calls, seconds = redis_work(options)
    return engine_times(options) | {
        "start_s": earlier("start", lambda raw: statistics.median(raw["stoker_s"]), 2.0),
        "redis_commands": calls,
        "redis_s": seconds,
        "gateway_token_s": earlier("overhead", gateway_token_s, 70e-6),
    }


def gateway_token_s(raw: dict[str, Any]) -> float:
    """Seconds of CPU for each streamed token at 8 clients, by the table of `overhead.py`."""
    found = re.search(r"CPU for each streamed token, 8 clients \| ([\d.]+) us", raw["table"])
    return float(found[1]) / 1e6 if found else 70e-6


def earlier(name: str, figure: Any, otherwise: float) -> float:
    """A figure of another benchmark's result, or a usual one where that has not run."""
    path: Path = harness.HERE / "results" / f"{name}.json"
    if not path.exists():
        return otherwise
    document = json.loads(path.read_text(encoding="utf-8"))
    return float(figure({**document["raw"], "table": document["table"]}))
