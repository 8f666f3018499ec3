"""The rollouts of a running server, as the verbs ask for them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from stoker.cli.client import Ask, Client, Refused, Unreachable

ROUTE: Final = "/admin/rollouts"


class Rollouts(Client):
    """The rollouts of one server."""

    def passes(self, ask: Ask, error: Unreachable | Refused) -> bool:
        """Whether the same request may succeed later. What changes something is never done twice by itself."""
        if ask.method == "GET":
            return super().passes(ask, error)
        if isinstance(error, Unreachable):
            return not error.there and super().passes(ask, error)
        asked_to_wait = error.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        return asked_to_wait and error.retry_after is not None

    def remark(self, ask: Ask, status: int, code: str) -> str:
        """What to do about a refusal."""
        if status == HTTPStatus.FORBIDDEN:
            return "rollouts need a key with the scope admin: `stoker keys create NAME --scope admin`"
        if status in {404, 405} and (not code or (ask.path == ROUTE and code != "model_not_found")):
            return f"{self.url} knows no rollouts: it is no Stoker, or an older one"
        if status == HTTPStatus.NOT_FOUND and ask.path != ROUTE:
            return "`stoker rollout history` lists those that are kept"
        return ""

    async def start(self, order: bytes) -> dict[str, Any]:
        """The rollout that an order began; with `dry_run` in it what would happen."""
        return await self._change(Ask("POST", ROUTE, order, {"Content-Type": "application/json"}))

    async def act(self, rollout_id: str, verb: str) -> dict[str, Any]:
        """The rollout after `promote`, `rollback` or `abort`."""
        return await self._change(Ask("POST", f"{_path(rollout_id)}/{verb}"))

    async def history(self) -> dict[str, Any]:
        """All that are kept, newest first, as `data`; the id of the one under way, or None, as `current`."""
        return await self.ask(Ask("GET", ROUTE))

    async def rollout(self, rollout_id: str) -> dict[str, Any]:
        """A rollout as it stands."""
        return await self.ask(Ask("GET", _path(rollout_id)))

    async def news(self, rollout: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A rollout when it has changed since, or when the seconds have passed."""
        params = (("wait", f"{seconds:g}"), ("revision", str(rollout["revision"])))
        return await self.ask(Ask("GET", _path(rollout["id"]), params=params, hold=seconds))

    async def _change(self, ask: Ask) -> dict[str, Any]:
        try:
            return await self.ask(ask)
        except Unreachable as error:
            if error.there:
                error.message += "; it may have been done: `stoker rollout status` shows how things stand"
            raise


def _path(rollout_id: str) -> str:
    return f"{ROUTE}/{quote(rollout_id, safe='')}"
