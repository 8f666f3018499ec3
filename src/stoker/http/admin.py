"""Routes that change the server; each needs the scope `admin`."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stoker.http import answers
from stoker.http.docs import refusals
from stoker.http.gateway import Gateway
from stoker.observability.logging import get_logger

_log = get_logger("audit")


def router(gateway: Gateway) -> APIRouter:
    """The routes under /admin."""
    routes = APIRouter(prefix="/admin", tags=["Admin"])

    @routes.delete("/cache", summary="Forget stored answers", response_model=answers.Cleared, responses=refusals())
    async def clear_cache(request: Request, model: str | None = None) -> Response:
        caller = gateway.caller(request, "admin")
        identity = gateway.pipeline.wayfinder.pool(model).settings.identity if model else None
        cleared = await gateway.pipeline.cache.clear(identity)
        name = identity.name if identity else None
        _log.info("cache cleared", key=caller.key_name, address=caller.address, model=name, entries=cleared)
        return Response(orjson.dumps({"model": name, "cleared": cleared}), media_type="application/json")

    return routes
