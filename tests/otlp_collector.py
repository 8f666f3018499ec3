"""A real collector for OTLP over HTTP, with switchable faults; it decodes with the protocol's own classes."""

from __future__ import annotations

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ARRIVE_WITHIN_S = 20.0


class Collector:
    """Listens on a free port of the loopback address.

    Attributes:
        spans: what arrived and was accepted, in order.
        resources: the attributes of each batch's resource.
        scopes: name and version of each batch's scope.
        requests: path and headers (in small letters) of every request, refused ones too.
        status: what is answered; below 300 what was sent is accepted.
        headers: more headers of the answers.
        delay_s: how long an answer takes.
        raw: bytes to answer instead of HTTP; the connection is closed after them.
        endless: whether answers have bodies without an end.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.scopes: list[tuple[str, str]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay_s = 0.0
        self.raw: bytes | None = None
        self.endless = False
        self.closing = threading.Event()
        self._arrival = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"collector": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, count: int) -> list[Span]:
        """The spans, once there are that many."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: len(self.spans) >= count, ARRIVE_WITHIN_S), f"{len(self.spans)} spans"
        return self.spans

    def span(self, name: str) -> Span:
        """The one span of that name."""
        (found,) = (span for span in self.spans if span.name == name)
        return found

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """Note a request, and what is in it when it is accepted."""
        with self._arrival:
            self.requests.append((path, headers))
            if self.status < 300 and self.raw is None:
                self._accept(ExportTraceServiceRequest.FromString(body))
            self._arrival.notify_all()

    def _accept(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.scopes.append((scope.scope.name, scope.scope.version))
                self.spans.extend(scope.spans)


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as a dictionary of plain values."""
    return {pair.key: _plain(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _plain(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    assert which is not None
    found = getattr(value, which)
    return [_plain(one) for one in found.values] if which == "array_value" else found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    collector: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.collector.closing.wait(self.collector.delay_s)
        if self.collector.raw is not None:
            self.wfile.write(self.collector.raw)
            return
        self.send_response(self.collector.status)
        for name, value in self.collector.headers.items():
            self.send_header(name, value)
        if self.collector.endless:
            self._answer_for_ever()
            return
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _answer_for_ever(self) -> None:
        self.end_headers()
        while not self.collector.closing.is_set():
            self.wfile.write(bytes(65536))
            time.sleep(0.001)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its parent's name
        """Tests need no access log."""
