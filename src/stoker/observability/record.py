"""What one request came to: gathered while it runs; one log line, some counts and a span when it ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.errors import EngineError, StokerError
from stoker.observability.content import ContentWriter
from stoker.observability.logging import get_logger
from stoker.observability.metrics import COMPUTED, OPERATIONS, Metrics
from stoker.observability.tracing import Trace, Tracer
from stoker.types import EmbeddingRequest, FinishReason, GenerationRequest, ModelIdentity, Timings, Usage, asked

_log = get_logger("request")
SERVER_ERRORS = 500
_UNSENDABLE = re.compile("[^ !#-~]")  # in a quoted string of a header: RFC 9110, 5.6.4
_KIND = re.compile("[^:'0-9]*")


@dataclass(frozen=True, slots=True)
class Observer:
    """Everybody who is told of requests; `listeners` are given each record when it is closed."""

    metrics: Metrics
    tracer: Tracer
    content: ContentWriter
    listeners: Sequence[Callable[[Record], None]] = ()


@dataclass(slots=True)
class Record:
    """The decision record of one request; whoever decides something writes it here.

    `headers` are those of the answer that decisions gave; `ignored` names fields of the body that mean nothing here;
    `computed_tokens` are those of the usage that no stored answer and nobody else's generation saved. `said` gathers
    the answer's text, and is None where the log does not want it.
    """

    id: str
    route: str
    address: str = ""
    model: ModelIdentity | None = None
    route_reason: str = "named"
    key: str | None = None
    expert: str | None = None
    confidence: float | None = None
    cache: str = "bypass"
    cache_age_s: float | None = None
    computed_tokens: int = 0
    guard_score: float | None = None
    guard_rules: tuple[str, ...] = ()
    guard_action: str | None = None
    ignored: tuple[str, ...] = ()
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    usage: Usage = field(default_factory=Usage)
    finish_reason: FinishReason | None = None
    status: int = 200
    error: StokerError | None = None
    disconnected: bool = False
    observer: Observer | None = None
    trace: Trace | None = None
    requests: Sequence[GenerationRequest | EmbeddingRequest] = ()
    said: list[str] | None = None
    started: float = field(default_factory=time.monotonic)

    def note_first(self, cache: str, age_s: float | None) -> None:
        """A piece of the answer came, from wherever it was had; only the first one counts."""
        if self.timings.first_token_ms < 0:
            self.timings.first_token_ms = (time.monotonic() - self.started) * 1000
            self.timings.queue_ms = max(self.timings.queue_ms, 0.0)
            if self.trace is not None:
                self.trace.event("first token")
        self.cache, self.cache_age_s = cache, age_s

    def note(self, finish_reason: FinishReason | None, usage: Usage, cache: str) -> None:
        """Take in what one answer came to, also one that was cut off; a call with several prompts has several."""
        self.finish_reason = finish_reason or self.finish_reason
        self.usage = self.usage + usage
        self.cache = cache
        if cache in COMPUTED:
            self.computed_tokens += usage.total_tokens

    def served(self) -> ModelIdentity:
        """The model that answered; EngineError when none was chosen, which is a defect."""
        if self.model is None:
            raise EngineError("the answer came from no model")
        return self.model

    def stamp(self) -> Timings:
        """The timings, with the total so far."""
        self.timings.total_ms = (time.monotonic() - self.started) * 1000
        return self.timings

    def note_requests(self, requests: Sequence[GenerationRequest | EmbeddingRequest]) -> None:
        """What is asked, before anything is decided."""
        self.requests = requests
        if self.observer is not None and self.observer.content.wanted:
            self.said = []

    def close(self) -> None:
        """Stop the clock, write the line, count the request and end its span."""
        self.stamp()
        status = 499 if self.disconnected else self.status
        _log.info("request", **self._line(status))
        if self.observer is not None:
            self._count(self.observer.metrics, status)
            for listener in self.observer.listeners:
                listener(self)
        if self.trace is not None:
            self._end_span(self.trace, status)

    def _line(self, status: int) -> dict[str, Any]:
        timings, usage, model = self.timings, self.usage, self.model
        later = usage.completion_tokens - 1
        generated = later > 0 and self.cache in COMPUTED
        line = {
            "request_id": self.id,
            "trace_id": self.trace.trace_id if self.trace else None,
            "route": self.route,
            "key": self.key,
            "address": self.address,
            "model": model.name if model else None,
            "expert": self.expert,
            "route_reason": self.route_reason,
            "confidence": self.confidence,
            "parameters": self._parameters(),
            "cache": self.cache,
            "cache_age_s": None if self.cache_age_s is None else round(self.cache_age_s, 1),
            "guard": self.guard_action,
            "guard_score": None if self.guard_score is None else round(self.guard_score, 3),
            "guard_rules": list(self.guard_rules) or None,
            "ignored_fields": list(self.ignored) or None,
            "digest": model.digest[:12] if model else None,
            "engine": timings.engine or None,
            "attempts": timings.attempts,
            "queue_ms": round(timings.queue_ms, 2),
            "ttft_ms": round(timings.first_token_ms, 2),
            "tpot_ms": round((timings.total_ms - timings.first_token_ms) / later, 2) if generated else None,
            "total_ms": round(timings.total_ms, 2),
            "tokens_in": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "tokens_out": usage.completion_tokens,
            "finish_reason": self.finish_reason,
            "status": status,
            "error": self.error.code if self.error else None,
        }
        if self.said is not None and self.observer is not None:
            content = self.observer.content
            line["prompt"] = content.of("\n".join(map(asked, self.requests)))
            line["answer"] = content.of("".join(self.said))
        return line

    def _parameters(self) -> dict[str, Any] | None:
        """What the caller said about how the answer is drawn."""
        first = self.requests[0] if self.requests else None
        if not isinstance(first, GenerationRequest):
            return None
        sampling = first.sampling
        said = {name: getattr(sampling, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
        return {name: value for name, value in said.items() if value is not None}

    def _end_span(self, trace: Trace, status: int) -> None:
        """By OpenTelemetry's conventions for HTTP servers and for generative AI."""
        operation = OPERATIONS.get(self.route, "other")
        model = self.model.name if self.model else None
        error = self.error.code if self.error else None
        trace.finish(
            f"{operation} {model}" if model else operation,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "stoker",
                "gen_ai.request.model": self.requests[0].model if self.requests else None,
                "gen_ai.response.model": model,
                **{f"gen_ai.request.{name}": value for name, value in (self._parameters() or {}).items()},
                "gen_ai.response.finish_reasons": [self.finish_reason] if self.finish_reason else None,
                "gen_ai.usage.input_tokens": self.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": self.usage.completion_tokens,
                "http.route": self.route,
                "http.response.status_code": status,
                "client.address": self.address or None,
                "stoker.request_id": self.id,
                "stoker.cache": self.cache,
                "stoker.route_reason": self.route_reason,
                "stoker.expert": self.expert,
                "stoker.model_digest": self.model.digest if self.model else None,
                "stoker.guard": self.guard_action,
            },
            error if status >= SERVER_ERRORS or (error and status == 200) else None,  # noqa: PLR2004 - a stream that broke
        )

    def _count(self, metrics: Metrics, status: int) -> None:
        timings = self.timings
        metrics.note_request(
            route=self.route,
            model=self.model.name if self.model else "",
            expert=self.expert,
            reason=reason_kind(self.route_reason),
            status=status,
            cache=self.cache,
            error=self.error.code if self.error else "",
            seconds=timings.total_ms / 1000,
            queue=timings.queue_ms / 1000 if timings.attempts else None,
            first_token=timings.first_token_ms / 1000 if timings.first_token_ms >= 0 else None,
            usage=self.usage if self.computed_tokens else Usage(),
        )

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that tell how the answer came about."""
        told = [*self.headers, (b"x-cache", self.cache.encode())]
        if self.cache_age_s is not None:
            told.append((b"age", str(int(self.cache_age_s)).encode()))  # RFC 9111, 5.1
        if self.model is not None:
            expert = f"expert={self.expert}; " if self.expert else ""
            reason = _UNSENDABLE.sub("?", self.route_reason)
            told.append((b"x-route", f'{expert}model={self.model.name}; reason="{reason}"'.encode()))
        return told


def reason_kind(reason: str) -> str:
    """The kind of a route's reason, without what it was about: `keyword 'tax'` is `keyword`."""
    found = _KIND.match(reason)
    return found[0].strip() if found else ""
