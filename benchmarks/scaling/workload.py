"""What arrives: when, and how much work each request is. Pure functions of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Work:
    """Requests as they are on average.

    Args:
        prompt: mean tokens of a prompt that are new, >= 0; lengths are lognormal.
        answer: mean tokens of an answer, > 0, before `limit` cuts them; lognormal.
        prompt_spread, answer_spread: standard deviation of the logarithm; 0 makes all alike.
        limit: `max_tokens` that the client asks for; what the waiting line's estimate is made of.
        prefix: tokens at the beginning that requests with the same key share (a system prompt, a conversation).
        keys: how many different beginnings there are.
        zipf: exponent of their popularity; 0 makes them equally popular.
    """

    prompt: float = 120.0
    answer: float = 80.0
    prompt_spread: float = 0.5
    answer_spread: float = 0.7
    limit: int = 256
    prefix: int = 0
    keys: int = 1
    zipf: float = 1.0


@dataclass(frozen=True, slots=True)
class Burst:
    """Arrivals that come in waves: a share of the time the rate is `peak` times the mean; waves last `seconds` on
    average. `share * peak` must stay below 1, so that the mean can be kept.
    """

    peak: float = 3.0
    share: float = 0.2
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival: instants in seconds, tokens, and the key of each one's beginning."""

    times: Floats
    prompts: Floats
    answers: Floats
    keys: Integers
    work: Work

    def __len__(self) -> int:
        return len(self.times)


def poisson(rng: np.random.Generator, rate: float, count: int) -> Floats:
    """Instants of `count` arrivals, independent of each other, `rate` a second on average."""
    return np.asarray(np.cumsum(rng.exponential(1 / rate, count)), dtype=np.float64)


def bursty(rng: np.random.Generator, rate: float, count: int, burst: Burst) -> Floats:
    """Instants of `count` arrivals at `rate` a second on average, which alternates between waves and calm: a Poisson
    process whose rate is switched at random (Fischer and Meier-Hellstern, "The Markov-modulated Poisson process
    cookbook", 1993).
    """
    calm_rate = rate * (1 - burst.share * burst.peak) / (1 - burst.share)
    calm_s = burst.seconds * (1 - burst.share) / burst.share
    parts: list[Floats] = []
    have, now, wave = 0, 0.0, bool(rng.random() < burst.share)
    while have < count:
        lasts = float(rng.exponential(burst.seconds if wave else calm_s))
        number = int(rng.poisson((rate * burst.peak if wave else calm_rate) * lasts))
        parts.append(np.sort(rng.uniform(now, now + lasts, number)))
        have, now, wave = have + number, now + lasts, not wave
    return np.concatenate(parts)[:count]


def steps(rng: np.random.Generator, levels: Sequence[tuple[float, float]]) -> Floats:
    """Instants of arrivals whose rate is a staircase: each level is (seconds, rate a second)."""
    parts: list[Floats] = []
    now = 0.0
    for seconds, rate in levels:
        number = int(rng.poisson(rate * seconds))
        parts.append(np.sort(rng.uniform(now, now + seconds, number)))
        now += seconds
    return np.concatenate(parts)


def lognormal(rng: np.random.Generator, mean: float, spread: float, count: int) -> Floats:
    """`count` values with this mean; `spread` is the standard deviation of their logarithm."""
    if mean <= 0 or spread <= 0:
        return np.full(count, float(mean))
    return rng.lognormal(math.log(mean) - spread**2 / 2, spread, count)


def zipf(rng: np.random.Generator, keys: int, exponent: float, count: int) -> Integers:
    """`count` keys from 0 to `keys` - 1, whose popularity falls with the power `exponent` of their rank."""
    if keys <= 1:
        return np.zeros(count, dtype=np.int64)
    weights = 1 / np.arange(1, keys + 1, dtype=np.float64) ** exponent
    return rng.choice(keys, count, p=weights / weights.sum()).astype(np.int64)


def fill(rng: np.random.Generator, times: Floats, work: Work) -> Trace:
    """A request for each instant."""
    count = len(times)
    prompts = lognormal(rng, work.prompt, work.prompt_spread, count)
    answers = np.minimum(lognormal(rng, work.answer, work.answer_spread, count), work.limit)
    return Trace(times, prompts, answers, zipf(rng, work.keys, work.zipf, count), work)


def trace(seed: int, rate: float, count: int, work: Work, burst: Burst | None = None) -> Trace:
    """`count` requests at `rate` a second on average; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    times = poisson(rng, rate, count) if burst is None else bursty(rng, rate, count, burst)
    return fill(rng, times, work)


def without_prefix(work: Work) -> Work:
    """The same requests where nothing of their shared beginnings is ever kept."""
    return replace(work, prompt=work.prompt + work.prefix, prefix=0)
