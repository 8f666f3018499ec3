"""Compares what the plan says an engine will need with what the engine then takes.

    .venv/bin/python benchmarks/plan_memory.py MODEL.gguf [MODEL.gguf ...]

Each row starts an engine of its own with that configuration, gives every slot a prompt longer than a batch at the same
time (a completion, then an embedding), and reads the process's peak resident memory (VmHWM). Mapped originals of
weights that the engine has copied are not needed any more and are taken off. Prints a Markdown table; exits 1 when a
ratio (estimate / peak without those) lies outside 1.00 to 1.35, which docs/planning.md promises.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stoker.config import CacheType
from stoker.engine.memory import MIB, Shape, estimate_memory
from stoker.models.gguf import read_header

CHILD = """
import json, sys, xllamacpp as x
c = json.loads(sys.argv[1])
p = x.CommonParams()
p.model.path, p.hostnames = c["model"], [c["socket"]]
p.n_parallel, p.n_ctx = c["slots"], c["slots"] * c["context"]
p.n_batch = p.n_ubatch = c["batch"]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = c["threads"]
p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + c["cache_type"].upper())
p.cache_ram_mib, p.n_ctx_checkpoints, p.n_gpu_layers, p.verbosity = 0, 0, 0, 1
p.embedding, p.pooling_type, p.ui = True, x.llama_pooling_type.LLAMA_POOLING_TYPE_LAST, False
p.fit_params = False
server = x.Server(p)
print("ready", flush=True)
sys.stdin.read()
"""

ROWS: list[tuple[int, int, int, CacheType]] = [
    (1, 512, 64, "f16"),
    (1, 2048, 128, "f16"),
    (1, 8192, 512, "f16"),
    (2, 2048, 128, "f16"),
    (4, 2048, 64, "f16"),
    (4, 2048, 512, "f16"),
    (8, 512, 128, "f16"),
    (8, 2048, 128, "f16"),
    (8, 4096, 128, "f16"),
    (8, 8192, 128, "f16"),
    (2, 2048, 128, "q8_0"),
    (8, 2048, 128, "q8_0"),
    (8, 4096, 512, "q8_0"),
    (4, 2048, 128, "q4_0"),
]
LOW, HIGH = 1.0, 1.35


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: str, number: int, words: int) -> None:
    """One completion and one embedding of a text that no other request shares."""
    text = f"{number} " + "the cat sat on a mat " * (words // 6 + 1)
    for route, body in (
        ("/v1/completions", {"prompt": text, "max_tokens": 8, "ignore_eos": True}),
        ("/v1/embeddings", {"input": text}),
    ):
        connection = Connection(path)
        connection.request("POST", route, json.dumps(body))
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{route} {response.status}: {answer[:300]!r}")
        connection.close()


def peak(model: Path, slots: int, context: int, batch: int, cache_type: CacheType) -> tuple[float, float]:
    """Peak resident memory of an engine after a full load of its slots, and its anonymous part, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/e.sock"
        given = {
            "model": str(model),
            "socket": path,
            "slots": slots,
            "context": context,
            "batch": batch,
            "threads": 2,
            "cache_type": cache_type,
        }
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            if child.stdout is None or child.stdout.readline().strip() != "ready":
                raise RuntimeError(f"the engine did not start with {given}")
            time.sleep(0.2)
            words = min(context - 100, batch + 60)
            with ThreadPoolExecutor(slots) as pool:
                list(pool.map(lambda number: ask(path, number, words), range(slots)))
            status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
            return int(status["VmHWM"].split()[0]) / 1024, int(status["RssAnon"].split()[0]) / 1024
        finally:
            if child.stdin:
                child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def main() -> int:
    """Measure every row of every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    outside = 0
    print(
        "| model | slots | context | batch | KV | peak MiB | of it anonymous | copied weights | estimate MiB | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in parser.parse_args().models:
        header = read_header(model)
        for slots, context, batch, cache_type in ROWS:
            if context > header.context_train:
                continue
            shape = Shape(slots, context, batch, cache_type, prompt_cache_mib=0, checkpoints=0)
            need = estimate_memory(header, shape)
            estimate, copied = need.total / MIB, need.repack / MIB
            measured, anonymous = peak(model, slots, context, batch, cache_type)
            ratio = estimate / (measured - copied)
            outside += not LOW <= ratio <= HIGH
            print(
                f"| {model.stem} | {slots} | {context} | {batch} | {cache_type} "
                f"| {measured:.0f} | {anonymous:.0f} | {copied:.0f} | {estimate:.0f} | {ratio:.2f} |",
                flush=True,
            )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
