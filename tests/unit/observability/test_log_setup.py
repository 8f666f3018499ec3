"""The whole of it, as a process sees it: setup, what libraries and crashes say, stalled and broken outputs, the end."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from stoker.config import LogConfig
from stoker.errors import ConfigError
from stoker.observability import logging as log
from stoker.observability.audit import audit

WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    yield
    log.shutdown()


def set_up(stream: Any = None, **config: Any) -> Any:
    out = io.StringIO() if stream is None else stream
    log.configure(LogConfig(**config), out)
    return out


def lines_of(stream: io.StringIO | Path) -> list[dict[str, Any]]:
    """What was written, after the end."""
    log.shutdown()
    text = stream.read_text() if isinstance(stream, Path) else stream.getvalue()
    return [json.loads(line) for line in text.splitlines()]


def run(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"stderr": subprocess.PIPE, **options}
    head = "from stoker.config import LogConfig\nfrom stoker.observability import logging as log\n"
    command = [sys.executable, "-c", head + program]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False, **given)


def test_lines_look_as_they_always_did() -> None:
    out = set_up()
    log.get_logger("engine").info("engine ready", pid=7, error=None)
    log.get_logger("engine").debug("not written")
    (line,) = lines_of(out)
    assert list(line) == ["component", "pid", "error", "event", "level", "time"]
    assert line["component"] == "engine"
    assert (line["event"], line["level"], line["pid"], line["error"]) == ("engine ready", "info", 7, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", line["time"])


def test_loggers_made_before_and_bound_in_between_follow_the_last_setup() -> None:
    early = log.get_logger("early")
    first = set_up(level="error")
    early.info("not written")
    early.error("to the first")
    second = set_up()
    early.info("to the second")
    log.shutdown()
    assert [line["event"] for line in lines_of(first)] == ["to the first"]
    assert [line["event"] for line in lines_of(second)] == ["to the second"]


def test_the_file_gets_json_whatever_people_see(tmp_path) -> None:
    path = tmp_path / "logs" / "stoker.log"
    out = set_up(format="console", file=path)
    log.get_logger("engine").warning("engine restarts", reason="because\x1b[2J")
    (line,) = lines_of(path)
    assert line["reason"] == "because\x1b[2J"
    assert "engine restarts" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["file", "audit_file"])
def test_a_file_that_cannot_be_made_is_a_mistake_of_the_configuration(tmp_path, key) -> None:
    (tmp_path / "occupied").write_text("")
    path = tmp_path / "occupied" / "log"
    before = structlog.get_config()["logger_factory"]
    with pytest.raises(ConfigError, match=re.escape(str(path))) as raised:
        set_up(**{key: path})
    assert raised.value.param == f"log.{key}"
    assert "directory" in raised.value.message
    assert structlog.get_config()["logger_factory"] is before


def test_log_and_audit_need_a_file_each(tmp_path) -> None:
    with pytest.raises(ConfigError, match="give each its own"):
        set_up(file=tmp_path / "log", audit_file=tmp_path / "log")


def test_acts_are_written_whatever_the_level(tmp_path) -> None:
    path = tmp_path / "audit"
    out = set_up(level="error", audit_file=path)
    log.get_logger("server").info("not written")
    audit("cache cleared", key="ops", address="192.0.2.7", outcome="done", entries=3)
    audit("keys listed", key=None, address="192.0.2.8", outcome="refused")
    log.get_logger("server").error("written, and no act")
    acts = lines_of(path)
    assert [(act["event"], act["outcome"], act["level"]) for act in acts] == [
        ("cache cleared", "done", "info"),
        ("keys listed", "refused", "warning"),
    ]
    assert (acts[0]["component"], acts[0]["key"], acts[0]["entries"]) == ("audit", "ops", 3)
    assert acts[1]["key"] is None
    assert [line["event"] for line in lines_of(out)] == ["cache cleared", "keys listed", "written, and no act"]


def test_acts_can_be_looked_for_in_tests() -> None:
    with structlog.testing.capture_logs() as lines:
        audit("cache cleared", key="ops", address="", outcome="failed", reason="x")
    assert [(line["event"], line["component"]) for line in lines] == [("cache cleared", "audit")]


def test_libraries_and_warnings_are_brought_in() -> None:
    out = set_up()
    logging.getLogger("uvicorn.error").warning("slow %s", "client")
    logging.getLogger("asyncio").info("not written: libraries say too much")
    logging.getLogger("odd").log(35, "between levels")
    logging.getLogger("odd").error("%d", "no number")
    try:
        int("odd")
    except ValueError:
        logging.getLogger("aiohttp").exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("old", UserWarning, "f.py", 3)
    lines = lines_of(out)
    assert [(line["component"], line["level"]) for line in lines] == [
        ("uvicorn.error", "warning"),
        ("odd", "warning"),
        ("odd", "error"),
        ("aiohttp", "error"),
        ("py.warnings", "warning"),
    ]
    assert lines[0]["event"] == "slow client"
    assert lines[2]["event"].startswith("%d (")
    assert "ValueError: invalid literal" in lines[3]["exception"]
    assert "UserWarning: old" in lines[4]["event"]


def test_everything_that_was_hooked_is_given_back() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook, warnings.showwarning)
    factory = structlog.get_config()["logger_factory"]
    set_up()
    set_up()
    assert sys.excepthook is not before[2]
    log.shutdown()
    log.shutdown()
    assert (root.handlers, root.level, sys.excepthook, threading.excepthook, warnings.showwarning) == before
    assert structlog.get_config()["logger_factory"] is factory


def test_the_hooks_of_somebody_later_stay(monkeypatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    set_up()

    def later(*_: object) -> None: ...

    sys.excepthook = later
    log.shutdown()
    assert sys.excepthook is later


def test_a_thread_that_dies_says_so_in_one_line() -> None:
    out = set_up()

    def die() -> None:
        raise ValueError("in a thread")

    def leave() -> None:
        raise SystemExit(3)

    for what in (die, leave):
        thread = threading.Thread(target=what, name=what.__name__)
        thread.start()
        thread.join()
    (line,) = lines_of(out)
    assert (line["event"], line["level"], line["thread"]) == ("uncaught exception", "critical", "die")
    assert "ValueError: in a thread" in line["exception"]


def test_a_process_that_dies_says_so_in_one_line_and_everything_before_it() -> None:
    program = "log.configure(LogConfig())\nfor n in range(500): log.get_logger('x').info('line', n=n)\n"
    ended = run(program + "raise ValueError('end')")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert ended.returncode == 1
    assert [line["n"] for line in lines[:-1]] == list(range(500))
    assert lines[-1]["event"] == "uncaught exception"
    assert "ValueError: end" in lines[-1]["exception"]


def test_an_interrupt_is_no_crash() -> None:
    ended = run("log.configure(LogConfig())\nraise KeyboardInterrupt")
    assert "uncaught" not in ended.stderr
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import sys; sys.exit(0)", "log.shutdown()"])
def test_a_plain_end_loses_nothing(end: str, tmp_path) -> None:
    path = tmp_path / "log"
    program = (
        f"log.configure(LogConfig(file={str(path)!r}))\nfor n in range(3000): log.get_logger('x').info('line', n=n)\n"
    )
    ended = run(program + end)
    assert ended.returncode == 0
    for text in (ended.stderr, path.read_text()):
        assert [json.loads(line)["n"] for line in text.splitlines()] == list(range(3000))


def test_a_process_without_standard_error_still_has_its_file(tmp_path) -> None:
    path = tmp_path / "log"
    program = "import sys\nsys.stderr = None  # as Python has it where the descriptor is closed\n"
    program += f"log.configure(LogConfig(file={str(path)!r}))\nlog.get_logger('x').info('line')"
    assert run(program).returncode == 0
    assert [line["event"] for line in lines_of(path)] == ["line"]


def test_a_forked_child_logs_and_writes_nothing_twice() -> None:
    ended = run(
        """
