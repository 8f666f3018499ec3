"""Whether a report is good enough: thresholds by themselves and against another version. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stoker.evaluation.report import Difference, Report, differences
from stoker.evaluation.written import Thresholds

__all__ = ["Check", "Difference", "Verdict", "differences", "judge_report"]

_SLACK = 1e-9
"""For rates whose shares are not exact in binary: 0.9 - 0.8 is more than 0.1 there."""


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold.

    Attributes:
        name: `pass_rate`, `errors`, `tag:NAME`, `ttft_p95` (seconds), `tokens_per_s`, `pass_rate_drop`,
            `ttft_p95_ratio` or `tokens_per_s_ratio`.
        value: what was measured; None when nothing was, which fails.
        limit: what was wanted.
        bound: whether the limit is the least or the most that passes.
    """

    name: str
    value: float | None
    limit: float
    bound: Literal["least", "most"]

    @property
    def passed(self) -> bool:
        """Whether the value keeps to the limit."""
        if self.value is None:
            return False
        over = self.value - self.limit
        return over >= -_SLACK if self.bound == "least" else over <= _SLACK

    def __str__(self) -> str:
        """The check in words: `pass rate 87.5 %, at least 90 % wanted`."""
        value = "not measured" if self.value is None else in_words(self.name, self.value)
        return f"{label(self.name)} {value}, at {self.bound} {in_words(self.name, self.limit)} wanted"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of a report."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The checks that failed, in words; "" when none did."""
        return "; ".join(str(check) for check in self.checks if not check.passed)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        checks = [
            {"name": c.name, "value": c.value, "limit": c.limit, "bound": c.bound, "passed": c.passed}
            for c in self.checks
        ]
        return {"passed": self.passed, "reason": self.reason, "checks": checks}


def judge_report(report: Report, thresholds: Thresholds, against: Report | None = None) -> Verdict:
    """The verdict on a report.

    Args:
        report: of the version in question.
        thresholds: what it must reach. Where they ask nothing of the share of passed cases, all must pass.
        against: of the other version, usually the one that is serving, with the same set; without it, and where that
            one has no figure to compare with, thresholds relative to it are left out.
    """
    return Verdict(
        (*_absolute(report, thresholds), *(() if against is None else _relative(report, thresholds, against)))
    )


def _absolute(report: Report, wanted: Thresholds) -> Iterator[Check]:
    yield Check("errors", report.errors, wanted.errors, "most")
    if wanted.pass_rate is not None:
        yield Check("pass_rate", report.pass_rate, wanted.pass_rate, "least")
    elif not wanted.tags and wanted.pass_rate_drop is None:
        yield Check("pass_rate", report.pass_rate, 1.0, "least")
    tallies = report.by_tag
    for tag, rate in wanted.tags.items():
        yield Check(f"tag:{tag}", tallies[tag].rate if tag in tallies else None, rate, "least")
    if wanted.ttft_p95 is not None:
        yield Check("ttft_p95", report.ttft_p95, wanted.ttft_p95, "most")
    if wanted.tokens_per_s is not None:
        yield Check("tokens_per_s", report.tokens_per_s, wanted.tokens_per_s, "least")


def _relative(report: Report, wanted: Thresholds, against: Report) -> Iterator[Check]:
    if wanted.pass_rate_drop is not None:
        drop = max(0.0, against.pass_rate - report.pass_rate)
        yield Check("pass_rate_drop", drop, wanted.pass_rate_drop, "most")
    if wanted.ttft_p95_ratio is not None and against.ttft_p95:
        yield Check("ttft_p95_ratio", _ratio(report.ttft_p95, against.ttft_p95), wanted.ttft_p95_ratio, "most")
    if wanted.tokens_per_s_ratio is not None and against.tokens_per_s:
        ratio = _ratio(report.tokens_per_s, against.tokens_per_s)
        yield Check("tokens_per_s_ratio", ratio, wanted.tokens_per_s_ratio, "least")


def _ratio(value: float | None, other: float) -> float | None:
    return None if value is None else value / other


def label(name: str) -> str:
    """What a check is about, for people."""
    if name.startswith("tag:"):
        return f"pass rate of {name.removeprefix('tag:')}"
    return {
        "errors": "failed requests",
        "pass_rate": "pass rate",
        "ttft_p95": "time to first token (p95)",
        "tokens_per_s": "tokens a second (median)",
        "pass_rate_drop": "pass rate lost against the other version",
        "ttft_p95_ratio": "time to first token against the other version",
        "tokens_per_s_ratio": "tokens a second against the other version",
    }[name]


def in_words(name: str, value: float) -> str:
    """A check's value with its unit."""
    if name == "errors":
        return f"{value:.0f}"
    if name == "ttft_p95":
        return f"{value:.3g} s"
    if name == "tokens_per_s":
        return f"{value:.3g}"
    if name.endswith("_ratio"):
        return f"{value:.2f} times"
    return f"{100 * value:.1f} %".replace(".0 ", " ")
