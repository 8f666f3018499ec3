"""Asks every question of a set, some at once, and judges the answers. No case can end the run."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from stoker.errors import StokerError
from stoker.evaluation.asking import Asker, Question, Reply
from stoker.evaluation.judge import judge_answer
from stoker.evaluation.judging import failures_of
from stoker.evaluation.report import CaseResult, Report, cut
from stoker.evaluation.written import Case, EvaluationSet

KEPT: Final = 100_000
"""Characters of an answer that a result keeps."""
NO_JUDGE: Final = "the case needs a judge, and none was given"


@dataclass(frozen=True, slots=True)
class _Run:
    the_set: EvaluationSet
    asker: Asker
    judge: Asker | None
    seed: int


async def run_evaluation(
    the_set: EvaluationSet,
    asker: Asker,
    *,
    judge: Asker | None = None,
    concurrency: int | None = None,
    seed: int | None = None,
    model: str = "",
    on_result: Callable[[CaseResult], None] | None = None,
) -> Report:
    """Ask everything once, after a warm-up that does not count.

    Args:
        the_set: what to ask.
        asker: of whom. An answer later than the set's `timeout` is an error, and so is an exception.
        judge: the model that judges answers where cases say so; without it those count as errors.
        concurrency: cases at once; default: the set's.
        seed: of the order of cases and of answers; default: the set's.
        model: what was asked, for the report.
        on_result: is called with each result as it comes.

    Cancelling ends it and every question under way.
    """
    run = _Run(the_set, asker, judge, the_set.seed if seed is None else seed)
    order = list(enumerate(the_set.cases))
    random.Random(run.seed).shuffle(order)  # noqa: S311 - an order that can be repeated
    began = time.monotonic()
    warming = replace(_question(run, order[0][1]), max_tokens=1, response_schema=None)
    await _ask(run.asker, warming, the_set.timeout)
    results: dict[int, CaseResult] = {}
    waiting = iter(order)

    async def work() -> None:
        for number, case in waiting:
            results[number] = result = await _try(run, case)
            if on_result is not None:
                on_result(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency or the_set.concurrency, len(order))):
            group.create_task(work())
    inorder = tuple(results[number] for number in range(len(order)))
    return Report(the_set.name, model, inorder, time.monotonic() - began, run.seed)


async def _try(run: _Run, case: Case) -> CaseResult:
    question = _question(run, case)
    reply = await _ask(run.asker, question, run.the_set.timeout)
    kept = replace(reply, text=cut(reply.text, KEPT))
    if reply.error is not None:
        return CaseResult(case.id, case.tags, passed=False, failures=(reply.error,), reply=kept)
    failures = failures_of(case.expect, reply)
    if case.expect.judge is None or failures:  # what has failed already need not be judged
        return CaseResult(case.id, case.tags, passed=not failures, failures=failures, reply=kept)
    if run.judge is None:
        return CaseResult(case.id, case.tags, passed=False, failures=(NO_JUDGE,), reply=kept, judge_error=NO_JUDGE)
    asking = judge_answer(case.expect.judge, question, reply.text)
    opinion = asking.read(await _ask(run.judge, asking.question, run.the_set.timeout))
    return CaseResult(
        case.id,
        case.tags,
        passed=not opinion.failure,
        failures=(opinion.failure,) if opinion.failure else (),
        reply=kept,
        score=opinion.score,
        judge_error=opinion.error,
    )


async def _ask(asker: Asker, question: Question, timeout: float) -> Reply:  # noqa: ASYNC109 - a late answer is a reply
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            return await asker.ask(question)
    except TimeoutError:
        error = f"no whole answer within {timeout:g} s"
    except StokerError as failure:
        error = failure.message
    except Exception as failure:  # noqa: BLE001 - whatever an asker does, the other cases are asked
        error = f"{type(failure).__name__}: {failure}"
    return Reply(total_s=time.perf_counter() - began, error=cut(error, 300))


def _question(run: _Run, case: Case) -> Question:
    the_set = run.the_set
    if case.messages is not None:
        messages = tuple({"role": message.role, "content": message.content} for message in case.messages)
    else:
        messages = ({"role": "user", "content": case.prompt or ""},)
    system = case.system or the_set.system
    if system is not None and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return Question(
        messages=messages,
        max_tokens=case.max_tokens or the_set.max_tokens,
        temperature=the_set.temperature,
        seed=run.seed,
        response_schema=case.expect.json_schema if case.constrain else None,
    )
