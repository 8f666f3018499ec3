"""Turns a plan into the argument list of an engine process, and asks the engine's build what it can compute on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stoker.engine.plan import Plan

BACKEND = "stoker.engine.backends.llamacpp"
PROBE_TIMEOUT_S = 60.0  # the first use of a CUDA build may compile kernels


def offload_devices() -> tuple[str, ...]:
    """GPUs that the installed engine can use; none for a CPU build. Asked in a child, for it loads llama.cpp."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", BACKEND, "--devices"],
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return tuple(json.loads(answer.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()


def llamacpp_command(plan: Plan, model: Path, socket: Path) -> Sequence[str]:
    """The argument list that starts llama.cpp with `plan` for the file `model`, listening on `socket`."""
    options = {
        "--model": model,
        "--socket": socket,
        "--threads": plan.threads,
        "--threads-batch": plan.threads_batch,
        "--slots": plan.slots,
        "--context": plan.context,
        "--batch": plan.batch,
        "--cache-type": plan.cache_type,
        "--flash-attention": plan.flash_attention,
        "--prompt-cache-mib": plan.prompt_cache_mib,
        "--checkpoints": plan.checkpoints,
        "--gpu-layers": plan.gpu_layers,
        "--pooling": plan.pooling,
    }
    return [sys.executable, "-m", BACKEND, *(str(part) for option in options.items() for part in option)]


def custom_command(command: Sequence[str], plan: Plan, model: Path, socket: Path) -> Sequence[str]:
    """The argument list of an operator's own engine program, its `{...}` places filled in.

    Places: `model`, `socket`, and from the plan `threads`, `slots`, `context` (tokens a slot), `total_context`, `batch`
    and `gpu_layers`.
    """
    places = {
        "model": model,
        "socket": socket,
        "threads": plan.threads,
        "slots": plan.slots,
        "context": plan.context,
        "total_context": plan.context * plan.slots,
        "batch": plan.batch,
        "gpu_layers": plan.gpu_layers,
    }
    return [_fill(part, places) for part in command]


def _fill(part: str, places: Mapping[str, object]) -> str:
    for name, value in places.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part
