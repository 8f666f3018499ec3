"""The routes /admin/rollouts: a new version of a model takes over, is watched, and is taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.admission.auth import Caller, Forbidden
from stoker.config import Scope
from stoker.errors import NotFound, RequestError, StokerError
from stoker.http import rollout_answers as answers
from stoker.http import schemas
from stoker.http.docs import body_of, refusals
from stoker.http.gateway import Gateway
from stoker.http.params import described, seconds, whole
from stoker.http.parse import read_body
from stoker.models.names import parse_reference
from stoker.observability.audit import audit
from stoker.rollout.conductor import Conductor
from stoker.rollout.record import Order, Rollout

SCOPE: Final[Scope] = "admin"
LONGEST_WAIT_S: Final = 60.0
MAX_REVISION: Final = 2**53
_ELSEWHERE: Final = frozenset({"cross-site", "same-site"})
_PARAMETERS: Final = described(
    ("wait", "number", f"seconds to wait for news, at most {LONGEST_WAIT_S:g}"),
    ("revision", "integer", "the one that is known already: any other is news at once; that of now unless it is said"),
)


def router(gateway: Gateway, conductor: Conductor) -> APIRouter:
    """The routes /admin/rollouts and below."""
    routes = APIRouter(prefix="/admin/rollouts", tags=["Rollouts"])

    @routes.post(
        "",
        summary="Start a rollout",
        status_code=202,
        response_model=answers.Rollout,
        responses={200: {"description": "With `dry_run`", "model": answers.RolloutPlan}, **refusals()},
        openapi_extra=body_of(schemas.RolloutRequest),
    )
    async def start(request: Request) -> Response:
        caller = _administrator(gateway, request)
        body = read_body(schemas.RolloutRequest, await gateway.body(request))
        order = read_order(body)
        if body.dry_run:
            return _json(await conductor.plan(order))
        async with _audited(gateway, request, caller, "rollout started", model=order.model) as details:
            rollout = await conductor.start(order, caller.key_name)
            details.update(_named(rollout))
        answer = _json(rollout.document(), 202)
        answer.headers["location"] = f"/admin/rollouts/{rollout.id}"
        return answer

    @routes.get("", summary="List rollouts", response_model=answers.RolloutList, responses=refusals())
    async def list_rollouts(request: Request) -> Response:
        gateway.caller(request, SCOPE)
        current = conductor.current()
        data = [_listed(rollout) for rollout in conductor.history()]
        return _json({"object": "list", "data": data, "current": None if current is None else current.id})

    @routes.get(
        "/{rollout_id}",
        summary="Show a rollout, and wait for news of it",
        response_model=answers.Rollout,
        responses=refusals(),
        openapi_extra=_PARAMETERS,
    )
    async def show(request: Request, rollout_id: str) -> Response:
        gateway.caller(request, SCOPE)
        rollout = _found(conductor, rollout_id)
        patience = seconds(request, "wait", LONGEST_WAIT_S)
        seen = whole(request, "revision", rollout.revision, 0, MAX_REVISION)
        if patience and not rollout.ended and rollout.revision == seen:  # a restart may have led to a lower one
            rollout = await gateway.until_disconnect(request, conductor.changed(rollout.id, seen, patience))
        return _json(rollout.document())

    def act(verb: str, done: str, summary: str) -> None:
        """Offer POST /admin/rollouts/{id}/verb."""

        @routes.post(
            f"/{{rollout_id}}/{verb}",
            name=verb,
            summary=summary,
            response_model=answers.Rollout,
            responses=refusals(),
        )
        async def acting(request: Request, rollout_id: str) -> Response:
            caller = _administrator(gateway, request)
            acts = {"promote": conductor.promote, "rollback": conductor.rollback, "abort": conductor.abort}
            async with _audited(gateway, request, caller, done, rollout=rollout_id[:64]) as details:
                rollout = await acts[verb](_found(conductor, rollout_id).id, caller.key_name)
                details.update(_named(rollout))
            return _json(rollout.document())

    act("promote", "rollout promoted", "Let the new version take over")
    act("rollback", "rollout rolled back", "Bring the old version back")
    act("abort", "rollout aborted", "End a rollout before the new version has taken over")
    return routes


def read_order(body: schemas.RolloutRequest) -> Order:
    """What a body orders; RequestError for what makes no sense before anything is looked up."""
    if parse_reference(body.model) is None:
        raise RequestError(
            f"model: {body.model[:64]!r} is no NAME@VERSION of a stored model; `stoker models list` shows them",
            param="model",
        )
    if body.evaluation is not None and body.skip_evaluation:
        raise RequestError("evaluation: there is a set, and `skip_evaluation` says to use none", param="evaluation")
    return Order(
        model=body.model,
        serves=body.serves,
        evaluation=body.evaluation,
        skip_evaluation=body.skip_evaluation,
        promotion=body.promotion,
        canary=body.canary,
        canary_time=body.canary_time,
        bake=body.bake,
        accept_gap=body.accept_gap,
    )


def _listed(rollout: Rollout) -> dict[str, Any]:
    told = replace(rollout, steps=(), evaluation=None).document()
    del told["steps"], told["evaluation"]
    return told


def _administrator(gateway: Gateway, request: Request) -> Caller:
    """Who wants to change something; Forbidden for a web page of another site, which nobody's key stands behind.

    Without keys whoever is on this machine is its operator, and so would be every page that its browser shows.
    """
    caller = gateway.caller(request, SCOPE)
    if request.headers.get("sec-fetch-site") in _ELSEWHERE:
        raise Forbidden("a web page of another site asked for this; rollouts are no pages' business")
    return caller


def _found(conductor: Conductor, rollout_id: str) -> Rollout:
    rollout = conductor.get(rollout_id)
    if rollout is None:
        raise NotFound(f"there is no rollout {rollout_id[:64]!r} here; GET /admin/rollouts lists those that are kept")
    return rollout


@asynccontextmanager
async def _audited(
    gateway: Gateway, request: Request, caller: Caller, act: str, **details: Any
) -> AsyncIterator[dict[str, Any]]:
    """Writes the line about an act when it is done, or when it was not; what is added to the value stands in it."""
    address = gateway.observer.content.address(caller.address)
    try:
        yield details
    except StokerError as error:
        request.state.audited = True
        audit(act, key=caller.key_name, address=address, outcome="failed", error=error.code, **details)
        raise
    audit(act, key=caller.key_name, address=address, outcome="done", **details)


def _named(rollout: Rollout) -> dict[str, Any]:
    """Which rollout it is, for the audit log."""
    versions = {"before": rollout.before.ref, "after": rollout.after.ref}
    return {"rollout": rollout.id, "model": rollout.model, **versions}


def _json(told: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(told), status, media_type="application/json")
