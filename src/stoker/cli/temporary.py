"""A `stoker serve` of its own for a while: on loopback, in a process of its own, ended with whoever wanted it.

Run as a program it is that child: the same `stoker`, which ends when its standard input does, so that nothing is left
behind however its parent ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import yaml

from stoker.config import ENV_PREFIX
from stoker.errors import StartupError

STOPS_WITHIN_S: Final = 20.0
"""Seconds that a child gets to end by itself; then it is killed, and its engines end with it."""
LOOK_EVERY_S: Final = 0.05
LAST_BYTES: Final = 16_384
LAST_LINES: Final = 8
_READY: Final = re.compile(r"^ready after .* at (http://\S+)", re.MULTILINE)


@contextlib.contextmanager
def temporary_server(config: Mapping[str, Any], directory: Path, ready_within: float) -> Iterator[str]:
    """A server with its own configuration, as the URL at which it is ready.

    Args:
        config: settings as in a `stoker.yaml`. It listens on 127.0.0.1 on a port that the system chooses, logs warnings
            only and keeps its data under `directory`, unless `log` and `data_dir` say otherwise; variables of the
            environment that are settings do not reach it. Whatever else it must not touch is the caller's to leave out.
        directory: an existing one for its configuration (`stoker.yaml`) and its log (`log`); its data go to `data`.
        ready_within: seconds.

    Blocks while it waits. In the main thread SIGTERM ends the block as Ctrl-C does, with SystemExit.

    Raises:
        StartupError: it ended, or was not ready in time; the message has its last words.
    """
    settings = {"data_dir": str(directory / "data"), "log": {"level": "warning"}, **config}
    file = directory / "stoker.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump({**settings, "host": "127.0.0.1", "port": 0}, sort_keys=False), encoding="utf-8")
    log = directory / "log"
    with terminable(), log.open("wb") as sink:
        child = _start(file, sink.fileno())
        try:
            yield _wait_ready(child, log, ready_within)
        finally:
            _stop(child)


def _start(config: Path, log: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith((ENV_PREFIX, "OTEL_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "stoker.cli.temporary", "serve", "--config", str(config)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C is ours to hear; the child is ended in order
    )


def _wait_ready(child: subprocess.Popen[bytes], log: Path, ready_within: float) -> str:
    limit = time.monotonic() + ready_within
    while True:
        status = child.poll()
        written = log.read_text(encoding="utf-8", errors="replace")
        found = _READY.search(written)
        if found is not None and status is None:
            return found[1]
        if status is not None:
            raise StartupError(f"the temporary server ended with status {status} before it was ready: {_last(log)}")
        if time.monotonic() >= limit:
            raise StartupError(f"the temporary server was not ready within {ready_within:g} s; it said: {_last(log)}")
        time.sleep(LOOK_EVERY_S)


def _stop(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None  # noqa: S101 - it was asked for
    child.terminate()
    child.stdin.close()
    try:
        child.wait(STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _last(log: Path) -> str:
    """What a child said at its end: the error that it ended with, or else its last lines."""
    lines = log.read_bytes()[-LAST_BYTES:].decode("utf-8", "replace").strip().splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("stoker: ")]
    if said:
        return "\n".join(lines[said[-1] :]).removeprefix("stoker: ")
    return "\n".join(lines[-LAST_LINES:]) or "nothing"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that what was opened is closed; elsewhere than in the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _follow_parent() -> None:
    """End when standard input ends: the parent is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOPS_WITHIN_S)
    os._exit(1)


def _main() -> None:
    from stoker.cli.main import main

    threading.Thread(target=_follow_parent, daemon=True).start()
    main()


if __name__ == "__main__":
    _main()
