"""The llama.cpp engine process: a llama-server on a Unix socket, alive only as long as its parent.

This is the only module that loads llama.cpp. It runs as `python -m stoker.engine.backends.llamacpp` in a process of
its own, so that a crash, a leak or an out-of-memory kill in native code never takes the gateway down. Its standard
input is a pipe whose end closes when the parent dies, however it dies; then this process ends too and takes its socket
file along.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import xllamacpp as llama

CACHE_TYPES = {
    "f16": llama.ggml_type.GGML_TYPE_F16,
    "q8_0": llama.ggml_type.GGML_TYPE_Q8_0,
    "q4_0": llama.ggml_type.GGML_TYPE_Q4_0,
}
POOLING_TYPES = {
    "none": llama.llama_pooling_type.LLAMA_POOLING_TYPE_NONE,
    "mean": llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama.llama_pooling_type.LLAMA_POOLING_TYPE_CLS,
    "last": llama.llama_pooling_type.LLAMA_POOLING_TYPE_LAST,
    "rank": llama.llama_pooling_type.LLAMA_POOLING_TYPE_RANK,
}
FLASH_ATTENTION = {
    "auto": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
SSE_PING_S = 5  # llama-server notices a closed stream only when it writes; a comment line is a write


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line that `engine/launch.py` writes; every value comes from the plan."""
    parser = argparse.ArgumentParser(prog="stoker-engine-llamacpp", description="llama.cpp on a Unix socket")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--socket", required=True, help="Unix socket to listen on")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--threads-batch", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens for each slot")
    parser.add_argument("--batch", type=int, required=True, help="prompt tokens in one step")
    parser.add_argument("--cache-type", choices=CACHE_TYPES, default="f16")
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, default="auto")
    parser.add_argument(
        "--checkpoints", type=int, default=0, help="saved states a slot, for windowed and recurrent layers"
    )
    parser.add_argument("--prompt-cache-mib", type=int, default=0)
    parser.add_argument("--gpu-layers", type=int, default=0, help="-1: all")
    parser.add_argument("--pooling", choices=POOLING_TYPES, default="last")
    return parser.parse_args(arguments)


def parameters(options: argparse.Namespace) -> llama.CommonParams:
    """llama.cpp's parameters for the given options."""
    params = llama.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.socket]
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads_batch
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.context
    params.n_batch = params.n_ubatch = options.batch
    params.cache_type_k = params.cache_type_v = CACHE_TYPES[options.cache_type]
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.n_ctx_checkpoints = options.checkpoints
    params.cache_ram_mib = options.prompt_cache_mib
    params.n_gpu_layers = options.gpu_layers if options.gpu_layers >= 0 else 999
    params.fit_params = False  # the plan has fitted them, from what the cgroup grants
    params.embedding = True  # costs nothing measurable, and generation still works
    params.pooling_type = POOLING_TYPES[options.pooling]
    params.endpoint_props = True
    params.endpoint_metrics = True
    params.sse_ping_interval = SSE_PING_S
    params.ui = False
    return params


def devices() -> list[str]:
    """Processors other than the CPU that this build can compute on, such as `CUDA0`."""
    return [device["name"] for device in llama.get_device_info() if not device["name"].startswith("CPU")]


def wait_for_parent() -> None:
    """Block until the parent closes our standard input, by intent or by dying."""
    while os.read(0, 4096):
        pass


def main() -> None:
    """Serve until standard input ends. A model that cannot be loaded ends the process with status 1."""
    if "--devices" in sys.argv[1:]:
        print(json.dumps(devices()))  # noqa: T201 - the answer that `engine/launch.py` reads
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a stop is the gateway's business: it drains, then closes our input
    options = parse()
    server = llama.Server(parameters(options))
    wait_for_parent()
    del server
    with contextlib.suppress(OSError):
        Path(options.socket).unlink()
    with contextlib.suppress(OSError):
        Path(options.socket).parent.rmdir()  # only succeeds for the last engine of a parent that was killed
    os._exit(0)  # native threads may still be winding down; there is nothing left to lose


if __name__ == "__main__":
    main()
