"""The jobs API of a running server, as the verbs speak it."""

from __future__ import annotations

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from stoker.cli.client import FIRST_PAUSE_S, LONGEST_POLL_S, Ask, Client, Refused, Unreachable

ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})


class Remote(Client):
    """The jobs of one server."""

    def passes(self, ask: Ask, error: Unreachable | Refused) -> bool:
        """Whether the same request may succeed later; a conflict is a first submission that is still worked on."""
        return (error.status == HTTPStatus.CONFLICT and ask.method == "POST") or super().passes(ask, error)

    def remark(self, ask: Ask, status: int, code: str) -> str:
        """What to do about a refusal."""
        if status == HTTPStatus.NOT_FOUND and ask.path != "/jobs" and code:
            return "only the key that submitted a job sees it"
        if status in {404, 405} and code != "model_not_found":
            return f"{self.url} takes no jobs: it is no Stoker, an older one, or jobs.enabled is off there"
        return ""

    async def submit(self, order: bytes, idempotency_key: str) -> dict[str, Any]:
        """The job that an order became: a new one, or that of an earlier submission with the same key."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        return await self.ask(Ask("POST", "/jobs", order, headers))

    async def job(self, job_id: str, seconds: float = 0.0) -> dict[str, Any]:
        """A job as it stands; with `seconds` when it has ended or they have passed."""
        params = (("wait", f"{seconds:g}"),) if seconds > 0 else ()
        return await self.ask(Ask("GET", _path(job_id), params=params, hold=seconds))

    async def end(self, job_id: str, within: float = math.inf) -> dict[str, Any]:
        """A job when it has ended, or after `within` seconds as it stands then."""
        limit = time.monotonic() + within
        while True:
            asked = time.monotonic()
            job = await self.job(job_id, max(0.0, min(LONGEST_POLL_S, limit - asked)))
            if job["state"] in ENDED or time.monotonic() >= limit:
                return job
            if time.monotonic() - asked < FIRST_PAUSE_S:  # a proxy or a stopping server that does not hold answers
                await asyncio.sleep(max(0.0, min(FIRST_PAUSE_S, limit - time.monotonic())))

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """A job after it was asked to end."""
        return await self.ask(Ask("DELETE", _path(job_id)))

    async def page(self, params: tuple[tuple[str, str], ...]) -> dict[str, Any]:
        """A page of the caller's jobs, by the query's parameters."""
        return await self.ask(Ask("GET", "/jobs", params=params))


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
