"""A small server that speaks the jobs API, on a thread of its own, with switchable faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from tests.threaded_server import threaded

RUNS = ("queued", "running")
NOW = "2030-01-31T22:00:00.000Z"


@dataclass
class FakeJob:
    """A job; it ends by what its request says: `fails` fails, `expires` expires, anything else is answered."""

    id: str
    order: dict[str, Any]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    state: str = "queued"
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The job object."""
        document = {
            "id": self.id,
            "object": "job",
            "state": self.state,
            "endpoint": self.order["endpoint"],
            "created_at": NOW,
            "started_at": NOW,
            "finished_at": None if self.state in RUNS else NOW,
            "position": 3 if self.state == "queued" else None,
            "attempts": 1,
            "max_attempts": 5,
            "not_before": None,
            "expires_at": NOW,
            "metadata": self.order.get("metadata") or {},
            "timings": {"queued_ms": 1500.0, "running_ms": None},
        }
        more = {"result": self.result, "error": self.error}
        return document | {name: value for name, value in more.items() if value is not None}

    def finish(self, state: str) -> None:
        """End it."""
        if self.state not in RUNS:
            return
        asked = json.dumps(self.order["request"])
        self.state = state
        if state == "succeeded" and self.order["endpoint"] == "/query":
            self.result = {"text": f"answer to {self.order['request']['text']}"}
        elif state == "succeeded":
            self.result = {"choices": [{"message": {"role": "assistant", "content": f"answer to {asked}"}}]}
        elif state == "failed":
            self.error = {"code": "context_length_exceeded", "message": "too long", "type": "bad", "status": 400}
        self.ended.set()


class JobsServer:
    """The server: `url` once it runs; settings may be changed at any time.

    Attributes:
        key: the API key that is needed.
        hold: whether jobs stay queued until `release`.
        refusals: answers for the next submissions: status, headers, body.
        lose: how many answers to calls of a method are lost: the call is done, then the connection is cut.
        deaf: connections are cut before anything is done.
        failing: texts whose jobs fail.
    """

    def __init__(self) -> None:
        self.url = ""
        self.key = ""
        self.hold = False
        self.refusals: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        self.lose = {"GET": 0, "POST": 0}
        self.deaf = False
        self.failing = {"fails"}
        self.jobs: dict[str, FakeJob] = {}
        self.by_key: dict[str, FakeJob] = {}
        self.submissions: list[tuple[float, str, dict[str, Any]]] = []
        self.queries: list[str] = []
        self.most_open = 0
        self.waiting = 0
        self._loop = asyncio.new_event_loop()

    def release(self) -> None:
        """End what was held."""
        self.hold = False
        self._loop.call_soon_threadsafe(lambda: [self._run(job) for job in self.jobs.values()])

    def fail_next(self, status: int, code: str, **headers: str) -> None:
        """Refuse the next submission."""
        self.refusals.append((status, headers, {"status": status, "code": code, "detail": "not now"}))

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve until the context ends."""
        with threaded(self._loop, self._application) as self.url:
            yield self

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded])
        app.add_routes([web.post("/jobs", self._submit), web.get("/jobs", self._list)])
        app.add_routes([web.get("/jobs/{id}", self._get), web.delete("/jobs/{id}", self._cancel)])
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.deaf:
            request.transport.abort()
            return web.Response()
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return problem(401, "invalid_api_key", "no such key")
        response = await handler(request)
        if self.lose.get(request.method) and response.status < 300:
            self.lose[request.method] -= 1
            request.transport.abort()
        return response

    async def _submit(self, request: web.Request) -> web.Response:
        key, order = request.headers["Idempotency-Key"], await request.json()
        self.submissions.append((time.monotonic(), key, order))
        if self.refusals:
            status, headers, body = self.refusals.pop(0)
            return web.json_response(body, status=status, headers=headers)
        if "refused" in json.dumps(order["request"]):
            return problem(422, "prompt_injection", "looks like an attack")
        if "poison" in json.dumps(order["request"]):
            return problem(500, "internal_error", "a bug")
        if key not in self.by_key:
            job = FakeJob(f"job-{len(self.jobs) + 1}", order)
            self.jobs[job.id] = self.by_key[key] = job
            self.most_open = max(self.most_open, sum(other.state in RUNS for other in self.jobs.values()))
            if not self.hold:
                self._loop.call_later(0.01, self._run, job)
        job = self.by_key[key]
        if job.order != order:
            return problem(422, "idempotency_key_reused", "another request")
        return web.json_response(job.document, status=202, headers={"Location": f"/jobs/{job.id}"})

    def _run(self, job: FakeJob) -> None:
        asked = json.dumps(job.order["request"])
        failed = any(text in asked for text in self.failing)
        job.finish("failed" if failed else "expired" if "expires" in asked else "succeeded")

    async def _get(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return problem(404, "not_found", "there is no such job")
        self.waiting += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(job.ended.wait(), float(request.query.get("wait", 0)))
        self.waiting -= 1
        return web.json_response(job.document)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return problem(404, "not_found", "there is no such job")
        job.finish("cancelled")
        return web.json_response(job.document)

    async def _list(self, request: web.Request) -> web.Response:
        self.queries.append(request.query_string)
        listed = [job.document for job in self.jobs.values()][: int(request.query["limit"])]
        more = len(listed) < len(self.jobs)
        return web.json_response(
            {"object": "list", "data": listed, "has_more": more, "next": "cursor-2" if more else None}
        )


def problem(status: int, code: str, detail: str) -> web.Response:
    """An error as RFC 9457 has it."""
    body = {"type": "about:blank", "title": "x", "status": status, "detail": detail, "code": code}
    return web.json_response(body, status=status, content_type="application/problem+json")
