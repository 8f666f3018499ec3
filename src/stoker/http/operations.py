"""Health and probes, for people, load balancers and Kubernetes; figures for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from stoker.admission.auth import Unauthorized
from stoker.health import Level
from stoker.http import answers
from stoker.http.gateway import Gateway
from stoker.observability.metrics import CONTENT_TYPE
from stoker.service import Service

Responses = dict[int | str, dict[str, Any]]
_PROBES: Responses = {200: {"model": answers.ProbeAnswer}, 503: {"model": answers.ProbeAnswer, "description": "No"}}
_REPORT: Responses = {200: {"model": answers.HealthReport}, 503: {"model": answers.HealthReport, "description": "No"}}


def router(service: Service, gateway: Gateway) -> APIRouter:
    """The routes /health and below, which never wait for an engine, and /metrics, as everybody may reach them.

    Where there is a monitor address, details and figures are told there alone.
    """
    elsewhere = service.settings.monitor.port is not None
    routes = _health(service, lambda request: not elsewhere and _is_known(gateway, request))
    if not elsewhere:
        _add_metrics(routes, service, lambda request: gateway.caller(request, None))
    return routes


def monitor(service: Service) -> FastAPI:
    """The application of the monitor address, which tells everything to whoever reaches it."""
    app = FastAPI(title="Stoker's monitor", openapi_url=None)
    routes = _health(service, lambda _: True)
    _add_metrics(routes, service, lambda _: None)
    app.include_router(routes)
    return app


def _health(service: Service, may_know: Callable[[Request], bool]) -> APIRouter:
    routes = APIRouter(tags=["Operations"])

    def probe(request: Request, level: Level) -> Response:
        failing = service.health.failing(level)
        if not failing:
            return _json({"status": "ok"}, 200)
        known = may_know(request)
        reasons = [f"{name}: {found.reason}" if known else name for name, found in failing]
        return _json({"status": "fail", "reason": "; ".join(reasons)}, 503)

    @routes.head("/health", include_in_schema=False)  # some monitors ask without wanting the body
    @routes.get("/health", summary="Full health report", responses=_REPORT)
    async def health(request: Request) -> Response:
        report = service.reporter.report()
        if not may_know(request):
            report = {key: report[key] for key in ("status", "checks")}
            report["checks"] = [{key: check[key] for key in ("name", "status")} for check in report["checks"]]
        return _json(report, 503 if report["status"] == "fail" else 200)

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", summary="Is the process alive?", responses=_PROBES)
    async def live(request: Request) -> Response:
        return probe(request, Level.LIVE)

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready", summary="Can it take requests?", responses=_PROBES)
    async def ready(request: Request) -> Response:
        return probe(request, Level.READY)

    @routes.head("/health/startup", include_in_schema=False)
    @routes.get("/health/startup", summary="Has it started?", responses=_PROBES)
    async def startup(request: Request) -> Response:
        return probe(request, Level.STARTUP)

    return routes


def _add_metrics(routes: APIRouter, service: Service, check: Callable[[Request], object]) -> None:
    """The route /metrics, for those whom `check` lets pass."""

    @routes.get("/metrics", summary="Figures in Prometheus's text format", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        check(request)
        text = await asyncio.to_thread(service.observer.metrics.render)
        return Response(text, media_type=CONTENT_TYPE)


def _is_known(gateway: Gateway, request: Request) -> bool:
    """Whether this caller may read details: strangers learn how it goes, and not from whom to learn more."""
    try:
        return not gateway.keys.required or gateway.caller(request, None).key_name is not None
    except Unauthorized:
        return False


def _json(document: Any, status: int) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
