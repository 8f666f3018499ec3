"""Runs the web server around a service: binds early, starts the engines, and stops everything in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import uvicorn
from fastapi import FastAPI

from stoker.config import Settings
from stoker.errors import EngineDied, StartupError
from stoker.http.app import build
from stoker.http.office import Office, open_office
from stoker.http.operations import monitor
from stoker.http.protocol import Protocol
from stoker.lineup import PlannedModel
from stoker.observability.logging import get_logger
from stoker.service import Service, running

BACKLOG = 2048
RESERVED_FILES = 192  # for engines (one connection a running request), stores, files and the logs
MONITOR_CONNECTIONS = 64
LAST_WORDS_S = 5.0  # for responses that are being written when the engines are gone
_log = get_logger("server")


@dataclass(frozen=True, slots=True)
class Announcer:
    """Told of the milestones of a server's life, to show them to people."""

    listening: Callable[[str], None]
    ready: Callable[[Service], None]
    stopping: Callable[[int], None]


class _Server(uvicorn.Server):
    """uvicorn, with the handling of signals left to us: readiness must turn before the listener closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone."""
        yield


def bind(host: str, port: int, purpose: Literal["", "monitor"] = "") -> socket.socket:
    """A listening socket; StartupError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose another with --port or --host" if not purpose else "choose another with monitor.port"
        raise StartupError(f"cannot listen on {host}:{port}: {reason}; {remedy}") from None
    listener.setblocking(False)
    return listener


def connections_within(wanted: int) -> int:
    """How many connections may be open at once: as wanted, or as many as leave file descriptors for everything else.

    The process's limit is raised as far as the system lets it; engines, stores and files need some of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = min(wanted, max(soft - RESERVED_FILES, soft // 4))
    if most < wanted:
        _log.warning("fewer connections than configured, by the limit of open files", connections=most, files=soft)
    return most


def url_of(listener: socket.socket) -> str:
    """The address that people type into a client."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    settings: Settings,
    models: Sequence[PlannedModel],
    listener: socket.socket,
    announcer: Announcer,
    *,
    monitoring: socket.socket | None = None,
    config_file: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and stop.

    Args:
        settings: the configuration.
        models: from `line_up`.
        listener: from `bind`; closed at the end.
        announcer: told of milestones.
        monitoring: from `bind`, for metrics and health alone; closed at the end.
        config_file: what the configuration was read from, if a file.

    Raises:
        StartupError: a model could not be brought up at all.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings tell of every scanner that passes
    stopper = _Stopper(announcer)  # before there is anything that a signal could leave behind
    async with running(settings, models, config_file) as service:
        most = connections_within(settings.limits.connections)
        office = await open_office(service)
        working = asyncio.create_task(office.run()) if office is not None else None
        servers = [(_server(settings, build(service, office), most), listener)]
        if monitoring is not None:
            servers.append((_server(settings, monitor(service), MONITOR_CONNECTIONS), monitoring))
        serving = [asyncio.create_task(server.serve(sockets=[place])) for server, place in servers]
        announcer.listening(url_of(listener))
        stopping = asyncio.create_task(stopper.drain_at_signal(service, office))
        watching = asyncio.create_task(_announce_ready(service, announcer))
        try:
            await asyncio.wait({*serving, stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and watching.exception() is None:
                await asyncio.wait({*serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            elif watching.done():
                raise StartupError(str(watching.exception()))
        finally:
            watching.cancel()
            stopping.cancel()
            if office is not None and working is not None:
                await office.stop(0.0)
                await working
            await service.conductor.close()
            await service.fleet.stop()
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*serving)
            for _, place in servers:
                place.close()


def _server(settings: Settings, app: FastAPI, most_connections: int) -> _Server:
    """A web server for an application, which listens nowhere so far."""
    return _Server(
        uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(Protocol, timeouts=settings.timeouts, most=most_connections)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,  # the peer is the address, unless a trusted proxy says otherwise
            server_header=False,
            timeout_keep_alive=math.ceil(settings.timeouts.keep_alive),
            timeout_graceful_shutdown=int(LAST_WORDS_S),
        )
    )


async def _announce_ready(service: Service, announcer: Announcer) -> None:
    try:
        await service.wait_ready()
    except EngineDied as error:
        raise StartupError(error.message) from None
    announcer.ready(service)


class _Stopper:
    """Turns signals into a drain: the first lets accepted requests finish, the second ends them at once."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._signals = 0
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        (self._first if self._signals == 1 else self._second).set()

    async def drain_at_signal(self, service: Service, office: Office | None) -> None:
        """Return when a signal has come and what was accepted is finished, or must not be waited for any longer."""
        await self._first.wait()
        self._announcer.stopping(service.busy)
        grace = service.settings.timeouts.shutdown
        leaving = asyncio.create_task(office.stop(grace)) if office is not None else None
        draining = asyncio.create_task(service.drain(grace))
        hurried = asyncio.create_task(self._second.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done() or not draining.result():
            _log.warning("stopping with requests unfinished", requests=service.busy)
        draining.cancel()
        hurried.cancel()
        if leaving is not None:
            leaving.cancel()
