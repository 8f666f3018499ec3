"""The figures that are not counted as they happen but read when somebody asks: each declared once, with its reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoker.observability.snapshot import (
    BackupFigures,
    CacheFigures,
    EngineFigures,
    HostFigures,
    ModelFigures,
    Snapshot,
)

Values = Iterable[tuple[Sequence[str], float | None]]
LEVELS = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure's declaration.

    Attributes:
        name: as it is exported.
        kind: `counter` for what only grows.
        label_names: of its values.
        text: what it is, for people.
        group: under which documentation lists it.
        read: its values in a snapshot, each with its labels; None where one is not known.
    """

    name: str
    kind: Literal["counter", "gauge"]
    label_names: tuple[str, ...]
    text: str
    group: str
    read: Callable[[Snapshot], Values]

    def family(self) -> Metric:
        """The figure without values, as prometheus_client knows it."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return make(self.name, self.text, labels=self.label_names)

    def collect(self, now: Snapshot) -> Metric:
        """The figure with its values."""
        family = self.family()
        for labels, value in self.read(now):
            if value is not None:
                family.add_sample(self.name, dict(zip(self.label_names, labels, strict=True)), float(value))
        return family


class LiveFigures(Collector):
    """Collects the figures of a running server.

    Args:
        read: what they are now. It is called wherever `Metrics.render` is, which may be beside the event loop, and must
            not take long: whoever scrapes waits for it.
    """

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """The figures' names, for the registry."""
        return (figure.family() for figure in FIGURES)

    def collect(self) -> Iterator[Metric]:
        """The figures now; those of which no value is known are left out."""
        now = self._read()
        for figure in FIGURES:
            family = figure.collect(now)
            if family.samples:
                yield family


def _server(
    name: str,
    group: str,
    text: str,
    read: Callable[[Snapshot], float | None],
    kind: Literal["counter", "gauge"] = "gauge",
) -> Figure:
    return Figure(name, kind, (), text, group, lambda now: [((), read(now))])


def _model(
    name: str, text: str, read: Callable[[ModelFigures], float | None], kind: Literal["counter", "gauge"] = "gauge"
) -> Figure:
    return Figure(name, kind, ("model",), text, "Models", lambda now: [((m.name,), read(m)) for m in now.models])


def _engine(
    name: str, text: str, read: Callable[[EngineFigures], float | None], kind: Literal["counter", "gauge"] = "gauge"
) -> Figure:
    def values(now: Snapshot) -> Values:
        return [((model.name, engine.name), read(engine)) for model in now.models for engine in model.engines]

    return Figure(name, kind, ("model", "engine"), text, "Engines", values)


def _cache(name: str, text: str, read: Callable[[CacheFigures], float | None]) -> Figure:
    return _server(name, "Cache and store", text, lambda now: read(now.cache))


def _host(
    name: str, text: str, read: Callable[[HostFigures], float | None], kind: Literal["counter", "gauge"] = "gauge"
) -> Figure:
    return _server(name, "Process and host", text, lambda now: read(now.host), kind)


def _backup(name: str, text: str, read: Callable[[BackupFigures], float | None]) -> Figure:
    return _server(name, "Backups", text, lambda now: read(now.backup) if now.backup is not None else None)


def _outcomes(name: str, group: str, text: str, read: Callable[[Snapshot], Mapping[str, int] | None]) -> Figure:
    def values(now: Snapshot) -> Values:
        return [((outcome,), count) for outcome, count in (read(now) or {}).items()]

    return Figure(name, "counter", ("outcome",), text, group, values)


def _fullest(now: Snapshot) -> float | None:
    return max((m.kv_cache_ratio for m in now.models if m.kv_cache_ratio is not None), default=None)


