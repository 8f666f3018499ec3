"""Webhooks: what is permitted, what came of an attempt, and when the next one is due. Pure; `sender` acts.

Retries are not made here: whoever keeps jobs stores when the next attempt is due, so that it survives a restart.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from stoker.errors import Unsupported
from stoker.jobs.addresses import PARAM, Rules, parse_exceptions, read_url

Outcome = Literal["delivered", "gone", "refused", "failed"]
"""How an attempt ended: the receiver has it; the receiver wants no more (410); our own rules forbid where it would have
gone; anything else."""

GONE: Final = 410
SLOW_DOWN: Final = frozenset({429, 503})
"""Statuses whose `Retry-After` counts."""
LOG_ATTEMPTS: Final = 32
MAX_ERROR_CHARS: Final = 200
_DOUBLINGS: Final = 62  # beyond, a float says nothing that `backoff_max_s` does not
_SECONDS: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class WebhookPolicy:
    """How webhooks are sent.

    Raises:
        ConfigError: an entry of `allowed_hosts` is neither name, address nor network.
    """

    secrets: tuple[bytes, ...] = field(repr=False)
    """Keys that sign, the new one first; without one no callback is accepted."""
    attempts: int
    """Attempts in all for one message, >= 1."""
    backoff_s: float
    """Longest pause after the first failure, in seconds; doubled at each further one."""
    backoff_max_s: float
    """Longest pause of all, in seconds."""
    timeout_s: float
    """Seconds for one attempt, with name lookup and redirects."""
    allow_private: bool
    """Whether callbacks may go to loopback and private networks."""
    allowed_hosts: tuple[str, ...] = ()
    """Names (`*.` for all below one), addresses and networks that are permitted though they are not public."""

    def __post_init__(self) -> None:
        parse_exceptions(self.allowed_hosts)

    @property
    def rules(self) -> Rules:
        """Where its webhooks may go."""
        return Rules(self.allow_private, parse_exceptions(self.allowed_hosts))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of one attempt."""

    outcome: Outcome
    status: int | None
    """Of the receiver's answer; None when there was none."""
    error: str | None
    """Why it is not delivered, without the URL's path, which may be secret, and without anything the receiver wrote."""
    duration_s: float = 0.0
    """Seconds it took, without the wait for its turn."""
    retry_after: float | None = None
    """Seconds that the receiver asked for, >= 0."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An entry of a message's delivery log."""

    attempt: int
    """From 1."""
    at: float
    """When it ended, in seconds since 1970."""
    status: int | None
    error: str | None
    duration_s: float


def check_url(url: str, policy: WebhookPolicy) -> None:
    """Whether a callback can be accepted.

    Raises:
        RequestError: it may not go there, or this server signs no webhooks; with param `callback_url`.
    """
    if not policy.secrets:
        raise Unsupported(
            f"{PARAM}: this server has no secret to sign webhooks with, and sends none without; ask for the job's state"
            " instead, or have the operator configure a webhook secret",
            param=PARAM,
        )
    read_url(url, policy.rules)


def next_attempt(
    policy: WebhookPolicy, attempts_so_far: int, delivery: Delivery, now: float, chance: float
) -> float | None:
    """When to try again, in the clock of `now` (seconds); None when the message needs no more, or gets no more.

    Args:
        policy: how often, and how fast.
        attempts_so_far: attempts made, with the one of `delivery`; >= 1.
        delivery: what came of the last one.
        now: seconds.
        chance: 0 <= chance < 1, random: pauses are spread between half of the backoff and all of it, so that what
            failed together does not come back together.
    """
    if delivery.outcome in {"delivered", "gone"} or attempts_so_far >= policy.attempts:
        return None
    doubled = policy.backoff_s * 2.0 ** min(attempts_so_far - 1, _DOUBLINGS)
    pause = min(doubled, policy.backoff_max_s) * (0.5 + chance / 2)
    asked = min(delivery.retry_after or 0.0, policy.backoff_max_s)
    return now + max(pause, asked)


def logged(log: Sequence[Attempt], delivery: Delivery, at: float) -> tuple[Attempt, ...]:
    """The log with one more entry, of which the last 32 are kept.

    Args:
        log: entries so far; numbers go on from the last one.
        delivery: what came of the attempt.
        at: when it ended, in seconds since 1970.
    """
    number = log[-1].attempt + 1 if log else 1
    entry = Attempt(number, at, delivery.status, delivery.error, delivery.duration_s)
    return (*log[-(LOG_ATTEMPTS - 1) :], entry)


def judge(status: int, retry_after: str | None, now: float) -> Delivery:
    """What an answer means; its duration is not known here.

    Args:
        status: of the answer, after redirects.
        retry_after: its `Retry-After` header, if it has one.
        now: seconds since 1970, for a date in that header.
    """
    if 200 <= status < 300:  # noqa: PLR2004  success
        return Delivery("delivered", status, None)
    if status == GONE:
        return Delivery("gone", status, "the receiver answered 410: it wants no more")
    wait = read_retry_after(retry_after, now) if retry_after is not None and status in SLOW_DOWN else None
    return Delivery("failed", status, f"the receiver answered {status}", retry_after=wait)


def read_retry_after(value: str, now: float) -> float | None:
    """The seconds that a `Retry-After` header asks for, given as such or as a date; None when it is neither."""
    text = value.strip()
    if _SECONDS.fullmatch(text) is not None:
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - now)
    except (ValueError, OverflowError):
        return None