import os, time
log.configure(LogConfig())
say = log.get_logger("x")
for n in range(200): say.info("parent", n=n)
child = os.fork()
say.info("child" if child == 0 else "parent", n=200)
if child == 0:
    log.shutdown()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert ended.returncode == 0
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["n"] for line in lines if line["event"] == "parent"] == list(range(201))
    assert [line["n"] for line in lines if line["event"] == "child"] == [200]


def test_a_program_that_is_started_gets_none_of_the_files(tmp_path) -> None:
    out = (tmp_path / "stream").open("w")
    set_up(out, file=tmp_path / "log", audit_file=tmp_path / "audit")
    log.get_logger("x").info("line")
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False)
    assert str(tmp_path) not in listing.stdout
    log.shutdown()
    out.close()


def waits(what: Any, count: int) -> float:
    """The longest that one of so many calls took, in seconds."""
    longest = 0.0
    for _ in range(count):
        began = time.monotonic()
        what()
        longest = max(longest, time.monotonic() - began)
    return longest


def test_a_pipe_that_nobody_reads_holds_up_nothing(tmp_path) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    path = tmp_path / "log"
    set_up(stream, file=path)
    say = log.get_logger("x")
    with_text = "x" * 500
    # A pipe holds 64 KiB: without a thread of its own the 130th line would wait for ever.
    assert waits(lambda: say.info("line", text=with_text), 14_000) < WITHIN_S / 4
    lost = log.dropped()["stderr"]
    assert lost > 0
    pieces: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 1 << 16):
            pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    limit = time.monotonic() + WITHIN_S
    while b'"lost":' not in b"".join(pieces[-2:]) and time.monotonic() < limit:
        time.sleep(0.01)
    say.info("again")
    file_lost = log.dropped()["file"]
    log.shutdown()
    stream.close()
    thread.join()
    os.close(reader)
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    (gap,) = (line for line in lines if "lost" in line)
    assert gap["event"] == f"{lost} log lines were lost"
    assert (gap["component"], gap["level"], gap["sink"], gap["lost"]) == ("log", "warning", "stderr", lost)
    assert sum(line["event"] == "line" for line in lines) == 14_000 - lost
    assert lines[-1]["event"] == "again"
    assert file_lost == 0 or '"sink":"file"' in path.read_text()
    assert '"again"' in path.read_text()


