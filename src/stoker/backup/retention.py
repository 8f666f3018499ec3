"""Which snapshots are kept and which may go: pure, from their dates, tags, pins and locks.

Each rule keeps the newest snapshot of each of the last N periods that have one, in UTC and by ISO 8601 weeks. Rules
stand for themselves: a snapshot that two of them keep uses up a place in both. Only good snapshots use up places.
Whatever the policy says, the newest good one, pinned and locked ones stay. So do those that cannot be restored as
they are, for they hold what somebody may still mend, and those dated after now: a clock that was wrong must not cost
the others their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from stoker.config.keeping import RetentionConfig
from stoker.errors import OperatorError

LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999 in Unix time: later ones have no month."""


class EmptyPolicy(OperatorError):
    """Asked to remove snapshots without a word about which to keep."""

    code = "empty_policy"
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Dated:
    """What retention knows of a snapshot. `created` and `locked_until` are Unix seconds; `good`: it can be restored."""

    id: str
    created: float
    tags: tuple[str, ...] = ()
    pinned: bool = False
    good: bool = True
    locked_until: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which snapshots stay, each with the reasons for people, and which go; both newest first."""

    keep: Mapping[str, tuple[str, ...]]
    remove: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """Keeps the newest of each of `count` periods; `period` names the one that a moment lies in."""

    name: str
    count: int
    period: Callable[[float], str]


def check_policy(policy: RetentionConfig) -> None:
    """Raises EmptyPolicy when the policy has no rule: what would remove everything is a mistake."""
    # An empty tag is none: it comes of a shell's variable that nobody set.
    if policy.last is None and not _rules(policy) and not any(tag.strip() for tag in policy.tags):
        raise EmptyPolicy(
            "no rule says which snapshots to keep, so none is removed; give some, such as --keep-last 7 "
            "--keep-weekly 4, or set backup.retention in the configuration"
        )


def decide(snapshots: Sequence[Dated], policy: RetentionConfig, now: float) -> Decision:
    """Which of a repository's snapshots stay and which go.

    Args:
        snapshots: all there are, in any order, each id once.
        policy: how many of what are kept.
        now: Unix seconds; only ages in the future and locks are measured by it, periods are not.

    Raises:
        EmptyPolicy: the policy has no rule.
    """
    check_policy(policy)
    newest_first = sorted(snapshots, key=lambda one: (_sortable(one.created), one.id), reverse=True)
    reasons = {one.id: _own_reasons(one, policy, now) for one in newest_first}
    counted = [one for one in newest_first if one.good and _has_been(one, now)]
    for one in counted[:1]:
        reasons[one.id].insert(0, "newest good one")
    for place, one in enumerate(counted[: policy.last or 0], start=1):
        reasons[one.id].append(f"last {place} of {policy.last}")
    for rule in _rules(policy):
        for period, one in _newest_of_each(counted, rule):
            reasons[one.id].append(f"{rule.name} {period}")
    return Decision(
        keep={id_: tuple(why) for id_, why in reasons.items() if why},
        remove=tuple(id_ for id_, why in reasons.items() if not why),
    )


def _own_reasons(one: Dated, policy: RetentionConfig, now: float) -> list[str]:
    """Why a snapshot stays whatever the others are."""
    reasons = []
    if not one.good:
        reasons.append("cannot be restored as it is: mend it, or remove it by hand")
    if not _has_been(one, now):
        reasons.append("dated in the future")
    if one.pinned:
        reasons.append("pinned")
    if one.locked_until is not None and not one.locked_until <= now:
        reasons.append(f"locked {_until(one.locked_until)}")
    return reasons + [f"tag {tag}" for tag in one.tags if tag in policy.tags]


def _rules(policy: RetentionConfig) -> list[_Rule]:
    counts = (
        ("hourly", policy.hourly, _hour),
        ("daily", policy.daily, _day),
        ("weekly", policy.weekly, _week),
        ("monthly", policy.monthly, _month),
    )
    return [_Rule(name, count, period) for name, count, period in counts if count is not None]


def _newest_of_each(newest_first: Sequence[Dated], rule: _Rule) -> list[tuple[str, Dated]]:
    """The first of each of the first periods, with the period's name."""
    found: dict[str, Dated] = {}
    for one in newest_first:
        period = rule.period(one.created)
        if period not in found:
            if len(found) == rule.count:
                break
            found[period] = one
    return list(found.items())


def _has_been(one: Dated, now: float) -> bool:
    """Whether a snapshot's date has passed; one that is no number has not."""
    return one.created <= now


def _sortable(created: float) -> float:
    return math.inf if math.isnan(created) else created


def _calendar(created: float) -> datetime:
    """The moment in UTC; those that calendars do not reach are put at their ends."""
    return datetime.fromtimestamp(min(max(created, 0.0), LATEST), UTC)


def _hour(created: float) -> str:
    return f"{_calendar(created):%Y-%m-%d %Hh}"


def _day(created: float) -> str:
    return f"{_calendar(created):%Y-%m-%d}"


def _week(created: float) -> str:
    return f"{_calendar(created):%G-W%V}"


def _month(created: float) -> str:
    return f"{_calendar(created):%Y-%m}"


def _until(when: float) -> str:
    """A time to come, for people."""
    return f"until {_calendar(when):%Y-%m-%d %H:%M} UTC" if when <= LATEST else "for ever"
