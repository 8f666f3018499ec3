"""What one request came to: gathered while it runs, written as one log line when it ends."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from stoker.errors import EngineError, StokerError
from stoker.observability.logging import get_logger
from stoker.observability.metrics import Metrics
from stoker.types import FinishReason, ModelIdentity, Timings, Usage

_log = get_logger("request")
_UNSENDABLE = re.compile("[^ !#-~]")  # in a quoted string of a header: RFC 9110, 5.6.4
_KIND = re.compile("[^:'0-9]*")


@dataclass(slots=True)
class Record:
    """The decision record of one request; whoever decides something writes it here.

    `headers` are those of the answer that decisions gave; `ignored` names fields of the body that mean nothing here;
    `computed_tokens` are those of the usage that no stored answer and nobody else's generation saved.
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
    metrics: Metrics | None = None
    started: float = field(default_factory=time.monotonic)

    def note_first(self, cache: str, age_s: float | None) -> None:
        """A piece of the answer came, from wherever it was had; only the first one counts."""
        if self.timings.first_token_ms < 0:
            self.timings.first_token_ms = (time.monotonic() - self.started) * 1000
            self.timings.queue_ms = max(self.timings.queue_ms, 0.0)
        self.cache, self.cache_age_s = cache, age_s

    def note(self, finish_reason: FinishReason | None, usage: Usage, cache: str) -> None:
        """Take in what one answer came to, also one that was cut off; a call with several prompts has several."""
        self.finish_reason = finish_reason or self.finish_reason
        self.usage = self.usage + usage
        self.cache = cache
        if cache in {"miss", "bypass"}:
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

    def close(self) -> None:
        """Stop the clock, write the line and count the request."""
        timings, usage = self.stamp(), self.usage
        status = 499 if self.disconnected else self.status
        if self.metrics is not None:
            self._count(self.metrics, status)
        _log.info(
            "request",
            request_id=self.id,
            route=self.route,
            key=self.key,
            address=self.address,
            model=self.model.name if self.model else None,
            expert=self.expert,
            route_reason=self.route_reason,
            confidence=self.confidence,
            cache=self.cache,
            cache_age_s=None if self.cache_age_s is None else round(self.cache_age_s, 1),
            guard=self.guard_action,
            guard_score=None if self.guard_score is None else round(self.guard_score, 3),
            guard_rules=list(self.guard_rules) or None,
            ignored_fields=list(self.ignored) or None,
            digest=self.model.digest[:12] if self.model else None,
            engine=timings.engine or None,
            attempts=timings.attempts,
            queue_ms=round(timings.queue_ms, 2),
            ttft_ms=round(timings.first_token_ms, 2),
            total_ms=round(timings.total_ms, 2),
            tokens_in=usage.prompt_tokens,
            tokens_cached=usage.cached_tokens,
            tokens_out=usage.completion_tokens,
            finish_reason=self.finish_reason,
            status=status,
            error=self.error.code if self.error else None,
        )

    def _count(self, metrics: Metrics, status: int) -> None:
        model = self.model.name if self.model else ""
        metrics.requests.labels(self.route, model, str(status), self.cache).inc()
        if self.model is not None:
            metrics.routed.labels(self.expert or model, reason_kind(self.route_reason)).inc()

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
