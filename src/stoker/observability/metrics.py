"""What Stoker counts as it goes, in Prometheus's text format; `live` has what is read when somebody asks.

Labels have few values: models and experts are those of the configuration, all others one of a fixed set. What comes
beyond a family's bound is counted under `other`.
"""

from __future__ import annotations

import time
from threading import Lock

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from stoker.observability.families import OTHER, CounterFamily, HistogramFamily, renard
from stoker.types import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPERATIONS = {
    "/query": "chat",
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""What OpenTelemetry's GenAI conventions call what a route does."""
COMPUTED = frozenset({"miss", "bypass"})
RENDERING_SHARE = 0.05
ERRORS_FROM = 400

_FIRST_TOKEN_BOUNDS = renard(10, 0.001, 630)
_PER_TOKEN_BOUNDS = renard(10, 0.0001, 63)
_COARSE_BOUNDS = renard(5, 0.001, 630)


class Metrics:
    """The series of one server. Thread-safe.

    Args:
        share: of a processor that `render` may take, 0..1, however often it is called.

    Attributes:
        registry: holds what is collected by prometheus_client's rules; `LiveFigures` are registered here.
    """

    def __init__(self, share: float = RENDERING_SHARE) -> None:
        self._share = share
        self._rendering = Lock()
        self._rendered = b""
        self._stale_at = 0.0
        self._count_requests()
        self._count_decisions()
        self._measure_time()
        self.families = tuple(
            family for family in vars(self).values() if isinstance(family, CounterFamily | HistogramFamily)
        )
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _count_requests(self) -> None:
        self.requests = CounterFamily(
            "stoker_requests_total",
            ["route", "model", "status", "cache"],
            "Requests that ended, by route, model, HTTP status (499: the client left) and how the cache served them. "
            "The model is empty where none was chosen.",
            group="Requests",
        )
        self.routed = CounterFamily(
            "stoker_routed_total",
            ["expert", "reason"],
            "Requests by the model or expert that was chosen, and by how: named, default, header, keyword, sticky, "
            "classifier, below threshold, fallback.",
            group="Requests",
        )
        self.prompt_tokens = CounterFamily(
            "stoker_prompt_tokens_total",
            ["model"],
            "Tokens of prompts that engines were given. Answers from the cache, and those that joined another's "
            "generation, count nothing.",
            group="Requests",
        )
        self.cached_tokens = CounterFamily(
            "stoker_prompt_tokens_cached_total",
            ["model"],
            "Those of them that an engine had computed before and did not compute again.",
            group="Requests",
        )
        self.generated_tokens = CounterFamily(
            "stoker_generation_tokens_total", ["model"], "Tokens that engines generated.", group="Requests"
        )

    def _count_decisions(self) -> None:
        self.guarded = CounterFamily(
            "stoker_guard_decisions_total",
            ["action", "category"],
            "Requests in which the guard found something, by what was done and the class of what was found.",
            group="Decisions",
        )
        self.leaks = CounterFamily(
            "stoker_guard_leaks_total",
            ["what"],
            "Answers that were cut off, by what they would have told.",
            group="Decisions",
        )
        self.limited = CounterFamily(
            "stoker_rate_limited_total",
            ["scope"],
            "Requests refused because their caller took more than its share, by whose limit.",
            group="Decisions",
        )
        self.store_errors = CounterFamily(
            "stoker_store_errors_total",
            ["operation", "reason"],
            "Operations that the shared store failed at or was too slow for.",
            group="Cache and store",
        )

    def _measure_time(self) -> None:
        self.durations = HistogramFamily(
            "gen_ai_server_request_duration_seconds",
            ["gen_ai_operation_name", "gen_ai_request_model", "error_type"],
            "From a request's arrival to the end of its answer; error_type is the error's code, or empty.",
            _COARSE_BOUNDS,
            group="Times",
        )
        self.first_token_times = HistogramFamily(
            "gen_ai_server_time_to_first_token_seconds",
            ["gen_ai_operation_name", "gen_ai_request_model", "cache"],
            "Until the first piece of the answer, waiting included, by how the cache served it.",
            _FIRST_TOKEN_BOUNDS,
            group="Times",
        )
        self.per_token_times = HistogramFamily(
            "gen_ai_server_time_per_output_token_seconds",
            ["gen_ai_operation_name", "gen_ai_request_model"],
            "Time for each token after the first, of answers that an engine generated and that came to their end.",
            _PER_TOKEN_BOUNDS,
            group="Times",
        )
        self.queue_times = HistogramFamily(
            "stoker_queue_seconds",
            ["model"],
            "How long requests that went to an engine had waited for it.",
            _COARSE_BOUNDS,
            group="Times",
        )

    def note_request(
        self,
        *,
        route: str,
        model: str,
        expert: str | None,
        reason: str,
        status: int,
        cache: str,
        error: str,
        seconds: float,
        queue: float | None,
        first_token: float | None,
        usage: Usage,
    ) -> None:
        """Count a request that ended.

        Args:
            route: its path.
            model: that was chosen; empty when none was, and then `expert` and `reason` mean nothing.
            expert: that was chosen.
            reason: the kind of reason for the choice.
            status: of HTTP; 499 for a client that left.
            cache: `hit`, `miss`, `joined` or `bypass`.
            error: its code, or empty.
            seconds: from its arrival to its end.
            queue: seconds in the waiting line; None when it went to no engine.
            first_token: seconds until the answer began; None when it did not.
            usage: tokens that engines worked on for it.
        """
        operation = OPERATIONS.get(route, OTHER)
        self.requests.labels(route, model, str(status), cache).inc()
        self.durations.labels(operation, model, error).observe(seconds)
        if not model:
            return
        self.routed.labels(expert or model, reason).inc()
        if queue is not None:
            self.queue_times.labels(model).observe(queue)
        if usage.total_tokens:
            self.prompt_tokens.labels(model).inc(usage.prompt_tokens)
            self.cached_tokens.labels(model).inc(usage.cached_tokens)
            self.generated_tokens.labels(model).inc(usage.completion_tokens)
        if first_token is None or operation == "embeddings":
            return
        self.first_token_times.labels(operation, model, cache).observe(first_token)
        later = usage.completion_tokens - 1
        if later > 0 and cache in COMPUTED and not error and status < ERRORS_FROM:
            self.per_token_times.labels(operation, model).observe((seconds - first_token) / later)

    def note_store_error(self, operation: str, reason: str) -> None:
        """The shared store failed at an operation, and the service went on without it."""
        self.store_errors.labels(operation, reason).inc()

    def render(self) -> bytes:
        """Everything in Prometheus's text format. It takes milliseconds, and is best called beside the event loop.

        Some scrape in a tight loop: whoever comes before `share` allows another rendering gets the last one's bytes.
        """
        with self._rendering:
            begun = time.monotonic()
            if begun >= self._stale_at:
                own = "".join(piece for family in self.families for piece in family.render())
                self._rendered = own.encode() + generate_latest(self.registry)
                now = time.monotonic()
                self._stale_at = begun + (now - begun) / self._share
            return self._rendered
