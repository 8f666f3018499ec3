"""Asks a version's engines directly, beside the requests of users: to warm it, and to evaluate it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Final
from uuid import uuid4

from stoker.engine.pool import ModelPool
from stoker.errors import StokerError
from stoker.evaluation.asking import Question, Reply
from stoker.types import GenerationRequest, Message, Priority, ResponseFormat, Sampling, Timings

ANSWER_S: Final = 120.0
"""Longest time for one answer."""
WARM_TOKENS: Final = 16
WARM_PROMPT: Final = "Say in a few words what a river is."


class PoolAsker:
    """Questions of an evaluation, put to a model's engines as a job: users go before.

    Args:
        pool: the engines.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    async def ask(self, question: Question) -> Reply:
        """The answer; what goes wrong is told in it. The time in the waiting line is not counted."""
        request = GenerationRequest(
            id=f"eval-{uuid4().hex}",
            kind="chat",
            model=self._pool.settings.identity.name,
            deadline=time.monotonic() + ANSWER_S,
            messages=tuple(Message(role=one["role"], content=one["content"]) for one in question.messages),
            sampling=Sampling(max_tokens=question.max_tokens, temperature=question.temperature, seed=question.seed),
            response_format=None if question.response_schema is None else ResponseFormat(question.response_schema),
            cache=False,
            priority=Priority.JOB,
        )
        timings, pieces, tokens, finish = Timings(), list[str](), 0, None
        began = time.monotonic()
        first: float | None = None
        error: str | None = None
        try:
            async with aclosing(self._pool.generate(request, timings)) as chunks:
                async for chunk in chunks:
                    if first is None and chunk.text:
                        first = time.monotonic()
                    pieces.append(chunk.text)
                    finish = chunk.finish_reason or finish
                    tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        except StokerError as problem:
            error = problem.message
        at_work = began + max(timings.queue_ms, 0.0) / 1000
        return Reply(
            text="".join(pieces),
            tokens=tokens,
            first_token_s=None if first is None else first - at_work,
            total_s=time.monotonic() - at_work,
            error=error,
            finish_reason=finish,
        )


async def warm(pool: ModelPool) -> None:
    """Use every slot once, so that no user's request is the first one; raises StokerError when none gets an answer."""
    asker = PoolAsker(pool)
    question = Question(
        messages=({"role": "user", "content": WARM_PROMPT},), max_tokens=WARM_TOKENS, temperature=0.0, seed=0
    )
    replies = await asyncio.gather(*(asker.ask(question) for _ in range(pool.slots)))
    if replies and all(reply.error is not None for reply in replies):
        raise StokerError(f"the new version answers nothing: {replies[0].error}")
