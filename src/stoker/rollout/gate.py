"""The evaluation that a new version must pass: the set is put to both versions, and the answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoker.engine.pool import ModelPool
from stoker.errors import RequestError
from stoker.evaluation.report import CaseResult, Report, document
from stoker.evaluation.run import run_evaluation
from stoker.evaluation.sets import EvaluationSet, parse_set
from stoker.evaluation.verdict import judge_report
from stoker.rollout.trying import PoolAsker

Telling = Callable[[Mapping[str, Any]], None]


class Gate:
    """One evaluation of two versions.

    Args:
        written: the document of the set, from `checked`; None lets everything pass.
        pools: what serves, among which is the judge that the set names.
        tell: is told how far it is.
    """

    def __init__(self, written: Mapping[str, Any] | None, pools: Mapping[str, ModelPool], tell: Telling) -> None:
        self._set = None if written is None else parse_set(dict(written))
        self._pools = pools
        self._tell = tell
        self._against: Report | None = None
        self._done = 0

    async def ask_before(self, pool: ModelPool) -> None:
        """Put the set to the version that serves, if it can answer."""
        if self._set is not None and pool.ready:
            self._against = await self._ask(self._set, pool)

    async def ask_after(self, pool: ModelPool) -> dict[str, Any] | None:
        """Put the set to the new version; the report as a document, with its verdict."""
        if self._set is None:
            return None
        report = await self._ask(self._set, pool)
        return document(report, judge_report(report, self._set.thresholds, self._against), self._against)

    async def _ask(self, the_set: EvaluationSet, pool: ModelPool) -> Report:
        judge = self._pools[the_set.judge.model] if the_set.judge and the_set.judge.model else None
        identity = pool.settings.identity
        return await run_evaluation(
            the_set,
            PoolAsker(pool),
            judge=PoolAsker(judge) if judge is not None else None,
            model=f"{identity.name}@{identity.version}",
            on_result=self._note,
        )

    def _note(self, _: CaseResult) -> None:
        self._done += 1
        total = 2 * len(self._set.cases) if self._set is not None else 0
        self._tell({"done": min(self._done, total), "total": total})


def checked(the_set: EvaluationSet, pools: Mapping[str, ModelPool]) -> dict[str, Any]:
    """The document of a set that can be asked here; RequestError when its judge cannot be."""
    if the_set.needs_judge:
        judge = the_set.judge
        if judge is not None and judge.url is not None:
            raise RequestError("in a rollout a model that is served here is the judge: set judge.model", param="judge")
        if judge is None or judge.model not in pools:
            there = ", ".join(pools)
            raise RequestError(
                f"the set needs a judge: name a model that is served here ({there})", param="judge.model"
            )
    return the_set.model_dump(mode="json", exclude_unset=True)
