"""Every claim of the health report and the probes against a fault that is really there: what they said, and when."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.probes import Watch, check_of, note
from tests.redis_server import RedisProcess
from tests.running import FakeModel, Stoker
from tests.small_disk import small_disk

CGROUP = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20


@contextlib.contextmanager
def watched(directory: Path, model_path: Path, **settings: object) -> Iterator[tuple[Stoker, FakeModel, Watch]]:
    model = FakeModel(directory, model_path, plan={"slots": 2, "context": 1024})
    with Stoker(directory, {"models": [model.settings], **settings}) as stoker, Watch(stoker.url) as watch:
        yield stoker, model, watch


def failing(status: int, _text: str) -> bool:
    return status == 503


def well(status: int, _text: str) -> bool:
    return status == 200


def test_an_idle_wedged_engine_is_not_ready_within_15_s_and_is_restarted(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path) as (stoker, model, watch):
        began = time.monotonic()
        pid = stoker.engine_pids()[0]
        model.set("wedge")
        failed, reason = watch.wait_for("ready", failing, began)
        assert failed - began <= 15
        watch.wait_for("report", lambda _, text: '"stalls":1' in text, failed)
        model.set()
        back, _ = watch.wait_for("ready", well, failed + 0.1)
        assert stoker.engine_pids() != [pid]
        assert watch.always("live", 200, began)
        assert watch.always("startup", 200, began)
        note(
            "engine wedged while idle",
            live="200 throughout",
            ready=f"503 after {failed - began:.1f} s, 200 again after {back - began:.1f} s",
            report=json.loads(reason)["reason"][:100],
        )


def test_a_busy_wedged_engine_is_not_ready_within_15_s_and_is_restarted(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path) as (stoker, model, watch):
        model.set("wedge", times=1)
        began = time.monotonic()
        answer = httpx.post(f"{stoker.url}/query", json={"text": "hello"}, timeout=60)
        assert answer.status_code == 200  # by the engine that came after
        failed, reason = watch.wait_for("ready", failing, began)
        assert failed - began <= 15
        back, _ = watch.wait_for("ready", well, failed + 0.1)
        note(
            "engine wedged at work",
            live="200 throughout",
            ready=f"503 after {failed - began:.1f} s, 200 again after {back - began:.1f} s",
            report=json.loads(reason)["reason"][:100],
        )


def test_a_dead_engine_is_seen_at_once(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path, restart={"backoff": 1.0}) as (stoker, _, watch):
        began = time.monotonic()
        os.kill(stoker.engine_pids()[0], signal.SIGKILL)
        failed, reason = watch.wait_for("ready", failing, began)
        back, _ = watch.wait_for("ready", well, failed + 0.1)
        assert failed - began < 2
        assert "SIGKILL" in reason
        assert watch.always("live", 200, began)
        note(
            "engine killed",
            live="200 throughout",
            ready=f"503 after {failed - began:.1f} s, 200 again after {back - began:.1f} s",
            report=json.loads(reason)["reason"][:100],
        )


def test_a_full_disk_fails_the_report_and_nothing_else(tmp_path: Path, model_path: Path) -> None:
    place = tmp_path / "disk"
    settings = {
        "data_dir": str(place / "data"),
        "health": {"disk_warn_mib": 16, "disk_fail_mib": 4},
        "log": {"format": "json", "level": "info", "file": str(place / "stoker.log")},
    }
    with small_disk(place, "24m") as disk, watched(tmp_path, model_path, **settings) as (stoker, _, watch):
        assert check_of(watch.wait_for("report", well)[1], "disk")["status"] == "ok"
        began = time.monotonic()
        (disk / "ballast").write_bytes(bytes(12 * MIB))
        warned, _ = watch.wait_for("report", lambda _, text: check_of(text, "disk").get("status") == "warn", began)
        with contextlib.suppress(OSError):
            (disk / "more").write_bytes(bytes(24 * MIB))
        failed, text = watch.wait_for("report", failing, warned)
        assert "fails below 4" in check_of(text, "disk")["threshold"]
        assert httpx.post(f"{stoker.url}/query", json={"text": "still there?"}, timeout=30).status_code == 200
        (disk / "more").unlink()
        (disk / "ballast").unlink()
        back, _ = watch.wait_for("report", well, failed + 0.1)
        assert watch.always("live", 200, began)
        assert watch.always("ready", 200, began)
        note(
            "disk full",
            live="200 throughout",
            ready="200 throughout",
            report=f"warn after {warned - began:.1f} s, 503 when full, 200 after {back - failed:.1f} s; "
            + check_of(text, "disk")["reason"][:60],
        )


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A memory cgroup (version 1, or 2 where it is delegated) with a limit in bytes; skips where none can be made."""
    v1 = CGROUP.is_dir()
    group = (CGROUP if v1 else Path("/sys/fs/cgroup")) / f"stoker-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
    except OSError:
        pytest.skip("a memory cgroup needs root and a writable /sys/fs/cgroup: run the tests as root to see this one")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            time.sleep(0.2)
            group.rmdir()