_MODELS = (
    _model("stoker_requests_running", "Requests that hold a slot of an engine.", lambda m: m.running),
    _model("stoker_requests_waiting", "Requests that wait for a slot.", lambda m: m.waiting),
    _model("stoker_waiting_tokens", "Tokens that those will take at most, as estimated.", lambda m: m.waiting_tokens),
    _model("stoker_slots", "Slots of the engines that are ready.", lambda m: m.slots),
    _model(
        "stoker_kv_cache_utilization_ratio", "Share of the engines' KV cache in use, 0..1.", lambda m: m.kv_cache_ratio
    ),
    _model(
        "stoker_queue_refused_total",
        "Requests that the waiting line refused: it was full, or their deadline would have passed in it.",
        lambda m: m.refused,
        "counter",
    ),
    Figure(
        "stoker_model_info",
        "gauge",
        ("model", "version", "digest"),
        "1 for each model, with its version and the SHA-256 of its file.",
        "Models",
        lambda now: [((m.name, m.version, m.digest), 1) for m in now.models],
    ),
)
_ENGINES = (
    _engine("stoker_engine_up", "1 when the engine takes requests, else 0.", lambda e: e.up),
    _engine(
        "stoker_engine_restarts_total", "Starts of the engine after its first one.", lambda e: e.restarts, "counter"
    ),
    _engine(
        "stoker_engine_watchdog_kills_total",
        "Times that it was ended because it made no progress.",
        lambda e: e.watchdog_kills,
        "counter",
    ),
    _engine("stoker_engine_load_seconds", "Time that its last load took.", lambda e: e.load_seconds),
    _engine("stoker_engine_memory_bytes", "Memory that its process has resident.", lambda e: e.memory_bytes),
    _engine(
        "stoker_engine_last_token_timestamp_seconds", "When its last token came, since 1970.", lambda e: e.last_token_at
    ),
    _engine("stoker_canary_latency_seconds", "Time that its last canary token took.", lambda e: e.canary_seconds),
    _engine(
        "stoker_canary_last_success_timestamp_seconds",
        "When a canary token last came, since 1970.",
        lambda e: e.canary_succeeded_at,
    ),
)
_PICKER = "Endpoint picker"
_INFERENCE = (
    _server(
        "stoker_inference_queued_requests",
        _PICKER,
        "TotalQueuedRequests of the model server protocol: requests that wait, of all models.",
        lambda now: sum(model.waiting for model in now.models),
    ),
    _server(
        "stoker_inference_running_requests",
        _PICKER,
        "TotalRunningRequests: requests at engines, of all models.",
        lambda now: sum(model.running for model in now.models),
    ),
    _server(
        "stoker_inference_kv_cache_utilization",
        _PICKER,
        "KVCacheUtilization, 0..1: that of the model whose KV cache is the fullest.",
        _fullest,
    ),
)
_STORES = (
    _cache("stoker_cache_entries", "Answers that this process keeps.", lambda c: c.entries),
    _cache("stoker_cache_bytes", "Memory that they take.", lambda c: c.octets),
    _cache("stoker_cache_limit_bytes", "Memory that they may take.", lambda c: c.limit_bytes),
    _cache("stoker_cache_flights", "Generations under way that others may join.", lambda c: c.flights),
    Figure(
        "stoker_cache_lookups_total",
        "counter",
        ("outcome",),
        "Requests that the cache was asked for, by outcome: hit, miss, joined, bypass.",
        "Cache and store",
        lambda now: [((outcome,), count) for outcome, count in now.cache.lookups.items()],
    ),
    _cache("stoker_store_up", "1 when the shared store answers, else 0.", lambda c: c.store_up),
)
_JOBS = (
    Figure(
        "stoker_jobs",
        "gauge",
        ("state",),
        "Jobs that are kept, by state; of all replicas, where they share Redis.",
        "Jobs",
        lambda now: [((state,), count) for state, count in (now.jobs.states if now.jobs else {}).items()],
    ),
    _server(
        "stoker_jobs_oldest_due_seconds",
        "Jobs",
        "For how long the oldest job that could run has waited.",
        lambda now: now.jobs.oldest_due_seconds if now.jobs else None,
    ),
    _server(
        "stoker_jobs_held",
        "Jobs",
        "Jobs that this server works on.",
        lambda now: now.work.running if now.work else None,
    ),
    Figure(
        "stoker_job_attempts_total",
        "counter",
        ("outcome",),
        "Attempts at jobs by what came of them: succeeded, failed, cancelled, retried, released, lost, expired.",
        "Jobs",
        lambda now: [((outcome,), count) for outcome, count in (now.work.attempts if now.work else {}).items()],
    ),
    Figure(
        "stoker_webhook_deliveries_total",
        "counter",
        ("outcome",),
        "Attempts to deliver results by what came of them: delivered, gone, refused, failed.",
        "Jobs",
        lambda now: [((outcome,), count) for outcome, count in (now.work.deliveries if now.work else {}).items()],
    ),
)
_BACKUPS = (
    _backup(
        "stoker_backup_repository_up",
        "1 when the repository of snapshots could be read at the last look, else 0.",
        lambda b: b.trouble is None,
    ),
    _backup("stoker_backup_snapshots", "Snapshots that it holds, damaged ones included.", lambda b: b.snapshots),
    _backup(
        "stoker_backup_last_success_timestamp_seconds",
        "When the newest good snapshot was made, since 1970.",
        lambda b: b.last_success_at,
    ),
    _backup("stoker_backup_last_size_bytes", "What that snapshot holds.", lambda b: b.last_size_bytes),
    _backup("stoker_backup_last_sent_bytes", "What of it had to be sent.", lambda b: b.last_sent_bytes),
    _backup("stoker_backup_last_duration_seconds", "Time that it took to make.", lambda b: b.last_seconds),
    _outcomes(
        "stoker_backup_runs_total",
        "Backups",
        "Attempts of this server's schedule to make a snapshot, by what came of them: succeeded, failed.",
        lambda now: now.backup_runs,
    ),
    _backup(
        "stoker_backup_drill_last_success_timestamp_seconds",
        "When a recovery drill from this repository last succeeded, since 1970.",
        lambda b: b.drill_succeeded_at,
    ),
    _backup(
        "stoker_backup_drill_last_result",
        "What the last recovery drill found: 1 all well, 0 not.",
        lambda b: b.drill_ok,
    ),
)
_ROLLOUTS = (
    Figure(
        "stoker_rollout_phase",
        "gauge",
        ("model", "version", "phase"),
        "1 for the phase that a model's rollout to a version is in; nothing while none is under way.",
        "Rollouts",
        lambda now: [((r.model, r.version, r.phase), 1) for r in (now.rollout,) if r is not None],
    ),
    Figure(
        "stoker_rollout_phase_seconds",
        "gauge",
        ("model",),
        "For how long it has been in that phase.",
        "Rollouts",
        lambda now: [((r.model,), r.phase_seconds) for r in (now.rollout,) if r is not None],
    ),
    _outcomes(
        "stoker_rollouts_total",
        "Rollouts",
        "Rollouts that ended, by how: succeeded, refused, failed, aborted, rolled_back.",
        lambda now: now.rollouts,
    ),
)
_HEALTH = (
    _server("stoker_ready", "Health", "1 when /health/ready succeeds, else 0.", lambda now: now.ready),
    _server("stoker_draining", "Health", "1 when the server is stopping, else 0.", lambda now: now.draining),
    Figure(
        "stoker_health_check_status",
        "gauge",
        ("check",),
        "What a check of /health finds: 0 ok, 1 warn, 2 fail.",
        "Health",
        lambda now: [((check,), LEVELS[outcome]) for check, outcome in now.checks.items()],
    ),
)
_HOST = (
    _host(
        "stoker_memory_limit_bytes", "Memory that the cgroup grants, else the host's.", lambda h: h.memory_limit_bytes
    ),
    _host("stoker_memory_used_bytes", "What of it is in use.", lambda h: h.memory_used_bytes),
    _host("stoker_host_memory_available_bytes", "Memory that the host has left.", lambda h: h.memory_available_bytes),
    _host("stoker_cpu_quota_cores", "Processors that the cgroup grants.", lambda h: h.cpu_quota_cores),
    _host(
        "stoker_cpu_throttled_seconds_total",
        "Time for which the cgroup held its processes back.",
        lambda h: h.cpu_throttled_seconds,
        "counter",
    ),
    _host("stoker_host_load1", "The host's load average over a minute.", lambda h: h.load1),
    _host("stoker_disk_free_bytes", "Free space in the data directory's file system.", lambda h: h.disk_free_bytes),
    _host("stoker_disk_size_bytes", "That file system's size.", lambda h: h.disk_size_bytes),
    _server(
        "stoker_event_loop_lag_seconds",
        "Process and host",
        "How late the event loop was when it was last looked at.",
        lambda now: now.event_loop_lag_seconds,
    ),
    Figure(
        "stoker_log_lines_dropped_total",
        "counter",
        ("sink",),
        "Log lines that were not written, because what they go to is full or too slow.",
        "Process and host",
        lambda now: [((sink,), count) for sink, count in now.lines_dropped.items()],
    ),
    _server("stoker_uptime_seconds", "Process and host", "Time since the start.", lambda now: now.uptime_seconds),
    Figure(
        "stoker_build_info",
        "gauge",
        ("version", "engine", "python"),
        "1, with the versions of Stoker, its engine and Python.",
        "Process and host",
        lambda now: [((now.build.version, now.build.engine, now.build.python), 1)],
    ),
)
FIGURES = (*_MODELS, *_ENGINES, *_INFERENCE, *_STORES, *_JOBS, *_ROLLOUTS, *_BACKUPS, *_HEALTH, *_HOST)
"""Every figure that `LiveFigures` collects."""
