"""Traces of requests: spans that tell where the time went, for a collector, and the trace context that is handed on.

Nothing here rests on context variables: a request's steps run in several tasks and stand still in generators between
them, so whoever opens a step says to which request it belongs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final, Self

from stoker.config.watching import TracingConfig
from stoker.errors import StokerError
from stoker.observability.otlp import Kind, OpenSpan, Sender, Within
from stoker.observability.trace_context import TraceParent, format_parent, parse_parent, parse_state

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value | None]
"""What is told of a span, by OpenTelemetry's names; what is None is left out."""

CLOSE_S: Final = 3.0
"""Seconds in which the last spans are to be sent."""
TEXT_CHARS: Final = 1024
"""Characters of a text that are sent."""
_INT64: Final = 1 << 63


class Tracer:
    """Decides which requests are traced. `Tracer(None, 0)` traces none.

    Args:
        sender: makes the spans and sends them.
        sample: share of the requests to trace for whose caller did not decide, 0 to 1.
    """

    def __init__(self, sender: Sender | None, sample: float) -> None:
        self._sender = sender
        self._sample = sample if sender is not None else 0.0

    @classmethod
    def open(cls, config: TracingConfig, version: str) -> Self:
        """A tracer as configured; without an endpoint it traces nothing and costs nothing.

        Raises:
            ConfigError: the endpoint or OpenTelemetry's environment makes no sense.
        """
        return cls(None if config.endpoint is None else Sender.open(config, version), config.sample)

    def begin(self, traceparent: str | None, tracestate: str | None) -> Trace | None:
        """The trace of a request that arrives now, by its two headers.

        Returns:
            None when it is not traced and has no valid `traceparent`. With one the caller decides; when it is not
            recorded here, it is only handed on.
        """
        parent = None if traceparent is None else parse_parent(traceparent)
        if parent is None:
            if self._sender is None or random.random() >= self._sample:  # noqa: S311 - nobody gains by guessing it
                return None
            return _Recorded(self._sender, None, "")
        state = parse_state(tracestate)
        if self._sender is None or not parent.sampled:
            return Trace(parent, state)
        return _Recorded(self._sender, parent, state)

    async def close(self) -> None:
        """Send what is left, in at most CLOSE_S seconds, and trace no more. Never raises."""
        sender, self._sender, self._sample = self._sender, None, 0.0
        if sender is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(sender.close, CLOSE_S)


class Span:
    """A step of a request, open while its `with` block runs. This one tells nobody."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """The step is over."""

    def set(self, attributes: Attributes) -> None:
        """Tell more of it."""

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something happened in it now."""

    def failed(self, code: str) -> None:
        """It failed, with an error's code. Said by itself when an error leaves the block."""


_SILENT: Final = Span()


class Trace:
    """The trace of one request. This one is not recorded here, only handed on.

    Attributes:
        trace_id: 32 hexadecimal digits.
        recording: whether its spans are recorded here.
    """

    __slots__ = ("_parent", "_state", "trace_id")

    recording = False

    def __init__(self, parent: TraceParent, state: str) -> None:
        self.trace_id = parent.trace_id
        self._parent = parent
        self._state = state

    def headers(self) -> Mapping[str, str]:
        """`traceparent`, and `tracestate` if there is one, for a request that is sent now: of the step that was opened
        last and is still open, else of the whole request.
        """
        told = {"traceparent": format_parent(self._parent)}
        if self._state:
            told["tracestate"] = self._state
        return told

    def child(
        self,
        name: str,  # noqa: ARG002 - used by those that are recorded
        attributes: Attributes | None = None,  # noqa: ARG002
        kind: Kind = "internal",  # noqa: ARG002
        parent: Span | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Span]:
        """A step, from the beginning of the `with` block to its end, in `parent` or else in the request."""
        return _SILENT

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something happened in the request now."""

    def finish(self, name: str, attributes: Attributes, error: str | None) -> None:
        """The request is over: its span's name, what it came to, and an error's code if it failed. Counts once."""


def step(
    trace: Trace | None, name: str, attributes: Attributes | None = None, kind: Kind = "internal"
) -> AbstractContextManager[Span]:
    """A step of a request that may have no trace."""
    return _SILENT if trace is None else trace.child(name, attributes, kind)


class _Recorded(Trace):
    """A trace whose spans are recorded. Without `parent` it is new."""

    __slots__ = ("_finished", "_open", "_request", "_sender", "_within")

    recording = True

    def __init__(self, sender: Sender, parent: TraceParent | None, state: str) -> None:
        self._sender = sender
        self._request = sender.start("request", "server", sender.within_remote(parent, state) if parent else None)
        super().__init__(_told(self._request), state)
        self._within = sender.within(self._request)
        self._open: list[_Step] = []
        self._finished = False

    def headers(self) -> Mapping[str, str]:
        """Of the innermost step."""
        self._parent = _told(self._open[-1].span if self._open else self._request)
        return super().headers()

    @contextmanager
    def child(
        self, name: str, attributes: Attributes | None = None, kind: Kind = "internal", parent: Span | None = None
    ) -> Iterator[Span]:
        """A step; an error that leaves it is told by its code, a cancellation is none."""
        within = parent.within if isinstance(parent, _Step) else self._within
        step = _Step(self._sender, self._sender.start(name, kind, within, _sendable(attributes)))
        self._open.append(step)
        try:
            yield step
        except Exception as error:
            step.failed(error.code if isinstance(error, StokerError) else type(error).__name__)
            raise
        finally:
            self._open.remove(step)
            step.span.end()

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something happened in the request now; nothing does when it is over."""
        if not self._finished:
            self._request.add_event(name, _sendable(attributes))

    def finish(self, name: str, attributes: Attributes, error: str | None) -> None:
        """Name the request's span and end it."""
        if self._finished:
            return
        self._finished = True
        self._request.update_name(_text(name))
        self._request.set_attributes(_sendable(attributes))
        if error is not None:
            self._sender.fail(self._request, error)
        self._request.end()


class _Step(Span):
    """A step that is recorded; its error is the first one that was told."""

    __slots__ = ("_failed", "_sender", "span")

    def __init__(self, sender: Sender, span: OpenSpan) -> None:
        self._sender = sender
        self._failed = False
        self.span = span

    @property
    def within(self) -> Within:
        """The context of steps in this one."""
        return self._sender.within(self.span)

    def set(self, attributes: Attributes) -> None:
        if self.span.is_recording():
            self.span.set_attributes(_sendable(attributes))

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        if self.span.is_recording():
            self.span.add_event(name, _sendable(attributes))

    def failed(self, code: str) -> None:
        if self.span.is_recording() and not self._failed:
            self._failed = True
            self._sender.fail(self.span, code)


def _told(span: OpenSpan) -> TraceParent:
    context = span.get_span_context()
    return TraceParent(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags)


def _sendable(attributes: Attributes | None) -> dict[str, Value]:
    """What protobuf can carry, and no more than is of use; one text that is no text would cost a whole batch."""
    return {key: _value(value) for key, value in (attributes or {}).items() if value is not None}


def _value(value: Value) -> Value:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else hex(value)
    return value if isinstance(value, float) else [_text(text) for text in value]


def _text(text: str) -> str:
    """At most TEXT_CHARS, and without the halves of characters that JSON may hold."""
    if len(text) > TEXT_CHARS:
        text = text[:TEXT_CHARS]
    return text if text.isascii() else text.encode(errors="replace").decode()
