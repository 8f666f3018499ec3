"""The OpenAPI document: request bodies that routes parse by themselves, and the refusals that they share."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stoker.http import answers, schemas

BODIES: tuple[type[BaseModel], ...] = (
    schemas.ChatRequest,
    schemas.CompletionRequest,
    schemas.EmbeddingsRequest,
    schemas.QueryRequest,
    schemas.JobRequest,
    schemas.BatchRequest,
    schemas.RolloutRequest,
)
SHARED: tuple[type[BaseModel], ...] = (answers.ErrorEnvelope, answers.Problem)
KEYS: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""The two ways to show a key, where keys are in force; `/docs` offers them."""
REFERENCE = "#/components/schemas/{model}"

_REASONS = {
    400: "The request must be changed",
    401: "A key is needed, or this one is not known",
    403: "The key may not do this",
    404: "No such model, job, file, batch or rollout",
    408: "The body came too slowly",
    409: "Something else must end first, or it does not fit",
    413: "The body is too large",
    415: "The body is compressed",
    422: "The `Idempotency-Key` was used with another request",
    429: "The caller took more than its share; `Retry-After` says when to come back",
    502: "The engine failed",
    503: "Overloaded, not ready or stopping; `Retry-After` says when to come back",
    504: "The deadline passed",
    507: "No space for more files",
}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The part of a route's OpenAPI operation that describes its JSON body."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def refusals() -> dict[int | str, dict[str, Any]]:
    """The error answers that every working route can give."""
    either = {
        "application/json": {"schema": {"$ref": REFERENCE.format(model="ErrorEnvelope")}},
        "application/problem+json": {"schema": {"$ref": REFERENCE.format(model="Problem")}},
    }
    return {status: {"description": reason, "content": either} for status, reason in _REASONS.items()}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` include the schemas of bodies and errors, computed once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            wanted = [(model, "validation") for model in (*BODIES, *SHARED)]
            _, definitions = models_json_schema(wanted, ref_template=REFERENCE)  # type: ignore[arg-type]
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(definitions.get("$defs", {}))
            document["components"]["securitySchemes"] = KEYS
            document["security"] = [{}, *({name: []} for name in KEYS)]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
