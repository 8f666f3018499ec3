"""The service's health: named checks that resources register themselves, at three levels that a probe can ask for.

`live` is about this process alone: restart it when that fails. `ready` is about taking traffic now. `startup` is over
when the first load is. A check is a cheap synchronous function of what is already known; it never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Outcome = Literal["ok", "warn", "fail"]


class Level(StrEnum):
    """What a failing check means."""

    LIVE = "live"
    READY = "ready"
    STARTUP = "startup"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, with a sentence for people, and the threshold by which it judged, where there is one."""

    outcome: Outcome
    reason: str
    threshold: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A named check and the levels at which it counts."""

    name: str
    levels: frozenset[Level]
    find: Callable[[], Finding]


@dataclass(slots=True)
class Health:
    """The checks of one running service."""

    checks: list[Check] = field(default_factory=list)

    def register(self, name: str, find: Callable[[], Finding], *levels: Level) -> None:
        """Add a check; without levels it only shows in the full report."""
        self.checks.append(Check(name, frozenset(levels or {Level.INFO}), find))

    def findings(self, level: Level | None = None) -> list[tuple[str, Finding]]:
        """What the checks of a level, or all of them, find now."""
        return [(check.name, check.find()) for check in self.checks if level is None or level in check.levels]

    def failing(self, level: Level) -> list[tuple[str, Finding]]:
        """What fails of a level, by its check's name; empty when the probe is to succeed."""
        return [(name, finding) for name, finding in self.findings(level) if finding.outcome == "fail"]
