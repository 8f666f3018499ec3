"""Routes that change the server; each needs the scope `admin`."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.http import answers
from stoker.http.docs import refusals
from stoker.http.gateway import Gateway
from stoker.observability.audit import audit


def router(gateway: Gateway) -> APIRouter:
    """The routes under /admin."""
    routes = APIRouter(prefix="/admin", tags=["Admin"])

    @routes.delete("/cache", summary="Forget stored answers", response_model=answers.Cleared, responses=refusals())
    async def clear_cache(request: Request, model: str | None = None) -> Response:
        caller = gateway.caller(request, "admin")
        identity = gateway.pipeline.wayfinder.pool(model).settings.identity if model else None
        cleared = await gateway.pipeline.cache.clear(identity)
        name = identity.name if identity else None
        address = gateway.observer.content.address(caller.address)
        audit("cache cleared", key=caller.key_name, address=address, outcome="done", model=name, entries=cleared)
        return Response(orjson.dumps({"model": name, "cleared": cleared}), media_type="application/json")

    return routes
