"""Limits of a caller: which apply, what a refusal says, what headers show, and what a permit gives back."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.admission.limits import (
    Judged,
    Limit,
    Limiter,
    Permit,
    RateLimited,
    duration,
    refusal,
    render,
)
from stoker.config import RateConfig, RateLimitsConfig
from stoker.store.memory_counters import MemoryCounters
from stoker.store.protocols import Claim, Hold, Outcome, Standing, Window


@dataclass
class Somebody:
    address: str = "203.0.113.9"
    key_name: str | None = None
    rate: RateConfig | None = None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched(MemoryCounters):
    """Remembers which claims were put to it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.asked: list[Sequence[Claim]] = []

    async def take(self, claims: Sequence[Claim], now: float | None = None) -> Outcome:
        self.asked.append(claims)
        return await super().take(claims, now)


def limiter(**groups: Any) -> tuple[Limiter, Watched, Clock]:
    clock = Clock()
    counters = Watched(clock)
    return Limiter(RateLimitsConfig(**groups), counters), counters, clock


def headers(of: Permit | RateLimited) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in of.headers}


async def refused(limits: Limiter, caller: Somebody, tokens: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as error:
        await limits.admit(caller, "r", tokens)
    return error.value


async def test_ten_requests_a_minute_for_an_anonymous_address() -> None:
    limits, _, clock = limiter(anonymous=RateConfig(requests=10))
    for number in range(10):
        permit = await limits.admit(Somebody(), "r", 100)
        assert headers(permit)["x-ratelimit-remaining-requests"] == str(9 - number)
        await permit.settle(5)
        await permit.release()
        clock.now += 1
    error = await refused(limits, Somebody())
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert error.message == "rate limit: 10 requests in 60 s for this address; try again in 50 s"
    assert error.retry_after == pytest.approx(50)
    assert headers(error) == {
        "ratelimit-policy": '"requests";q=10;w=60',
        "ratelimit": '"requests";r=0;t=59',
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59s",
    }
    await limits.admit(Somebody("203.0.113.10"), "r", 1)
    clock.now += 50
    await limits.admit(Somebody(), "r", 1)
    await refused(limits, Somebody())


async def test_ipv6_counts_by_64() -> None:
    limits, _, _ = limiter(anonymous=RateConfig(requests=1))
    await limits.admit(Somebody("2001:db8::1"), "r", 1)
    await refused(limits, Somebody("2001:db8::ffff:ffff:ffff:ffff"))
    await limits.admit(Somebody("2001:db8:0:1::1"), "r", 1)
    await limits.admit(Somebody("::ffff:203.0.113.9"), "r", 1)
    await refused(limits, Somebody("203.0.113.9"))


async def test_unlimited_callers_cost_nothing() -> None:
    limits, counters, _ = limiter(anonymous=RateConfig(requests=1))
    permit = await limits.admit(Somebody(key_name="k"), "r", 10**9)
    await permit.settle(5)
    await permit.release()
    assert permit.headers == []
    assert counters.asked == []


async def test_a_key_has_its_own_limits_or_those_of_all_keys() -> None:
    limits, _, _ = limiter(key=RateConfig(requests=1), anonymous=RateConfig(requests=1))
    plain, rich = Somebody(key_name="plain"), Somebody(key_name="rich", rate=RateConfig(requests=2))
    free = Somebody(key_name="free", rate=RateConfig())
    await limits.admit(plain, "r", 1)
    assert "this key" in (await refused(limits, plain)).message
    await limits.admit(Somebody(key_name="other"), "r", 1)
    for _ in range(2):
        await limits.admit(rich, "r", 1)
    await refused(limits, rich)
    for _ in range(5):
        await limits.admit(free, "r", 1)
    await limits.admit(Somebody(), "r", 1)  # no key's requests count for the anonymous address


async def test_an_address_counts_whatever_keys_come_from_it() -> None:
    limits, counters, _ = limiter(key=RateConfig(requests=2), address=RateConfig(requests=3))
    for name in ("a", "a", "b"):
        await limits.admit(Somebody(key_name=name), "r", 1)
    assert "3 requests in 60 s for this address" in (await refused(limits, Somebody(key_name="b"))).message
    await limits.admit(Somebody("198.51.100.1", key_name="b"), "r", 1)  # the refusal took nothing of the key's
    keys = [claim.key for claims in counters.asked for claim in claims]
    assert set(keys) == {
        "key:a:requests:60", "key:b:requests:60", "address:203.0.113.9:requests:60", "address:198.51.100.1:requests:60"
    }  # fmt: skip


async def test_tokens_are_reserved_and_settled() -> None:
    limits, _, clock = limiter(anonymous=RateConfig(tokens=1000, window=10))
    permit = await limits.admit(Somebody(), "r", 800)
    assert headers(permit)["x-ratelimit-remaining-tokens"] == "200"
    error = await refused(limits, Somebody(), 300)
    assert error.message == (
        "rate limit: 1000 tokens in 10 s for this address; 200 are left and this request may use 300; try again in 10 s"
    )
    await permit.settle(100)
    await permit.settle(0)  # only the first counts
    await permit.release()
    assert headers(await limits.admit(Somebody(), "r", 300))["ratelimit"] == '"tokens";r=600;t=10'
    clock.now += 10
    assert headers(await limits.admit(Somebody(), "r", 1000))["ratelimit-policy"] == '"tokens";q=1000;w=10'


async def test_a_request_larger_than_its_limit_is_told_so() -> None:
    limits, _, _ = limiter(anonymous=RateConfig(tokens=1000))
    error = await refused(limits, Somebody(), 1001)
    assert error.retry_after is None
    assert "this request may use 1001 of 1000 tokens in 60 s for this address" in error.message
    assert "max_tokens" in error.message


async def test_places_are_given_back_and_a_client_s_request_id_frees_none() -> None:
    limits, _, _ = limiter(anonymous=RateConfig(concurrency=2))
    first = await limits.admit(Somebody(), "same", 1)
    await limits.admit(Somebody(), "same", 1)
    error = await refused(limits, Somebody())
    assert error.message == "rate limit: 2 requests at once for this address; try again in 1 s"
    assert error.retry_after == 1
    assert headers(error) == {
        "ratelimit-policy": '"concurrency";q=2;qu="concurrent-requests"',
        "ratelimit": '"concurrency";r=0',
    }
    await first.release()
    await first.release()
    await limits.admit(Somebody(), "same", 1)
    await refused(limits, Somebody())


async def test_exact_under_concurrency() -> None:
    limits, _, _ = limiter(anonymous=RateConfig(requests=10), address=RateConfig(concurrency=7))
    outcomes = await asyncio.gather(*(limits.admit(Somebody(), str(n), 1) for n in range(100)), return_exceptions=True)
    assert sum(isinstance(outcome, Permit) for outcome in outcomes) == 7


def judged(*limits: tuple[str, Claim, Standing]) -> list[Judged]:
    return [(Limit(kind, "key", claim), standing) for kind, claim, standing in limits]  # type: ignore[arg-type]


def test_the_tightest_of_several_is_shown() -> None:
    shown = render(
        judged(
            ("requests", Window("a", 100, 60), Standing(50, 1.5, 0)),
            ("requests", Window("b", 1000, 3600), Standing(3, 1800.25, 0)),
            ("tokens", Window("c", 9000, 60, 5), Standing(8000, 0.0121, 0)),
            ("concurrency", Hold("d", 4, "x"), Standing(2, 0, 0)),
        )
    )
    assert shown == [
        (
            b"ratelimit-policy",
            b'"requests";q=1000;w=3600, "tokens";q=9000;w=60, "concurrency";q=4;qu="concurrent-requests"',
        ),
        (b"ratelimit", b'"requests";r=3;t=1801, "tokens";r=8000;t=1, "concurrency";r=2'),
        (b"x-ratelimit-limit-requests", b"1000"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"x-ratelimit-reset-requests", b"30m0.25s"),
        (b"x-ratelimit-limit-tokens", b"9000"),
        (b"x-ratelimit-remaining-tokens", b"8000"),
        (b"x-ratelimit-reset-tokens", b"13ms"),
    ]


def test_the_one_that_refuses_longest_is_named_and_shown() -> None:
    error = refusal(
        judged(
            ("requests", Window("a", 100, 60), Standing(0, 60, 12.2)),
            ("requests", Window("b", 1000, 3600), Standing(0, 3600, 59.1)),
            ("requests", Window("c", 5, 1), Standing(0, 1, 0)),
        )
    )
    assert error.message == "rate limit: 1000 requests in 3600 s for this key; try again in 60 s"
    assert error.retry_after == 59.1
    assert headers(error)["x-ratelimit-limit-requests"] == "1000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.012, "12ms"), (0.9991, "1s"), (1, "1s"), (7.66, "7.66s"), (59.9999, "1m0s"),
        (360, "6m0s"), (72.5, "1m12.5s"), (3600, "1h0m0s"), (86_400, "24h0m0s"),
    ],
)  # fmt: skip
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 90_000))
def test_durations_read_back(seconds: float) -> None:
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?|(\d+)ms", duration(seconds))
    assert found is not None
    hours, minutes, rest, milliseconds = (float(group or 0) for group in found.groups())
    read = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    assert seconds - 1e-5 <= read <= seconds + 0.0011 or math.isclose(read, seconds, rel_tol=1e-9)
