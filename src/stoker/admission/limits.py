"""How often may a caller ask, for how much, and for how many at once? Claims from the configuration, put to counters.

Which claims a caller must meet, how a refusal reads and what an answer's headers say are pure functions; `Limiter` and
`Permit` act. `RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-09; `x-ratelimit-*` are
those of OpenAI's API (platform.openai.com/docs/guides/rate-limits), which its clients and others read.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stoker.admission.addresses import address_group
from stoker.config.access import RateConfig, RateLimitsConfig
from stoker.errors import StokerError
from stoker.store.protocols import Claim, Counters, Hold, Outcome, Standing, Window

Scope = Literal["key", "address"]
Kind = Literal["requests", "tokens", "concurrency"]
Header = tuple[bytes, bytes]

KINDS: tuple[Kind, ...] = ("requests", "tokens", "concurrency")
_ID_CHARACTERS = 64


class Caller(Protocol):
    """Who asks."""

    @property
    def address(self) -> str:
        """The client's address; empty when it has none."""
        ...

    @property
    def key_name(self) -> str | None:
        """The name of its key; None for anonymous callers."""
        ...

    @property
    def rate(self) -> RateConfig | None:
        """The key's own limits, in place of the configured ones for keys."""
        ...


class RateLimited(StokerError):
    """The caller took more than its share.

    `retry_after` is in seconds, None when the request asks for more than the limit can ever grant. `headers` are the
    `RateLimit` and `x-ratelimit-*` headers; `Retry-After` is rendered from `retry_after`, as for every error.
    """

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: float | None, headers: list[Header]) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Limit:
    """One claim, what it limits, and whose limit it is."""

    kind: Kind
    scope: Scope
    claim: Claim


Judged = tuple[Limit, Standing]
"""A limit, and how it stands after the decision."""


def claims_for(caller: Caller, config: RateLimitsConfig, hold_id: str, tokens: int) -> list[Limit]:
    """Every limit that applies to a request of `tokens` tokens (>= 0); empty when there is none."""
    group = address_group(caller.address)
    if caller.key_name is None:
        own = _claims("address", f"anonymous:{group}", config.anonymous, hold_id, tokens)
    else:
        rate = config.key if caller.rate is None else caller.rate
        own = _claims("key", f"key:{caller.key_name}", rate, hold_id, tokens)
    return [*own, *_claims("address", f"address:{group}", config.address, hold_id, tokens)]


def _claims(scope: Scope, who: str, rate: RateConfig, hold_id: str, tokens: int) -> Iterator[Limit]:
    # The window's length is part of the name: after a change of it nothing old is misread.
    if rate.requests is not None:
        yield Limit("requests", scope, Window(f"{who}:requests:{rate.window:g}", rate.requests, rate.window))
    if rate.tokens is not None:
        window = Window(f"{who}:tokens:{rate.window:g}", rate.tokens, rate.window, tokens)
        yield Limit("tokens", scope, window)
    if rate.concurrency is not None:
        yield Limit("concurrency", scope, Hold(f"{who}:concurrency", rate.concurrency, hold_id))


class Permit:
    """A granted request's place. `settle` it when its tokens are known, `release` it in any case when it ends.

    `headers` are the `RateLimit` and `x-ratelimit-*` headers of its answer.
    """

    def __init__(
        self, headers: list[Header], counters: Counters, taken: Outcome | None, limits: Sequence[Limit]
    ) -> None:
        self.headers = headers
        self._counters = counters
        self._taken = taken
        self._token_keys = [limit.claim.key for limit in limits if limit.kind == "tokens"]
        self._settled = not self._token_keys
        self._released = not any(isinstance(limit.claim, Hold) for limit in limits)

    async def settle(self, usage_tokens: int) -> None:
        """Count the tokens that were really used (>= 0) in place of those reserved. Only the first call counts."""
        if self._taken is not None and not self._settled:
            self._settled = True
            await self._counters.settle(self._taken, dict.fromkeys(self._token_keys, max(0, usage_tokens)))

    async def release(self) -> None:
        """Free the request's place among those at once. Again does no harm."""
        if self._taken is not None and not self._released:
            self._released = True
            await self._counters.release(self._taken)


