"""A small server that speaks the API of rollouts, on a thread of its own: a rollout goes on by a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from aiohttp import web
from tests.threaded_server import threaded

ENDED = {"succeeded", "refused", "failed", "aborted", "rolled_back"}
ACTS = {"promote": "baking", "rollback": "rolled_back", "abort": "aborted"}
PLAN = {
    "model": "chat",
    "before": {"ref": "chat@1", "version": "1", "digest": "1" * 64},
    "after": {"ref": "chat@2", "version": "2", "digest": "2" * 64},
    "fits": True,
    "needed_bytes": 512_000_000,
    "granted_bytes": 2_000_000_000,
    "message": "",
    "steps": ["load and warm the new version beside the running one", "give it to everybody in one step"],
}


def level(requests: int, error_rate: float | None = 0.0, ttft_p95: float | None = 0.05) -> dict[str, Any]:
    """Figures of a version."""
    return {"requests": requests, "error_rate": error_rate, "ttft_p95": ttft_p95}


class RolloutsServer:
    """The server: `url` once it runs; settings may be changed at any time.

    Attributes:
        script: what the next polls find changed, one after another; an empty one stays as it is.
        refusals: answers for the next acts: status, code, words.
        lose: how many answers to acts are lost: the act is done, then the connection is cut.
        away: how many polls are cut off.
        key: the API key that is needed.
        orders, acts, polls: what was asked.
    """

    def __init__(self) -> None:
        self.url = ""
        self.key = ""
        self.script: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str, str]] = []
        self.lose = self.away = 0
        self.orders: list[dict[str, Any]] = []
        self.acts: list[tuple[str, str]] = []
        self.polls: list[dict[str, str]] = []
        self.rollouts: dict[str, dict[str, Any]] = {}
        self._loop = asyncio.new_event_loop()

    def add(self, phase: str = "loading", **more: Any) -> dict[str, Any]:
        """A rollout that is there already."""
        now = time.time()
        document = {
            "id": f"rol-{len(self.rollouts) + 1}",
            "model": "chat",
            **{name: PLAN[name] for name in ("before", "after")},
            "options": {
                "evaluation": "smoke",
                "promotion": "auto",
                "canary": 0.0,
                "canary_time": 300.0,
                "bake": 600.0,
                "gap": False,
            },
            "phase": phase,
            "by": "ops",
            "created": now,
            "updated": now,
            "until": None,
            "attempts": 1,
            "evaluation": None,
            "progress": None,
            "warm": False,
            "promoted": False,
            "reason": "",
            "revision": 1,
            "steps": [{"phase": phase, "at": now, "note": ""}],
            "ended": phase in ENDED,
            **more,
        }
        self.rollouts[document["id"]] = document
        return document

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve until the context ends."""
        with threaded(self._loop, self._application) as self.url:
            yield self

    def _application(self) -> web.Application:
        route = "/admin/rollouts"
        app = web.Application(middlewares=[self._guarded])
        app.add_routes([web.post(route, self._start), web.get(route, self._list)])
        app.add_routes([web.get(route + "/{id}", self._get), web.post(route + "/{id}/{verb}", self._act)])
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return problem(403, "permission_denied", "the key 'x' lacks the scope 'admin'")
        if request.method == "POST" and self.refusals:
            status, code, words = self.refusals.pop(0)
            return problem(status, code, words)
        if request.method == "GET" and "wait" in request.query and self.away:
            self.away -= 1
            request.transport.abort()
            return web.Response()
        response = await handler(request)
        if request.method == "POST" and self.lose:
            self.lose -= 1
            request.transport.abort()
        return response

    async def _start(self, request: web.Request) -> web.Response:
        order = await request.json()
        self.orders.append(order)
        if order.get("dry_run"):
            return web.json_response(PLAN)
        return web.json_response(self.add(), status=202)

    async def _list(self, _request: web.Request) -> web.Response:
        newest = list(self.rollouts.values())[::-1]
        slim = [{k: v for k, v in one.items() if k not in {"steps", "evaluation"}} for one in newest]
        current = next((one["id"] for one in newest if not one["ended"]), None)
        return web.json_response({"object": "list", "data": slim, "current": current})

    async def _get(self, request: web.Request) -> web.Response:
        rollout = self.rollouts.get(request.match_info["id"])
        if rollout is None:
            return problem(404, "not_found", "there is no such rollout")
        if "wait" in request.query:
            self.polls.append(dict(request.query))
            if self.script:
                self._change(rollout, **self.script.pop(0))
            else:
                await asyncio.sleep(0.01)
        return web.json_response(rollout)

    async def _act(self, request: web.Request) -> web.Response:
        identity, verb = request.match_info["id"], request.match_info["verb"]
        self.acts.append((verb, identity))
        self._change(self.rollouts[identity], phase=ACTS[verb], note="as told")
        return web.json_response(self.rollouts[identity])

    def _change(self, rollout: dict[str, Any], note: str = "", **changes: Any) -> None:
        if changes.get("phase", rollout["phase"]) != rollout["phase"]:
            step = {"phase": changes["phase"], "at": rollout["steps"][-1]["at"] + 1, "note": note}
            rollout |= {"steps": [*rollout["steps"], step], "reason": note, "progress": None}
        rollout |= {**changes, "revision": rollout["revision"] + 1}
        rollout["ended"] = rollout["phase"] in ENDED


def problem(status: int, code: str, detail: str) -> web.Response:
    """An error as RFC 9457 has it."""
    body = {"type": "about:blank", "title": "x", "status": status, "detail": detail, "code": code}
    return web.json_response(body, status=status, content_type="application/problem+json")
