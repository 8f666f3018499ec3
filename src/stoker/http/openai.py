"""The OpenAI routes: chat, completions, embeddings, models."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.errors import StokerError
from stoker.http import answers, schemas
from stoker.http.docs import body_of, refusals
from stoker.http.gateway import Gateway
from stoker.http.parse import read_body, refuse_dimensions
from stoker.http.render import ChatRenderer, CompletionRenderer
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
        body = read_body(schemas.ChatRequest, await gateway.body(request))
        generation = gateway.reader.chat(body, request.headers, gateway.principal(request))
        renderer = ChatRenderer(generation, _wants_usage(body))
        record = gateway.record(request)
        return Reply(gateway.pipeline, [generation], renderer, record, stream=bool(body.stream))

    @routes.post(
        "/completions",
        summary="Continue a text",
        response_model=answers.TextCompletion,
        responses=refusals(),
        openapi_extra=body_of(schemas.CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        body = read_body(schemas.CompletionRequest, await gateway.body(request))
        generations = gateway.reader.completions(body, request.headers, gateway.principal(request))
        renderer = CompletionRenderer(generations[0], _wants_usage(body))
        record = gateway.record(request)
        return Reply(gateway.pipeline, generations, renderer, record, stream=bool(body.stream))

    @routes.post(
        "/embeddings",
        summary="Turn texts into vectors",
        response_model=answers.EmbeddingList,
        responses=refusals(),
        openapi_extra=body_of(schemas.EmbeddingsRequest),
    )
    async def embeddings(request: Request) -> Response:
        body = read_body(schemas.EmbeddingsRequest, await gateway.body(request))
        refuse_dimensions(body)
        wanted = gateway.reader.embeddings(body, request.headers, gateway.principal(request))
        record = gateway.record(request)
        try:
            vectors = await gateway.until_disconnect(request, gateway.pipeline.embed(wanted, record), record)
            return _embedding_list(
                vectors, body.encoding_format == "base64", record.served(), record.usage.prompt_tokens
            )
        except StokerError as error:
            record.error, record.status = error, error.status
            raise
        finally:
            record.close()

    @routes.get("/models", summary="List the models", response_model=answers.ModelList)
    async def models() -> Response:
        data = [_model(pool.settings.identity) for pool in gateway.pipeline.pools.values()]
        return _json({"object": "list", "data": data})

    @routes.get("/models/{name}", summary="Show a model", response_model=answers.Model, responses=refusals())
    async def model(name: str) -> Response:
        return _json(_model(gateway.pipeline.find(name).settings.identity))

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


def _embedding_list(vectors: list[list[float]], packed: bool, identity: ModelIdentity, tokens: int) -> Response:
    """OpenAI's list of embeddings; `base64` packs each vector as little-endian 32-bit floats."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": identity.name, "usage": usage})


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
