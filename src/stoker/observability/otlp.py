"""Makes spans with OpenTelemetry's SDK and sends them as OTLP; the only place that knows it.

It is imported when a collector is configured, not before: it brings 12 MB. Nothing of it is made global: no provider is
set, no context attached, nothing left to run when the process exits.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias, cast
from urllib.parse import urlsplit, urlunsplit

from stoker.config.watching import TracingConfig
from stoker.errors import ConfigError
from stoker.observability.notices import Seldom
from stoker.observability.trace_context import TraceParent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as SdkSpan
    from opentelemetry.trace import Tracer as SdkTracer
    from requests import PreparedRequest, Response
    from requests.adapters import BaseAdapter

# ruff: noqa: PLC0415 - OpenTelemetry is imported by the functions of those who want it

Kind = Literal["server", "client", "internal"]
Within: TypeAlias = "Context"
OpenSpan: TypeAlias = "SdkSpan"
"""What the SDK hands out, by names that need no import of it."""

QUEUE_SPANS: Final = 2048
"""Ended spans that wait to be sent; when there are more, the oldest are dropped."""
BATCH_SPANS: Final = 512
BATCH_EVERY_MS: Final = 5000
SEND_S: Final = 10.0
"""Longest for one batch, with its retries."""
NOTICE_EVERY_S: Final = 60.0
_PATH: Final = "/v1/traces"
_UNSENDABLE: Final = "the request could not be made: look at tracing.endpoint and the names and values of its headers"


class Sender:
    """A collector, and the spans that are on their way to it.

    Args:
        provider: whose spans are sent.
        tracer: makes them.
        exporter: sends them.
        hush: keeps their libraries from the log.
    """

    def __init__(self, provider: TracerProvider, tracer: SdkTracer, exporter: _Exporter, hush: _Hush) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        self._provider = provider
        self._tracer = tracer
        self._exporter = exporter
        self._hush = hush
        self._kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
        self._error = StatusCode.ERROR
        self._nowhere = Context()
        self._set_span_in_context = set_span_in_context

    @classmethod
    def open(cls, config: TracingConfig, version: str) -> Self | None:
        """Prepare to send to `config.endpoint`; nothing is sent before the first span has ended.

        Returns:
            None when OTEL_SDK_DISABLED says so.

        Raises:
            ConfigError: the endpoint or OpenTelemetry's environment makes no sense.
        """
        from requests.adapters import HTTPAdapter

        target = _target(config.endpoint or "")
        notice = Seldom("tracing", NOTICE_EVERY_S)
        wire = _Wire(HTTPAdapter())
        hush = _Hush(wire, notice, target.shown)
        try:
            provider, tracer = _provider(config.service_name, version)
            if tracer is None:
                hush.lift()
                return None
            exporter = _exporter(target, config, wire, notice)
            _send_with(exporter, provider)
        except ValueError as error:
            hush.lift()
            raise ConfigError(f"tracing: OpenTelemetry's OTEL_* environment makes no sense: {error}") from None
        return cls(provider, tracer, exporter, hush)

    def start(
        self, name: str, kind: Kind, context: Within | None = None, attributes: Mapping[str, Any] | None = None
    ) -> OpenSpan:
        """A span that began now; without a context the first of a new trace."""
        within = self._nowhere if context is None else context
        return self._tracer.start_span(name, context=within, kind=self._kinds[kind], attributes=attributes)

    def within(self, span: OpenSpan) -> Within:
        """The context whose spans are children of this one."""
        return self._set_span_in_context(span, self._nowhere)

    def within_remote(self, parent: TraceParent, state: str) -> Within:
        """The context whose spans are children of the caller's; `state` is its valid `tracestate`."""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

        caller = SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(parent.flags),
            trace_state=TraceState.from_header([state]) if state else None,
        )
        return self.within(NonRecordingSpan(caller))

    def fail(self, span: OpenSpan, code: str) -> None:
        """Mark a span as failed, with what is to stand in `error.type`."""
        span.set_attribute("error.type", code)
        span.set_status(self._error)

    def close(self, within_s: float) -> None:
        """Send what waits, and give up what could not be sent in that many seconds. Blocks; call it once."""
        # The SDK bounds its own ending at 30 s and more: it goes on in a thread that the process need not wait for.
        ending = threading.Thread(target=self._end, name="traces-end", daemon=True)
        ending.start()
        ending.join(within_s)
        if ending.is_alive():
            self._exporter.give_up()

    def _end(self) -> None:
        self._provider.shutdown()
        self._hush.lift()


