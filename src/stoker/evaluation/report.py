"""What an evaluation found: a result for each case, what they add up to, and both as plain JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stoker.evaluation.asking import Reply

if TYPE_CHECKING:
    from stoker.evaluation.verdict import Verdict

SHOWN: Final = 500
"""Characters of an answer in a document."""
LISTED: Final = 100
"""Cases in a document, the failed ones first, unless more are asked for."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case went.

    Attributes:
        id: the case's.
        tags: the case's.
        passed: whether everything that was expected was there.
        failures: what was not, in words; why there was no answer, if there was none.
        reply: the answer, cut at 100,000 characters.
        score: what the judge said, 0 to 1; None when it was not asked or did not answer.
        judge_error: why the judge did not answer.
    """

    id: str
    tags: tuple[str, ...]
    passed: bool
    failures: tuple[str, ...]
    reply: Reply
    score: float | None = None
    judge_error: str | None = None

    @property
    def error(self) -> str | None:
        """Why there is no answer, or no judgement of it; None when there is."""
        return self.reply.error or self.judge_error

    @property
    def outcome(self) -> str:
        """`passed`, `failed` or `error`."""
        return "passed" if self.passed else "error" if self.error else "failed"


@dataclass(frozen=True, slots=True)
class Tally:
    """Some cases, and how many of them passed."""

    cases: int
    passed: int

    @property
    def rate(self) -> float:
        """Share of passed cases; 0 without cases."""
        return self.passed / self.cases if self.cases else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All results of a run, in the order of the set. `seconds` is how long it took."""

    set_name: str
    model: str
    results: tuple[CaseResult, ...]
    seconds: float = 0.0
    seed: int = 0

    @property
    def tally(self) -> Tally:
        """All cases."""
        return _tally(self.results)

    @property
    def pass_rate(self) -> float:
        """Share of cases that passed, 0 to 1; one without an answer did not."""
        return self.tally.rate

    @property
    def by_tag(self) -> Mapping[str, Tally]:
        """The same for each tag, in order of appearance."""
        tags = dict.fromkeys(tag for result in self.results for tag in result.tags)
        return {tag: _tally(result for result in self.results if tag in result.tags) for tag in tags}

    @property
    def errors(self) -> int:
        """Cases without an answer, or without the judge's."""
        return sum(result.error is not None for result in self.results)

    @property
    def ttft_p95(self) -> float | None:
        """Seconds to the first token, 95th percentile over whole answers; None without any."""
        times = [r.reply.first_token_s for r in self.results if r.reply.error is None]
        return percentile([time for time in times if time is not None], 0.95)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of a whole answer from the question to its end, the median; None when no server counted."""
        replies = [r.reply for r in self.results if r.reply.error is None]
        return percentile(
            [reply.tokens / reply.total_s for reply in replies if reply.tokens and reply.total_s > 0], 0.5
        )


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which a share (0..1) lies, interpolated (Hyndman and Fan, definition 7); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def document(
    report: Report, verdict: Verdict, against: Report | None = None, *, listed: int | None = LISTED
) -> dict[str, Any]:
    """A report as JSON values; texts are cut, and at most `listed` cases are in it (None: all), failed ones first."""
    ordered = sorted(report.results, key=lambda result: result.passed)
    chosen = {result.id for result in ordered[:listed]}
    shown = [result for result in report.results if result.id in chosen]
    changed = differences(report, against) if against is not None else ()
    return {
        **figures(report),
        "verdict": verdict.document(),
        "against": None if against is None else figures(against),
        "differences": [difference.document() for difference in changed[:listed]],
        "results": [_result(result) for result in shown],
        "omitted": len(report.results) - len(shown),
    }


def figures(report: Report) -> dict[str, Any]:
    """What a report adds up to, as JSON values."""
    return {
        "set": report.set_name,
        "model": report.model,
        "cases": len(report.results),
        "passed": report.tally.passed,
        "pass_rate": round(report.pass_rate, 4),
        "errors": report.errors,
        "ttft_p95": _rounded(report.ttft_p95),
        "tokens_per_s": _rounded(report.tokens_per_s),
        "seconds": round(report.seconds, 2),
        "seed": report.seed,
        "tags": {tag: {"cases": t.cases, "passed": t.passed} for tag, t in report.by_tag.items()},
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """A case that one of two versions passed and the other did not."""

    case: str
    before: CaseResult
    after: CaseResult

    @property
    def better(self) -> bool:
        """Whether it passes now."""
        return self.after.passed

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {"case": self.case, "before": _side(self.before), "after": _side(self.after)}


def differences(report: Report, against: Report) -> tuple[Difference, ...]:
    """The cases that one report passed and the other did not: those that got worse first, then in the set's order."""
    before = {result.id: result for result in against.results}
    changed = [
        Difference(after.id, before[after.id], after)
        for after in report.results
        if after.id in before and before[after.id].passed != after.passed
    ]
    return tuple(sorted(changed, key=lambda difference: difference.better))


def cut(text: str, longest: int) -> str:
    """A text's beginning, with a mark where it was cut."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _result(result: CaseResult) -> dict[str, Any]:
    reply = result.reply
    return {
        "id": result.id,
        "tags": list(result.tags),
        **_side(result),
        "failures": [cut(failure, SHOWN) for failure in result.failures],
        "tokens": reply.tokens,
        "ttft": _rounded(reply.first_token_s),
        "seconds": _rounded(reply.total_s),
        "finish_reason": reply.finish_reason,
        "score": result.score,
    }


def _side(result: CaseResult) -> dict[str, Any]:
    return {"outcome": result.outcome, "answer": cut(result.reply.text, SHOWN)}


def _tally(results: Iterable[CaseResult]) -> Tally:
    passed = [result.passed for result in results]
    return Tally(len(passed), sum(passed))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
