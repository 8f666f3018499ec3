"""The routes /v1/batches: files of requests, answered within a day."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.http import answers, schemas
from stoker.http.docs import body_of, refusals
from stoker.http.files import page_object
from stoker.http.gateway import Gateway
from stoker.http.jobs import SCOPE
from stoker.http.params import described, whole
from stoker.http.parse import read_body
from stoker.jobs.batch_shelf import KEEP_S
from stoker.jobs.batches import Batches, View

LISTED: Final = 20
MOST_LISTED: Final = 100
_PARAMETERS: Final = described(
    ("limit", "integer", f"batches of one page, 1 to {MOST_LISTED}; {LISTED} unless it is said"),
    ("after", "string", "the id of the last batch of the page before"),
)


def router(gateway: Gateway, batches: Batches) -> APIRouter:
    """The routes /v1/batches and below."""
    routes = APIRouter(prefix="/v1/batches", tags=["OpenAI"])

    @routes.post(
        "",
        summary="Answer a file of requests",
        response_model=answers.Batch,
        responses=refusals(),
        openapi_extra=body_of(schemas.BatchRequest),
    )
    async def create(request: Request) -> Response:
        caller = gateway.caller(request, SCOPE)
        body = read_body(schemas.BatchRequest, await gateway.body(request))
        keep_s = body.output_expires_after.seconds if body.output_expires_after else KEEP_S
        view = await batches.create(caller, body.endpoint, body.input_file_id, body.metadata, keep_s)
        return _json(batch_object(view))

    @routes.get(
        "", summary="List batches", response_model=answers.BatchList, responses=refusals(), openapi_extra=_PARAMETERS
    )
    async def list_batches(request: Request) -> Response:
        caller = gateway.caller(request, SCOPE)
        limit = whole(request, "limit", LISTED, 1, MOST_LISTED)
        views, more = await batches.page(caller, request.query_params.get("after"), limit)
        return _json(page_object([batch_object(view) for view in views], more=more))

    @routes.get("/{batch_id}", summary="Show a batch", response_model=answers.Batch, responses=refusals())
    async def show(request: Request, batch_id: str) -> Response:
        return _json(batch_object(await batches.get(gateway.caller(request, SCOPE), batch_id)))

    @routes.post("/{batch_id}/cancel", summary="Cancel a batch", response_model=answers.Batch, responses=refusals())
    async def cancel(request: Request, batch_id: str) -> Response:
        return _json(batch_object(await batches.cancel(gateway.caller(request, SCOPE), batch_id)))

    return routes


def batch_object(view: View) -> dict[str, Any]:
    """OpenAI's object `batch`."""
    batch = view.batch
    moments: dict[str, float | None] = {**batch.moments}
    if view.cancelling is not None:
        moments["cancelling"] = view.cancelling
    ended = batch.ended
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": list(batch.faults)} if batch.faults else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status if ended or view.cancelling is None else "cancelling",
        "output_file_id": batch.output_file_id if ended else None,
        "error_file_id": batch.error_file_id if ended else None,
        "created_at": int(batch.created),
        "in_progress_at": _second(moments.get("in_progress")),
        "expires_at": int(batch.expires),
        "finalizing_at": _second(moments.get("finalizing")),
        "completed_at": _second(moments.get("completed")),
        "failed_at": _second(moments.get("failed")),
        "expired_at": _second(moments.get("expired")),
        "cancelling_at": _second(moments.get("cancelling")),
        "cancelled_at": _second(moments.get("cancelled")),
        "request_counts": {"total": batch.total, "completed": view.completed, "failed": view.failed},
        "metadata": batch.metadata,
    }


def _second(at: float | None) -> int | None:
    return None if at is None else int(at)


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
