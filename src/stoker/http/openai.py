"""The OpenAI routes: chat, completions, embeddings, models."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.errors import StokerError
from stoker.http import answers, schemas
from stoker.http.docs import body_of, refusals
from stoker.http.gateway import Gateway
from stoker.http.parse import read_body, refuse_dimensions
from stoker.http.render import ChatRenderer, CompletionRenderer, embedding_list
from stoker.http.reply import Reply
from stoker.types import ModelIdentity


def router(gateway: Gateway) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.post(
        "/chat/completions",
        summary="Answer a conversation",
        response_model=answers.ChatCompletion,
        responses=refusals(),
        openapi_extra=body_of(schemas.ChatRequest),
    )
    async def chat(request: Request) -> Response:
        caller = gateway.caller(request, "inference")
        body = read_body(schemas.ChatRequest, await gateway.body(request))
        ignored = gateway.reader.unknown_fields(body)
        generation = gateway.reader.chat(body, request.headers, caller.principal)
        renderer = ChatRenderer(generation, _wants_usage(body))
        record = gateway.record(request, caller, ignored)
        return Reply(gateway.pipeline, [generation], caller, renderer, record, stream=bool(body.stream))

    @routes.post(
        "/completions",
        summary="Continue a text",
        response_model=answers.TextCompletion,
        responses=refusals(),
        openapi_extra=body_of(schemas.CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        caller = gateway.caller(request, "inference")
        body = read_body(schemas.CompletionRequest, await gateway.body(request))
        ignored = gateway.reader.unknown_fields(body)
        generations = gateway.reader.completions(body, request.headers, caller.principal)
        renderer = CompletionRenderer(generations[0], _wants_usage(body))
        record = gateway.record(request, caller, ignored)
        return Reply(gateway.pipeline, generations, caller, renderer, record, stream=bool(body.stream))

    @routes.post(
        "/embeddings",
        summary="Turn texts into vectors",
        response_model=answers.EmbeddingList,
        responses=refusals(),
        openapi_extra=body_of(schemas.EmbeddingsRequest),
    )
    async def embeddings(request: Request) -> Response:
        caller = gateway.caller(request, "inference")
        body = read_body(schemas.EmbeddingsRequest, await gateway.body(request))
        refuse_dimensions(body)
        wanted = gateway.reader.embeddings(body, request.headers, caller.principal)
        record = gateway.record(request, caller)
        try:
            work = gateway.pipeline.embed(wanted, caller, request.headers, record)
            vectors = await gateway.until_disconnect(request, work, record)
        except StokerError as error:
            record.error, record.status = error, error.status
            raise
        else:
            answer = Response(embedding_list(vectors, body.encoding_format, record), media_type="application/json")
            answer.raw_headers += record.answer_headers()
            return answer
        finally:
            record.close()

    @routes.get("/models", summary="List the models", response_model=answers.ModelList)
    async def models(request: Request) -> Response:
        caller = gateway.caller(request, "inference")
        wayfinder = gateway.pipeline.wayfinder
        data = [_model(pool.settings.identity) for name, pool in wayfinder.pools.items() if caller.may_ask(name)]
        data += [
            {**_model(wayfinder.pool(expert.model).settings.identity), "id": name, "description": expert.description}
            for name, expert in wayfinder.experts.items()
            if caller.may_ask(name) or caller.may_ask(expert.model)
        ]
        return _json({"object": "list", "data": data})

    @routes.get("/models/{name}", summary="Show a model", response_model=answers.Model, responses=refusals())
    async def model(request: Request, name: str) -> Response:
        gateway.caller(request, "inference")
        wayfinder = gateway.pipeline.wayfinder
        expert = wayfinder.experts.get(name)
        found = _model(wayfinder.pool(expert.model if expert else name).settings.identity)
        return _json({**found, "id": name, "description": expert.description} if expert else found)

    return routes


def _wants_usage(body: schemas.SamplingFields) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _model(identity: ModelIdentity) -> dict[str, Any]:
    return {
        "id": identity.name,
        "object": "model",
        "created": identity.created,
        "owned_by": "stoker",
        "version": identity.version,
        "digest": f"sha256:{identity.digest}",
    }


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