class _Exporter:
    """OpenTelemetry's exporter, which says at most once in NOTICE_EVERY_S that spans are lost, and why."""

    def __init__(self, inner: SpanExporter, wire: _Wire, notice: Seldom, shown: str) -> None:
        self._inner = inner
        self._wire = wire
        self._notice = notice
        self._shown = shown
        self._sending = 0
        self._lost = 0
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, from the SDK's own thread; at most about SEND_S seconds."""
        self._sending = len(spans)
        self._wire.trouble = _UNSENDABLE
        try:
            return self._inner.export(spans)
        finally:
            if not self._ended:
                self._say_lost()

    def give_up(self) -> None:
        """End the waiting for a collector that has not taken everything."""
        self._say_lost()
        self.shutdown()

    def shutdown(self) -> None:
        """Send no more, and end a pause between retries."""
        if not self._ended:
            self._ended = True
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing waits here."""
        return True

    def _say_lost(self) -> None:
        """Unless the batch went well; the number of spans is all that failed so far."""
        error = self._wire.trouble
        if error is not None:
            self._lost += self._sending
            self._notice.warning("traces_lost", endpoint=self._shown, error=error, lost_spans=self._lost)


class _Wire:
    """A transport adapter for requests that knows how the last attempt ended: `trouble` is None when it went well.

    Answers' bodies are not read: a collector has nothing to tell that anybody waits for, and could tell it for ever.
    """

    def __init__(self, inner: BaseAdapter) -> None:
        self._inner = inner
        self.trouble: str | None = None

    def send(self, request: PreparedRequest, **options: Any) -> Response:
        """Send one request; raises what requests raises."""
        self.trouble = "no answer so far"
        try:
            response = self._inner.send(request, **options)
        except Exception as error:
            self.trouble = _reason(error)
            raise
        response.close()
        response.raw = io.BytesIO()
        # The SDK takes a redirection, which it does not follow, for success.
        self.trouble = None if response.status_code // 100 == 2 else f"HTTP {response.status_code}"  # noqa: PLR2004
        return response

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class _Hush(logging.Handler):
    """Keeps the libraries from the log, where they would write of each attempt, with addresses and headers.

    What else they warn of is said by its bare template, without what it was about.
    """

    _LOGGERS = ("opentelemetry", "urllib3")
    _SAID_ANYWAY = ("opentelemetry.exporter", "urllib3")

    def __init__(self, wire: _Wire, notice: Seldom, shown: str) -> None:
        super().__init__(logging.WARNING)
        self._wire = wire
        self._notice = notice
        self._shown = shown
        for logger in map(logging.getLogger, self._LOGGERS):
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on what the exporter does not say by itself."""
        if not record.name.startswith(self._SAID_ANYWAY):
            error = str(record.msg).replace("%s", "...")
            self._notice.warning("tracing_impaired", endpoint=self._shown, error=error, collector=self._wire.trouble)

    def lift(self) -> None:
        """Let them speak again."""
        for logger in map(logging.getLogger, self._LOGGERS):
            logger.removeHandler(self)
            logger.propagate = not any(isinstance(handler, _Hush) for handler in logger.handlers)


class _Target(NamedTuple):
    """Where spans go: the address, the same without credentials and query, and whether it is on this host."""

    url: str
    shown: str
    loopback: bool


def _target(endpoint: str) -> _Target:
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"tracing.endpoint is no address: {error}", param="tracing.endpoint") from None
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
    return _Target(urlunsplit(parts._replace(path=path, fragment="")), shown, loopback)


def _provider(service_name: str, version: str) -> tuple[TracerProvider, SdkTracer | None]:
    """Makes spans of this service; the environment's resource attributes win. No tracer: OTEL_SDK_DISABLED is set."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import Tracer, TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    service = {"service.name": service_name, "service.version": version, "service.instance.id": str(uuid.uuid4())}
    resource = Resource.create({**service, **OTELResourceDetector().detect().attributes})
    # Whether a request is traced is decided before there is a span of it.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    tracer = provider.get_tracer("stoker", version)
    return provider, tracer if isinstance(tracer, Tracer) else None


def _exporter(target: _Target, config: TracingConfig, wire: _Wire, notice: Seldom) -> _Exporter:
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    session = requests.Session()
    session.max_redirects = 0  # headers with secrets are for this collector only
    session.trust_env = not target.loopback  # no proxy stands between this host and itself
    for scheme in ("http://", "https://"):
        session.mount(scheme, cast("BaseAdapter", wire))
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    inner = OTLPSpanExporter(endpoint=target.url, headers=headers, timeout=SEND_S, session=session)
    return _Exporter(inner, wire, notice, target.shown)


def _send_with(exporter: _Exporter, provider: TracerProvider) -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(
        cast("SpanExporter", exporter),
        max_queue_size=QUEUE_SPANS,
        schedule_delay_millis=BATCH_EVERY_MS,
        max_export_batch_size=BATCH_SPANS,
        export_timeout_millis=SEND_S * 1000,
    )
    provider.add_span_processor(processor)


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in words that hold no secret: messages of libraries quote addresses."""
    told, cause = "", error
    while True:
        if isinstance(cause, OSError) and cause.strerror:
            told = cause.strerror
        below = cause.__cause__ or cause.__context__
        if below is None:
            return told or type(cause).__name__
        cause = below
