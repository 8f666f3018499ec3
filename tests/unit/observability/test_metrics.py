"""What one request, one decision and one snapshot come to in what is exported."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stoker.config import LogConfig
from stoker.errors import EngineDied, ModelNotFound
from stoker.observability.content import ContentWriter
from stoker.observability.live import FIGURES, LiveFigures
from stoker.observability.metrics import CONTENT_TYPE, OPERATIONS, Metrics
from stoker.observability.record import Observer, Record
from stoker.observability.snapshot import (
    BackupFigures,
    Build,
    CacheFigures,
    EngineFigures,
    HostFigures,
    JobFigures,
    ModelFigures,
    RolloutFigures,
    Snapshot,
    WorkFigures,
)
from stoker.observability.tracing import Tracer
from stoker.types import ModelIdentity, Usage


def telling(metrics: Metrics) -> Observer:
    return Observer(metrics, Tracer(None, 0), ContentWriter(LogConfig()))


ROUTES = list(OPERATIONS)
REQUEST = {
    "route": "/v1/chat/completions",
    "model": "small",
    "expert": None,
    "reason": "named",
    "status": 200,
    "cache": "miss",
    "error": "",
    "seconds": 2.0,
    "queue": 0.25,
    "first_token": 0.5,
    "usage": Usage(100, 16, 40),
}
FULL = Snapshot(
    build=Build(version="1.2", engine="xllamacpp 3", python="3.12.1"),
    ready=True,
    draining=False,
    uptime_seconds=12.5,
    event_loop_lag_seconds=0.002,
    models=[
        ModelFigures(
            name=name,
            version="1",
            digest="ab" * 32,
            running=running,
            waiting=running + 1,
            waiting_tokens=500,
            slots=4,
            refused=7,
            kv_cache_ratio=ratio,
            engines=[
                EngineFigures(
                    name=f"{name}/0",
                    up=True,
                    restarts=2,
                    watchdog_kills=1,
                    load_seconds=0.5,
                    memory_bytes=10**9,
                    last_token_at=1.7e9,
                    canary_seconds=0.01,
                    canary_succeeded_at=1.7e9,
                )
            ],
        )
        for name, running, ratio in (("small", 1, 0.25), ("large", 3, 0.75))
    ],
    cache=CacheFigures(entries=1, octets=2, limit_bytes=3, flights=4, lookups={"hit": 5, "miss": 6}, store_up=False),
    host=HostFigures(
        memory_limit_bytes=1,
        memory_used_bytes=2,
        memory_available_bytes=3,
        cpu_quota_cores=1.5,
        cpu_throttled_seconds=4.5,
        load1=0.5,
        disk_free_bytes=6,
        disk_size_bytes=7,
    ),
    checks={"disk": "ok", "store": "warn", "model small": "fail"},
    lines_dropped={"file": 3},
    jobs=JobFigures(states={"queued": 4}, oldest_due_seconds=1.5),
    work=WorkFigures(running=2, attempts={"succeeded": 7}, deliveries={"delivered": 1}),
    backup=BackupFigures(
        snapshots=3,
        pinned=1,
        damaged=0,
        last_id="20261124T030000Z-0a1b2c3d",
        last_success_at=1.7e9,
        last_size_bytes=5 * 10**9,
        last_sent_bytes=10**6,
        last_seconds=12.5,
        drill_at=1.7e9,
        drill_ok=False,
        drill_succeeded_at=1.6e9,
    ),
    backup_runs={"succeeded": 4, "failed": 0},
    rollout=RolloutFigures(model="small", version="v2", phase="baking", phase_seconds=30.5),
    rollouts={"succeeded": 2, "refused": 1, "failed": 0, "aborted": 0, "rolled_back": 0},
)
BARE = Snapshot(
    build=Build(version="1", engine="", python="3"),
    ready=False,
    draining=True,
    uptime_seconds=0.0,
    models=[
        ModelFigures(
            name="far",
            version="",
            digest="",
            running=0,
            waiting=0,
            waiting_tokens=0,
            slots=0,
            refused=0,
            engines=[EngineFigures(name="far/upstream", up=False, restarts=0, watchdog_kills=0)],
        )
    ],
)


def samples(text: bytes) -> Iterator[Any]:
    for family in text_string_to_metric_families(text.decode()):
        yield from family.samples


def values(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series by their labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in samples(metrics.render())
        if sample.name == name
    }


def noted(**changes: Any) -> Metrics:
    """Fresh metrics that have seen one request."""
    metrics = Metrics()
    metrics.note_request(**{**REQUEST, **changes})
    return metrics


def with_figures(snapshot: Snapshot) -> Metrics:
    metrics = Metrics()
    metrics.registry.register(LiveFigures(lambda: snapshot))
    return metrics


def exercised() -> Metrics:
    """Metrics in which every series has values."""
    metrics = with_figures(FULL)
    metrics.note_request(**REQUEST)
    metrics.guarded.labels("block", "injection").inc()
    metrics.leaks.labels("secret").inc()
    metrics.limited.labels("key").inc()
    metrics.note_store_error("get", "timeout")
    return metrics


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_counted_in_every_series_that_it_concerns() -> None:
    metrics = noted()
    assert values(metrics, "stoker_requests_total") == {("miss", "small", "/v1/chat/completions", "200"): 1}
    assert values(metrics, "stoker_routed_total") == {("small", "named"): 1}
    assert values(metrics, "stoker_prompt_tokens_total") == {("small",): 100}
    assert values(metrics, "stoker_prompt_tokens_cached_total") == {("small",): 40}
    assert values(metrics, "stoker_generation_tokens_total") == {("small",): 16}
    assert values(metrics, "stoker_queue_seconds_sum") == {("small",): 0.25}
    assert values(metrics, "gen_ai_server_request_duration_seconds_sum") == {("", "chat", "small"): 2.0}
    assert values(metrics, "gen_ai_server_time_to_first_token_seconds_sum") == {("miss", "chat", "small"): 0.5}
    assert values(metrics, "gen_ai_server_time_per_output_token_seconds_sum") == {("chat", "small"): 0.1}


@pytest.mark.parametrize(("route", "operation"), [*OPERATIONS.items(), ("/nowhere", "other")])
def test_the_operation_follows_from_the_route(route: str, operation: str) -> None:
    metrics = noted(route=route)
    assert values(metrics, "gen_ai_server_request_duration_seconds_count") == {("", operation, "small"): 1}
    expected = {} if operation == "embeddings" else {("miss", operation, "small"): 1}
    assert values(metrics, "gen_ai_server_time_to_first_token_seconds_count") == expected


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, True),
        ({"cache": "bypass"}, True),
        ({"cache": "hit"}, False),
        ({"cache": "joined"}, False),
        ({"usage": Usage(100, 1)}, False),
        ({"usage": Usage(100, 0)}, False),
        ({"error": "engine_died"}, False),
        ({"status": 499}, False),
        ({"first_token": None}, False),
        ({"route": "/v1/embeddings"}, False),
    ],
)
def test_the_time_per_token_is_of_whole_answers_that_were_generated(changes: dict[str, Any], counted: bool) -> None:
    assert bool(values(noted(**changes), "gen_ai_server_time_per_output_token_seconds_count")) is counted


def test_a_request_that_found_no_model() -> None:
    metrics = noted(model="", status=404, error="model_not_found", queue=None, first_token=None, usage=Usage())
    assert values(metrics, "stoker_requests_total") == {("miss", "", "/v1/chat/completions", "404"): 1}
    assert values(metrics, "gen_ai_server_request_duration_seconds_count") == {("model_not_found", "chat", ""): 1}
    for name in ("stoker_routed_total", "stoker_queue_seconds_count", "stoker_prompt_tokens_total"):
        assert values(metrics, name) == {}


def test_the_expert_stands_for_the_model_that_it_asked() -> None:
    assert values(noted(expert="tax", reason="keyword"), "stoker_routed_total") == {("tax", "keyword"): 1}


@pytest.mark.parametrize("route", ROUTES)
def test_records_count_themselves(route: str) -> None:
    metrics = Metrics()
    record = Record("r", route, observer=telling(metrics), model=ModelIdentity("small", "1", "ab" * 32), expert="tax")
    record.route_reason = "keyword 'vat'"
    record.timings.attempts, record.timings.queue_ms = 1, 250.0
    record.note_first("miss", None)
    record.timings.first_token_ms = 0.0
    record.note("stop", Usage(10, 5, 4), "miss")
    record.close()
    assert values(metrics, "stoker_requests_total") == {("miss", "small", route, "200"): 1}
    assert values(metrics, "stoker_routed_total") == {("tax", "keyword"): 1}
    assert values(metrics, "stoker_queue_seconds_sum") == {("small",): 0.25}
    assert values(metrics, "stoker_prompt_tokens_cached_total") == {("small",): 4}
    total = values(metrics, "gen_ai_server_request_duration_seconds_sum")[("", OPERATIONS[route], "small")]
    assert math.isclose(total, record.timings.total_ms / 1000)
    per_token = values(metrics, "gen_ai_server_time_per_output_token_seconds_sum")
    assert per_token == ({} if route == "/v1/embeddings" else {(OPERATIONS[route], "small"): total / 4})


def test_what_the_cache_answered_went_to_no_engine() -> None:
    metrics = Metrics()
    record = Record("r", "/query", observer=telling(metrics), model=ModelIdentity("small", "1", "ab" * 32))
    record.note_first("hit", 3.0)
    record.note("stop", Usage(10, 5), "hit")
    record.close()
    assert values(metrics, "gen_ai_server_time_to_first_token_seconds_count") == {("hit", "chat", "small"): 1}
    for name in ("stoker_queue_seconds_count", "stoker_prompt_tokens_total", "stoker_generation_tokens_total"):
        assert values(metrics, name) == {}


@pytest.mark.parametrize("error", [ModelNotFound("x"), EngineDied("x")])
def test_records_tell_their_error_by_its_code(error: Any) -> None:
    metrics = Metrics()
    record = Record("r", "/query", observer=telling(metrics), error=error, status=error.status)
    record.close()
    assert values(metrics, "gen_ai_server_request_duration_seconds_count") == {(error.code, "chat", ""): 1}
    assert values(metrics, "stoker_requests_total") == {("bypass", "", "/query", str(error.status)): 1}


def test_a_client_that_left_is_a_499() -> None:
    metrics = Metrics()
    Record("r", "/query", observer=telling(metrics), disconnected=True).close()
    assert values(metrics, "stoker_requests_total") == {("bypass", "", "/query", "499"): 1}


def test_labels_are_bounded_whatever_comes() -> None:
    metrics = Metrics()
    for number in range(1500):
        metrics.note_request(**{**REQUEST, "model": f"m{number}", "error": f"e{number}"})
    for family in metrics.families:
        text = "".join(family.render())
        ends = "_count{" if family.kind == "histogram" else "{"
        assert text.count(f"\n{family.name}{ends}") in {0, 1001}, family.name
    assert metrics.requests.labels(*["other"] * 4).value == 500
    assert sum(metrics.durations.labels(*["other"] * 3).counts) == 500


# -- figures -----------------------------------------------------------------------------------------------------------


def test_every_series_appears() -> None:
    metrics = exercised()
    names = {sample.name for sample in samples(metrics.render())}
    for series in (*metrics.families, *FIGURES):
        assert series.name in names or f"{series.name}_bucket" in names, series.name
    for name in ("process_cpu_seconds_total", "python_info", "python_gc_collections_total"):
        assert name in names


def test_series_have_the_labels_that_they_declare() -> None:
    metrics = exercised()
    labels = {sample.name: set(sample.labels) for sample in samples(metrics.render())}
    for series in (*metrics.families, *FIGURES):
        seen = labels.get(series.name, labels.get(f"{series.name}_count"))
        assert seen == set(series.label_names), series.name


def test_names_are_unique() -> None:
    names = [series.name for series in (*Metrics().families, *FIGURES)]
    assert len(set(names)) == len(names)


def test_figures_say_what_the_snapshot_does() -> None:
    metrics = with_figures(FULL)
    assert values(metrics, "stoker_requests_running") == {("small",): 1, ("large",): 3}
    assert values(metrics, "stoker_queue_refused_total") == {("small",): 7, ("large",): 7}
    assert values(metrics, "stoker_engine_up") == {("small/0", "small"): 1, ("large/0", "large"): 1}
    assert values(metrics, "stoker_model_info") == {("ab" * 32, "small", "1"): 1, ("ab" * 32, "large", "1"): 1}
    assert values(metrics, "stoker_inference_queued_requests") == {(): 6}
    assert values(metrics, "stoker_inference_running_requests") == {(): 4}
    assert values(metrics, "stoker_inference_kv_cache_utilization") == {(): 0.75}
    assert values(metrics, "stoker_cache_lookups_total") == {("hit",): 5, ("miss",): 6}
    assert values(metrics, "stoker_store_up") == {(): 0}
    assert values(metrics, "stoker_health_check_status") == {("disk",): 0, ("store",): 1, ("model small",): 2}
    assert values(metrics, "stoker_cpu_throttled_seconds_total") == {(): 4.5}
    assert values(metrics, "stoker_ready") == {(): 1}
    assert values(metrics, "stoker_build_info") == {("xllamacpp 3", "3.12.1", "1.2"): 1}


def test_figures_of_backups_and_rollouts_say_what_the_snapshot_does() -> None:
    metrics = with_figures(FULL)
    assert values(metrics, "stoker_backup_repository_up") == {(): 1}
    assert values(metrics, "stoker_backup_snapshots") == {(): 3}
    assert values(metrics, "stoker_backup_last_success_timestamp_seconds") == {(): 1.7e9}
    assert values(metrics, "stoker_backup_last_size_bytes") == {(): 5e9}
    assert values(metrics, "stoker_backup_last_sent_bytes") == {(): 1e6}
    assert values(metrics, "stoker_backup_last_duration_seconds") == {(): 12.5}
    assert values(metrics, "stoker_backup_runs_total") == {("succeeded",): 4, ("failed",): 0}
    assert values(metrics, "stoker_backup_drill_last_result") == {(): 0}
    assert values(metrics, "stoker_backup_drill_last_success_timestamp_seconds") == {(): 1.6e9}
    assert values(metrics, "stoker_rollout_phase") == {("small", "baking", "v2"): 1}
    assert values(metrics, "stoker_rollout_phase_seconds") == {("small",): 30.5}
    assert values(metrics, "stoker_rollouts_total")[("refused",)] == 1
    assert values(metrics, "stoker_rollouts_total")[("failed",)] == 0


def test_a_repository_that_is_away_keeps_what_was_known_of_it() -> None:
    away = replace(FULL, backup=replace(FULL.backup, trouble="no answer"))
    assert values(with_figures(away), "stoker_backup_repository_up") == {(): 0}
    assert values(with_figures(away), "stoker_backup_snapshots") == {(): 3}


def test_what_is_not_known_is_left_out() -> None:
    names = {sample.name for sample in samples(with_figures(BARE).render())}
    for name in (
        "stoker_kv_cache_utilization_ratio",
        "stoker_inference_kv_cache_utilization",
        "stoker_engine_memory_bytes",
        "stoker_canary_latency_seconds",
        "stoker_store_up",
        "stoker_cache_entries",
        "stoker_memory_limit_bytes",
        "stoker_event_loop_lag_seconds",
        "stoker_backup_repository_up",
        "stoker_backup_runs_total",
        "stoker_rollout_phase",
        "stoker_rollouts_total",
    ):
        assert name not in names
    for name in ("stoker_engine_up", "stoker_slots", "stoker_ready", "stoker_inference_queued_requests"):
        assert name in names
    assert b"stoker_canary_latency_seconds" not in with_figures(BARE).render()


def test_the_snapshot_is_read_only_when_somebody_asks() -> None:
    asked = []
    metrics = Metrics()
    metrics.registry.register(LiveFigures(lambda: asked.append(1) or FULL))
    assert not asked
    metrics.render()
    assert len(asked) == 1


# -- the text ----------------------------------------------------------------------------------------------------------


def test_figures_are_the_library_s_text_beside_ours() -> None:
    registry = CollectorRegistry()
    registry.register(LiveFigures(lambda: FULL))
    assert generate_latest(registry) in with_figures(FULL).render()


def test_no_sample_has_a_timestamp_and_every_line_ends() -> None:
    text = exercised().render()
    assert text.endswith(b"\n")
    assert all(sample.timestamp is None for sample in samples(text))
    assert "version=0.0.4" in CONTENT_TYPE


def test_a_tight_loop_gets_the_last_bytes_again() -> None:
    patient = Metrics(share=1e-9)
    first = patient.render()
    patient.note_request(**REQUEST)
    assert patient.render() is first
    eager = Metrics(share=1e9)
    eager.render()
    eager.note_request(**REQUEST)
    assert values(eager, "stoker_requests_total")


@pytest.mark.parametrize("metrics", [Metrics(), exercised()], ids=["at first", "later"])
def test_promtool_finds_nothing_to_say(metrics: Metrics, tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not here; apt-get install prometheus brings it")
    done = subprocess.run([program, "check", "metrics"], input=metrics.render(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