def test_a_pipe_that_was_closed_costs_only_its_own_lines(tmp_path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    path = tmp_path / "log"
    with os.fdopen(writer, "w") as stream:
        set_up(stream, file=path)
        say = log.get_logger("x")
        say.info("one")
        limit = time.monotonic() + WITHIN_S
        while "trying again" not in path.read_text() and time.monotonic() < limit:
            time.sleep(0.01)
        say.info("two")
        lines = lines_of(path)
    assert [line["event"] for line in lines] == ["one", "log cannot be written, trying again", "two"]
    assert (lines[1]["sink"], lines[1]["reason"]) == ("stderr", "Broken pipe")


def test_a_full_disk_under_the_stream_costs_only_its_own_lines(tmp_path) -> None:
    program = f"log.configure(LogConfig(file={str(tmp_path / 'log')!r}))\n"
    program += "for n in range(100): log.get_logger('x').info('line', n=n)\nprint('served')"
    with Path("/dev/full").open("w") as full:
        ended = run(program, stderr=full)
    assert (ended.returncode, ended.stdout) == (0, "served\n")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["n"] for line in lines if line["event"] == "line"] == list(range(100))


def test_a_full_disk_under_the_file_costs_only_its_own_lines() -> None:
    out = set_up(file=Path("/dev/full"))
    for number in range(50):
        log.get_logger("x").info("line", n=number)
    lines = lines_of(out)
    assert [line["n"] for line in lines if line["event"] == "line"] == list(range(50))
    assert log.dropped()["file"] >= 50


def test_an_exception_that_cannot_be_shown_raises_nothing() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    out = set_up()
    log.get_logger("x").error("failed", exc_info=Odd())
    log.get_logger("x").error("odd", exc_info=7)
    log.get_logger("x").error("none", exc_info=False)
    lines = lines_of(out)
    assert "Odd" in lines[0]["exception"]
    assert [line["event"] for line in lines] == ["failed", "odd", "none"]
    assert "exc_info" not in lines[2]


def test_rotation_as_configured(tmp_path) -> None:
    path = tmp_path / "log"
    set_up(file=path, file_mib=1, file_count=2)
    say = log.get_logger("x")
    for number in range(4000):
        say.info("line", n=number, text="x" * 1000)
    log.shutdown()
    assert log.dropped()["file"] == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    kept = "".join((tmp_path / name).read_text() for name in ("log.2", "log.1", "log"))
    numbers = [json.loads(line)["n"] for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 4000))
    assert all(entry.stat().st_size <= 1 << 20 for entry in tmp_path.iterdir())