class Limiter:
    """Grants requests within the configured limits.

    Args:
        config: the limits.
        counters: where is counted.
    """

    def __init__(self, config: RateLimitsConfig, counters: Counters) -> None:
        self._config = config
        self._counters = counters
        self._replica = secrets.token_hex(4)
        self._numbers = itertools.count()

    async def admit(self, caller: Caller, request_id: str, tokens: int) -> Permit:
        """A permit for one request, or RateLimited.

        Args:
            caller: who asks.
            request_id: the request's id, for people who look into Redis. Clients choose it, so it identifies nothing.
            tokens: what the request may use at most, prompt and answer, >= 0; `Permit.settle` corrects it.
        """
        hold_id = f"{self._replica}:{next(self._numbers)}:{request_id[:_ID_CHARACTERS]}"
        limits = claims_for(caller, self._config, hold_id, tokens)
        if not limits:
            return Permit([], self._counters, None, ())
        outcome = await self._counters.take([limit.claim for limit in limits])
        judged = list(zip(limits, outcome.standings, strict=True))
        if not outcome.granted:
            raise refusal(judged)
        return Permit(render(judged), self._counters, outcome, limits)


def refusal(judged: Sequence[Judged]) -> RateLimited:
    """The error about the limit that takes longest to have room again."""
    limit, standing = max(judged, key=lambda pair: pair[1].wait_s)
    asked = f"this request may use {limit.claim.amount}" if isinstance(limit.claim, Window) else ""
    if math.isinf(standing.wait_s):
        message = f"rate limit: {asked} of {_describe(limit)}; send a shorter prompt or a smaller max_tokens"
        return RateLimited(message, retry_after=None, headers=render(judged))
    left = f"; {standing.remaining} are left and {asked}" if limit.kind == "tokens" else ""
    message = f"rate limit: {_describe(limit)}{left}; try again in {max(1, math.ceil(standing.wait_s))} s"
    return RateLimited(message, retry_after=standing.wait_s, headers=render(judged))


def _describe(limit: Limit) -> str:
    """For example `10 requests in 60 s for this address`."""
    claim = limit.claim
    unit = "token" if limit.kind == "tokens" else "request"
    counted = f"{claim.limit} {unit}{'' if claim.limit == 1 else 's'}"
    over = f"in {claim.window_s:g} s" if isinstance(claim, Window) else "at once"
    return f"{counted} {over} for this {limit.scope}"


def render(judged: Sequence[Judged]) -> list[Header]:
    """The `RateLimit` and `x-ratelimit-*` headers; of several limits of one kind the tightest is shown."""
    kinds = [[pair for pair in judged if pair[0].kind == kind] for kind in KINDS]
    shown = [min(same, key=_room) for same in kinds if same]
    if not shown:
        return []
    policies, states = zip(*(_fields(limit, standing) for limit, standing in shown), strict=True)
    headers = [(b"ratelimit-policy", ", ".join(policies).encode()), (b"ratelimit", ", ".join(states).encode())]
    for limit, standing in shown:
        if isinstance(limit.claim, Window):
            headers += _openai(limit, standing)
    return headers


def _room(pair: Judged) -> tuple[float, int, float]:
    """Sorts the tightest first: what refuses longest, then what has least left, then what stays so longest."""
    standing = pair[1]
    return -standing.wait_s, standing.remaining, -standing.reset_s


def _fields(limit: Limit, standing: Standing) -> tuple[str, str]:
    """An item of `RateLimit-Policy` and one of `RateLimit`; times in whole seconds, rounded up."""
    claim = limit.claim
    policy, state = f'"{limit.kind}";q={claim.limit}', f'"{limit.kind}";r={standing.remaining}'
    if isinstance(claim, Hold):
        return f'{policy};qu="concurrent-requests"', state
    return f"{policy};w={math.ceil(claim.window_s)}", f"{state};t={math.ceil(standing.reset_s)}"


def _openai(limit: Limit, standing: Standing) -> list[Header]:
    figures = {
        "limit": str(limit.claim.limit),
        "remaining": str(standing.remaining),
        "reset": duration(standing.reset_s),
    }
    return [(f"x-ratelimit-{name}-{limit.kind}".encode(), figure.encode()) for name, figure in figures.items()]


def duration(seconds: float) -> str:
    """A time as OpenAI writes it, which is Go's form, rounded up: `12ms`, `1s`, `7.66s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:  # noqa: PLR2004  below a second
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
