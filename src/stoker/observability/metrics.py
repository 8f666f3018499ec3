"""Every series that Stoker exports, declared once, in a registry of its own.

Labels have few values: routes, models and experts are those of the configuration, all others one of a fixed set.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The series of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "stoker_requests",
            "Requests that ended, by route, model, HTTP status and how the cache served them.",
            ["route", "model", "status", "cache"],
            registry=self.registry,
        )
        self.routed = Counter(
            "stoker_routed",
            "Requests by the model or expert that was chosen, and by how: named, default, header, keyword, sticky, "
            "classifier, below threshold, fallback.",
            ["expert", "reason"],
            registry=self.registry,
        )
        self.guarded = Counter(
            "stoker_guard_decisions",
            "Requests in which the guard found something, by what was done and the class of what was found.",
            ["action", "category"],
            registry=self.registry,
        )
        self.leaks = Counter(
            "stoker_guard_leaks",
            "Answers that were cut off, by what they would have told.",
            ["what"],
            registry=self.registry,
        )
        self.limited = Counter(
            "stoker_rate_limited",
            "Requests refused because their caller took more than its share, by whose limit.",
            ["scope"],
            registry=self.registry,
        )
        self.store_errors = Counter(
            "stoker_store_errors",
            "Operations that the shared store failed at or was too slow for.",
            ["operation", "reason"],
            registry=self.registry,
        )

    def note_store_error(self, operation: str, reason: str) -> None:
        """The shared store failed at an operation, and the service went on without it."""
        self.store_errors.labels(operation, reason).inc()

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)
