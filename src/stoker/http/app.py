"""The web application: middleware and routes, in the order in which a request meets them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stoker import __version__
from stoker.admission.addresses import parse_networks
from stoker.errors import MethodNotAllowed, NotFound, RequestError, StokerError
from stoker.http import admin, batches, docs, envelope, files, jobs, openai, operations, query, rollouts
from stoker.http.gateway import Gateway
from stoker.http.middleware import Arriving, Endpoint, Errors, RequestId, Shortcut
from stoker.http.office import Office
from stoker.http.parse import Reader
from stoker.service import Service


def build(service: Service, office: Office | None = None) -> FastAPI:
    """The application in front of a service, and of its jobs where there are any."""
    app: FastAPI = FastAPIOffline(
        title="Stoker",
        version=__version__,
        description="A small language model behind a reliable API: OpenAI's under /v1, and /query, the simple one.",
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat whatever Host the client sent
        static_url="/docs/static",
    )
    gateway = Gateway(
        settings=service.settings,
        pipeline=service.pipeline,
        reader=Reader(service.settings),
        arriving=Arriving(service.settings.limits.bodies_mib * 2**20),
        keys=service.keys,
        proxies=parse_networks(service.settings.trusted_proxies),
        observer=service.observer,
    )
    asking = (query.router(gateway), openai.router(gateway))
    for router in asking:
        app.include_router(router)
    if office is not None:
        app.include_router(jobs.router(gateway, office.desk))
        if office.batches is not None:
            app.include_router(files.router(gateway, office.batches))
            app.include_router(batches.router(gateway, office.batches))
    app.include_router(admin.router(gateway))
    app.include_router(rollouts.router(gateway, service.conductor))
    app.include_router(operations.router(service, gateway))
    app.add_exception_handler(HTTPException, _http_exception)
    docs.install(app)
    # The last one added is the first that a request meets.
    app.add_middleware(Shortcut, endpoints=_by_path(asking))
    app.add_middleware(Errors, observer=service.observer)
    app.add_middleware(RequestId, leaving=lambda: service.state.draining)
    return app


def _by_path(routers: Sequence[APIRouter]) -> dict[str, Endpoint]:
    """The endpoints that are asked by POST, by their paths."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {route.path: route.endpoint for route in routes if route.methods == {"POST"}}


async def _http_exception(request: Request, error: Exception) -> Response:
    """The router's own refusals, in the envelope of the path."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    wrapped = _wrap(status, request)
    body, kind = envelope.for_path(request.url.path, wrapped)
    return Response(body, wrapped.status, headers, media_type=kind.decode())


def _wrap(status: int, request: Request) -> StokerError:
    path = request.url.path[:200]
    if status == 404:  # noqa: PLR2004 - HTTP Not Found
        return NotFound(f"there is nothing at {path}; /docs lists what there is")
    if status == 405:  # noqa: PLR2004 - HTTP Method Not Allowed
        return MethodNotAllowed(f"{request.method} is not offered at {path}; /docs lists what is")
    return RequestError(f"the request cannot be served (status {status})")
