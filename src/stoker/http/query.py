"""`POST /query`: the simple way to ask. One question, one answer, with where it came from and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.errors import StokerError
from stoker.http import answers, schemas
from stoker.http.docs import body_of, refusals
from stoker.http.envelope import PROBLEM_TYPE, problem
from stoker.http.gateway import Gateway
from stoker.http.parse import read_body
from stoker.http.render import Answer, usage_object
from stoker.http.reply import Reply
from stoker.observability.record import Record
from stoker.types import Chunk, FinishReason, ModelIdentity, Usage


class QueryRenderer:
    """Events `{"text": ...}`, then one named `done` with everything else; or one object."""

    def __init__(self, identifier: str, record: Record) -> None:
        self._id = identifier
        self._record = record
        self._identity: ModelIdentity | None = None
        self._finish: FinishReason = "stop"

    def begin(self, identity: ModelIdentity) -> bytes:
        """Nothing: the first piece of text comes first."""
        self._identity = identity
        return b""

    def event(self, _index: int, chunk: Chunk) -> bytes:
        """An event of a piece of text."""
        if chunk.finish_reason:
            self._finish = chunk.finish_reason
        return b'data: {"text":' + orjson.dumps(chunk.text) + b"}\n\n" if chunk.text else b""

    def end(self, usage: Usage) -> bytes:
        """The event `done`: the whole answer's object, without its text."""
        document = self._document(self._identity, self._finish, usage)
        return b"event: done\ndata: " + orjson.dumps(document) + b"\n\n"

    def broken(self, error: StokerError) -> bytes:
        """The event `error`, with the problem."""
        return b"event: error\ndata: " + problem(error) + b"\n\n"

    def whole(self, identity: ModelIdentity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The answer as one object."""
        answer = answers[0]
        return orjson.dumps({"text": answer.text, **self._document(identity, answer.finish_reason, usage)})

    def refusal(self, error: StokerError) -> tuple[bytes, bytes]:
        """A problem object; the field at fault by the name it has here."""
        if error.param and error.param.startswith("messages"):
            error.param = "text"
        return problem(error), PROBLEM_TYPE

    def _document(self, identity: ModelIdentity | None, finish: FinishReason, usage: Usage) -> dict[str, Any]:
        timings = self._record.stamp()
        return {
            "id": self._id,
            "model": identity.name if identity else None,
            "finish_reason": finish,
            "usage": usage_object(usage),
            "cache": self._record.cache,
            "route": self._route(identity),
            "timings": {
                "queue_ms": round(timings.queue_ms, 2),
                "first_token_ms": round(timings.first_token_ms, 2),
                "total_ms": round(timings.total_ms, 2),
            },
        }

    def _route(self, identity: ModelIdentity | None) -> dict[str, Any]:
        record = self._record
        route: dict[str, Any] = {"model": identity.name if identity else None, "reason": record.route_reason}
        if record.expert is not None:
            route["expert"] = record.expert
        if record.confidence is not None:
            route["confidence"] = round(record.confidence, 3)
        return route


def router(gateway: Gateway) -> APIRouter:
    """The route /query."""
    routes = APIRouter(tags=["Query"])

    @routes.post(
        "/query",
        summary="Ask one question",
        response_model=answers.QueryAnswer,
        responses=refusals(),
        openapi_extra=body_of(schemas.QueryRequest),
    )
    async def query(request: Request) -> Response:
        caller = gateway.caller(request, "inference")
        body = read_body(schemas.QueryRequest, await gateway.body(request))
        generation = gateway.reader.query(body, request.headers, caller.principal)
        record = gateway.record(request, caller)
        renderer = QueryRenderer(generation.id, record)
        return Reply(gateway.pipeline, [generation], caller, renderer, record, stream=body.stream)

    return routes
