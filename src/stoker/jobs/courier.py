"""Takes the results of ended jobs to their callbacks, until the receiver has them or has had its attempts.

What is due stands in the job log, so that a restart forgets no delivery. A delivery that was made and could not be
noted is made again, under the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Final

from stoker.config.jobs import WebhookConfig
from stoker.jobs.document import message
from stoker.jobs.envelope import pack_deliveries, unpack_callback, unpack_deliveries
from stoker.jobs.sender import AT_ONCE, AT_ONCE_PER_HOST, Sender
from stoker.jobs.signing import parse_secret
from stoker.jobs.steadily import Steadily, report
from stoker.jobs.webhooks import Outcome, WebhookPolicy, logged, next_attempt
from stoker.store.jobs import Job, JobLog

WAIT_S: Final = 5.0
"""Seconds after which the log is asked again, whatever it said."""
TURNS: Final = AT_ONCE // AT_ONCE_PER_HOST
"""Attempts that one may have to wait for, when all go to one host."""


def webhook_policy(config: WebhookConfig) -> WebhookPolicy:
    """How webhooks are sent, as configured; ConfigError for secrets or hosts that are none."""
    return WebhookPolicy(
        tuple(parse_secret(secret.get_secret_value()) for secret in config.secrets),
        config.attempts,
        config.backoff,
        config.backoff_max,
        config.timeout,
        config.allow_private,
        config.allowed_hosts,
    )


class Courier:
    """Delivers what is due.

    Args:
        log: says what is due.
        sender: makes the attempts.
        policy: how often.

    Attributes:
        outcomes: attempts so far, by what came of them.
    """

    def __init__(self, log: JobLog, sender: Sender, policy: WebhookPolicy) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._log = log
        self._sender = sender
        self._policy = policy
        self._hidden_s = 2 * TURNS * policy.timeout_s + 30.0  # longer than any delivery of ours is under way
        self._under_way: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is due again later."""
        try:
            await Steadily("deliver webhooks").forever(self._round)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _round(self) -> None:
        """Take up what is due, or wait for it."""
        room = AT_ONCE - len(self._under_way)
        if room <= 0:
            self._room.clear()
            await self._room.wait()
            return
        if not await self._log.wait_callbacks(WAIT_S):
            return
        jobs = await self._log.due_callbacks(self._hidden_s, room)
        for job in jobs:
            task = asyncio.create_task(self._deliver(job), name=f"deliver-{job.id}")
            self._under_way.add(task)
            task.add_done_callback(self._delivered)
        if not jobs:  # another replica was faster
            await asyncio.sleep(0.05)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._room.set()
        report(task)  # it is due again after a while

    async def _deliver(self, job: Job) -> None:
        if job.callback is None:
            return
        body = message(job)
        delivery = await self._sender.deliver(unpack_callback(job.callback), f"msg_{job.id}", body)
        self.outcomes[delivery.outcome] += 1
        now = time.time()
        log = logged(unpack_deliveries(job.deliveries), delivery, now)
        again_at = next_attempt(self._policy, log[-1].attempt, delivery, now, random.random())  # noqa: S311 - no secret
        await Steadily("note a delivery").once(
            lambda: self._log.settle_callback(job.id, pack_deliveries(log), again_at)
        )