def test_memory_near_its_limit_is_told(tmp_path: Path, model_path: Path) -> None:
    limit = 600 * MIB
    health = {"memory_warn": 0.7, "memory_fail": 0.85}
    with memory_group(limit) as group, watched(tmp_path, model_path, health=health) as (stoker, _, watch):
        for pid in (stoker.process.pid, *stoker.engine_pids()):
            (group / "cgroup.procs").write_text(str(pid))

        def take(share: float) -> subprocess.Popen[bytes]:
            """A neighbour in the group that takes memory until so much of the limit is used."""
            _, text = watch.wait_for("report", lambda _, text: "limit_source" in text and str(group) in text)
            used = json.loads(text)["memory"]["used_bytes"]
            code = "import sys,time;open(sys.argv[2],'w').write('0');x=b'x'*int(sys.argv[1]);time.sleep(99)"
            wanted = max(int(share * limit) - used, 0)
            return subprocess.Popen([sys.executable, "-c", code, str(wanted), group / "cgroup.procs"])

        # What Python allocated before it joined the group stays charged elsewhere: thresholds leave room for that.
        began = time.monotonic()
        first = take(0.78)
        warned, _ = watch.wait_for("report", lambda _, text: check_of(text, "memory").get("status") == "warn", began)
        second = take(0.92)
        failed, text = watch.wait_for("report", failing, warned)
        for hog in (first, second):
            hog.kill()
            hog.wait()
        watch.wait_for("report", lambda _, text: check_of(text, "memory").get("status") == "ok", failed)
        assert str(limit // MIB) in check_of(text, "memory")["reason"]
        assert watch.always("live", 200, began)
        assert watch.always("ready", 200, began)
        note(
            "memory near its limit",
            live="200 throughout",
            ready="200 throughout",
            report=f"warn after {warned - began:.1f} s, 503 after {failed - began:.1f} s; "
            + check_of(text, "memory")["reason"][:80],
        )


def test_redis_away_is_a_warning(tmp_path: Path, model_path: Path) -> None:
    with RedisProcess() as redis, watched(tmp_path, model_path, store={"redis": redis.url}) as (_, _, watch):
        began = time.monotonic()
        redis.kill()
        warned, text = watch.wait_for("report", lambda _, text: check_of(text, "store").get("status") == "warn", began)
        assert "limits are local" in check_of(text, "store")["reason"]
        redis.start()
        back, _ = watch.wait_for("report", lambda _, text: check_of(text, "store").get("status") == "ok", warned)
        assert watch.always("live", 200, began)
        assert watch.always("ready", 200, began)
        assert watch.always("report", 200, began)
        note(
            "Redis killed",
            live="200 throughout",
            ready="200 throughout",
            report=f"warn after {warned - began:.1f} s, ok {back - warned:.1f} s later",
        )


def test_a_blocked_event_loop_fails_the_liveness_probe(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path) as (stoker, _, watch):
        began = time.monotonic()
        stoker.process.send_signal(signal.SIGSTOP)
        try:
            failed, _ = watch.wait_for("live", lambda status, _: status == 0, began)
        finally:
            stoker.process.send_signal(signal.SIGCONT)
        back, _ = watch.wait_for("live", well, failed + 0.1)
        _, text = watch.wait_for("report", lambda _, text: check_of(text, "event loop").get("status") == "warn", failed)
        assert "warns above" in check_of(text, "event loop")["threshold"]
        note(
            "event loop blocked",
            live=f"no answer from {failed - began:.1f} s on, 200 again when it turned",
            ready="no answer either",
            report=check_of(text, "event loop")["reason"],
        )
        assert back > failed


def test_startup_tells_how_far_it_is_and_then_stays_well(tmp_path: Path, model_path: Path) -> None:
    model = FakeModel(tmp_path, model_path)
    model.set("never_ready")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Stoker(tmp_path, {"models": [model.settings], "port": port}, wait=False) as stoker:
        stoker.url = f"http://127.0.0.1:{port}"
        with Watch(stoker.url, at_once=True) as watch:
            watch.wait_for("startup", lambda _, text: "fake/0 starting for" in text)
        status, body = stoker.health("/health/startup")
        assert status == 503
        assert "fake/0 starting for" in body["reason"]
        assert stoker.health("/health/live")[0] == 200
        model.set()
        stoker.wait_ready()
        assert stoker.health("/health/startup")[0] == 200


def test_the_report_has_all_that_an_operator_asks_for(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path) as (stoker, _, watch):
        assert httpx.post(f"{stoker.url}/query", json={"text": "hello"}, timeout=30).status_code == 200
        _, text = watch.wait_for("report", lambda _, text: "limit_source" in text and '"memory_bytes":null' not in text)
        report = json.loads(text)
        model = report["models"][0]
        assert len(model["digest"]) == len("sha256:") + 64
        assert model["last_token_at"] <= time.time()
        assert model["engines"][0]["canary"]["latency_ms"] > 0
        assert model["engines"][0]["memory_bytes"] > MIB
        assert report["memory"]["gateway_bytes"] > MIB
        assert report["disk"]["free_bytes"] > 0
        assert report["cpu"]["granted"] >= 1
        assert report["versions"]["llama.cpp"]
        assert report["store"] == {"where": "memory", "trouble": None}
        judged = {check["name"] for check in report["checks"] if "threshold" in check}
        assert {"memory", "disk", "event loop", "model fake", "queue fake"} <= judged


def test_the_monitor_address_has_what_the_public_one_keeps_back(tmp_path: Path, model_path: Path) -> None:
    with watched(tmp_path, model_path, monitor={"port": 0}) as (stoker, _, _):
        private = stoker.monitor_url
        for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics"):
            with urllib.request.urlopen(private + path, timeout=10) as answer:
                assert answer.status == 200
        assert "stoker_engine_up" in httpx.get(f"{private}/metrics").text
        assert httpx.get(f"{private}/health").json()["models"]
        assert httpx.post(f"{private}/query", json={"text": "hello"}).status_code == 404
        assert httpx.get(f"{stoker.url}/metrics").status_code == 404
        assert set(httpx.get(f"{stoker.url}/health").json()) == {"status", "checks"}
        assert httpx.get(f"{stoker.url}/health/ready").status_code == 200
