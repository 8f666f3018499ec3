"""The routes /jobs: a request is taken in at once and answered later."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from stoker.config import Scope
from stoker.errors import RequestError, StokerError
from stoker.http import answers, schemas
from stoker.http.calls import QUERY
from stoker.http.docs import body_of, refusals
from stoker.http.following import told
from stoker.http.gateway import Gateway
from stoker.http.params import among, described, seconds, whole
from stoker.http.parse import read_body
from stoker.http.reply import STREAM_HEADERS
from stoker.jobs.desk import JobDesk, Order
from stoker.jobs.document import job_document
from stoker.observability.record import Record
from stoker.store.jobs import MAX_LISTED, STATES, Job, Submission

SCOPE: Final[Scope] = "jobs"
LONGEST_WAIT_S: Final = 60.0
FARTHEST_S: Final = 366 * 86_400.0
"""How far in the future a job may begin."""
LISTED: Final = 100
_MAX_NUMBER: Final = 2**53
_PARAMETERS: Final = described(
    ("state", "string", f"only jobs in these states, with commas between them: {', '.join(STATES)}"),
    ("batch", "string", "only jobs of this batch"),
    ("limit", "integer", f"jobs of one page, 1 to {MAX_LISTED}; {LISTED} unless it is said"),
    ("after", "string", "the `next` of the page before"),
)


class JobGone(StokerError):
    """There was such a job, and its time is over."""

    status = 410
    code = "job_gone"
    type = "invalid_request_error"


def router(gateway: Gateway, desk: JobDesk) -> APIRouter:
    """The routes /jobs and below."""
    routes = APIRouter(prefix="/jobs", tags=["Jobs"])

    @routes.post(
        "",
        summary="Hand in a request to be answered later",
        status_code=202,
        response_model=answers.Job,
        responses=refusals(),
        openapi_extra=body_of(schemas.JobRequest),
    )
    async def submit(request: Request) -> Response:
        caller = gateway.caller(request, SCOPE)
        raw = await gateway.body(request)
        order = read_order(raw)
        record = gateway.record(request, caller)
        key = request.headers.get("idempotency-key")
        try:
            submission = await desk.submit([order], caller, request.headers, record, idempotency_key=key, said=raw)
            return _accepted(submission, record)
        except StokerError as error:
            record.error, record.status = _in_words_of(order, error), error.status
            raise
        finally:
            record.close()

    @routes.get(
        "", summary="List jobs", response_model=answers.JobList, responses=refusals(), openapi_extra=_PARAMETERS
    )
    async def list_jobs(request: Request) -> Response:
        caller = gateway.caller(request, SCOPE)
        page = await desk.page(
            caller,
            states=[state for state in STATES if state in among(request, "state", STATES)] or STATES,
            batch=request.query_params.get("batch"),
            cursor=request.query_params.get("after"),
            limit=whole(request, "limit", LISTED, 1, MAX_LISTED),
        )
        data = [_listed(job) for job in page.jobs]
        return _json({"object": "list", "data": data, "has_more": page.cursor is not None, "next": page.cursor})

    @routes.get(
        "/{job_id}",
        summary="Show a job, and wait for its end",
        response_model=answers.Job,
        responses=refusals(),
        openapi_extra=described(("wait", "number", f"seconds to wait for its end, at most {LONGEST_WAIT_S:g}")),
    )
    async def show(request: Request, job_id: str) -> Response:
        caller = gateway.caller(request, SCOPE)
        patience = seconds(request, "wait", LONGEST_WAIT_S)
        if patience:
            job = await gateway.until_disconnect(request, desk.wait(job_id, caller, patience))
        else:
            job = await desk.get(job_id, caller)
        return _json(job_document(job, await desk.position(job)))

    @routes.get("/{job_id}/events", summary="Follow a job", response_class=StreamingResponse, responses=refusals())
    async def follow(request: Request, job_id: str) -> Response:
        caller = gateway.caller(request, SCOPE)
        job = await desk.get(job_id, caller)
        events = told(desk, job, caller, _last_event(request))
        return _Events(events, headers={name.decode(): value.decode() for name, value in STREAM_HEADERS})

    @routes.delete("/{job_id}", summary="Cancel a job", response_model=answers.Job, responses=refusals())
    async def cancel(request: Request, job_id: str) -> Response:
        job = await desk.cancel(job_id, gateway.caller(request, SCOPE))
        return _json(job_document(job))

    return routes


class _Events(StreamingResponse):
    """A stream that is closed with the response, not when somebody collects garbage."""

    def __init__(self, events: AsyncGenerator[bytes], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._events = events

    async def __call__(self, *arguments: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(*arguments)
        finally:
            await self._events.aclose()


def read_order(raw: bytes) -> Order:
    """What a body of POST /jobs orders; RequestError."""
    if not _is_order(raw):
        return Order(QUERY, raw)
    body = read_body(schemas.JobRequest, raw)
    now = time.time()
    # What the route would refuse it must get to see: numbers that JSON cannot write, text that is no Unicode.
    request = json.dumps(body.request, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return Order(
        endpoint=body.endpoint,
        body=request,
        callback_url=body.callback_url,
        not_before=_instant(body.not_before, now),
        expires_at=None if body.expires_in is None else now + body.expires_in,
        metadata=body.metadata or {},
    )


def _is_order(raw: bytes) -> bool:
    """Whether a body names its route; else it is a question for /query."""
    if b'"endpoint"' not in raw and b'"request"' not in raw:
        return False
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return True
    return isinstance(document, dict) and not document.keys().isdisjoint({"endpoint", "request"})


def _instant(said: str | float | None, now: float) -> float | None:
    """A time in Unix seconds; RequestError for what is none, or too far away."""
    if said is None:
        return None
    try:
        at = said if isinstance(said, (int, float)) else _from_text(said)
    except ValueError:
        message = "not_before: is no time; write it like 2026-01-31T08:00:00Z, or in seconds since 1970"
        raise RequestError(message, param="not_before") from None
    if not 0 <= at <= now + FARTHEST_S:
        raise RequestError("not_before: is before 1970, or more than a year away", param="not_before")
    return float(at)


def _from_text(said: str) -> float:
    at = datetime.fromisoformat(said)
    if at.tzinfo is None:
        raise ValueError("a time without its offset means a different one everywhere")
    return at.astimezone(UTC).timestamp()


def _in_words_of(order: Order, error: StokerError) -> StokerError:
    """The error, with the field at fault by the name that it has in the order."""
    if order.endpoint == QUERY and error.param and error.param.startswith("messages"):
        error.param = "text"
    return error


def _accepted(submission: Submission, record: Record) -> Response:
    if not submission.jobs:
        raise JobGone("the job of this Idempotency-Key was kept for long enough and removed; use a new key")
    record.status = 202
    job = submission.jobs[0]
    document = job_document(job)
    del document["position"]  # asking for it would take longer than handing the job in
    answer = _json(document, 202)
    answer.raw_headers += [(b"location", f"/jobs/{job.id}".encode()), *record.headers]
    if submission.replayed:
        answer.raw_headers.append((b"idempotent-replayed", b"true"))
    return answer


def _listed(job: Job) -> dict[str, Any]:
    document = job_document(job)
    del document["position"]
    return document


def _last_event(request: Request) -> int:
    """The number of the last event that a client has had; 0 when it says none that could be."""
    said = request.headers.get("last-event-id", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < len(str(_MAX_NUMBER)) else 0


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
