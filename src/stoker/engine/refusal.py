"""Says in numbers why a model cannot run here, and what would fit instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from stoker.config import PlanConfig
from stoker.engine.host import Host
from stoker.engine.memory import (
    CONTEXT_STEP,
    MIB,
    QUANTISED_BITS,
    MemoryNeed,
    Shape,
    estimate_memory,
    quantisable,
    quantised,
)
from stoker.errors import PlanError
from stoker.models.gguf import GgufHeader

SMALLEST_USEFUL_CONTEXT: Final = 256


def refuse_wishes(header: GgufHeader, host: Host, wishes: PlanConfig, *, gpu_offload_supported: bool) -> None:
    """Raise PlanError for a value set by hand that cannot work, however much memory there is."""
    if wishes.cache_type not in {None, "f16"} and not quantisable(header):
        raise PlanError(
            f"plan.cache_type = {wishes.cache_type} needs attention heads of whole blocks of 32; this model's keys are "
            f"{header.key_length} wide and its values {header.value_length}; leave cache_type out, or set f16",
            param="plan.cache_type",
        )
    if wishes.gpu_layers and not gpu_offload_supported:
        raise PlanError(
            f"plan.gpu_layers = {wishes.gpu_layers}, but this build of the engine computes on CPUs only; "
            "set it to 0, or install a build with GPU support",
            param="plan.gpu_layers",
        )
    if wishes.gpu_layers and not host.gpus:
        raise PlanError(
            f"plan.gpu_layers = {wishes.gpu_layers}, but no GPU was found (nvidia-smi lists none); "
            "set it to 0, or give this process a GPU",
            param="plan.gpu_layers",
        )


def refuse(
    header: GgufHeader, host: Host, smallest: Shape, wishes: PlanConfig, *, replicas: int, granted: int, gpu_bytes: int
) -> PlanError:
    """The error for a model that does not fit even in the smallest shape that was allowed.

    Args:
        header: the model's figures.
        host: what the host grants.
        smallest: the last shape that was tried.
        wishes: values set by hand, which narrowed the choice.
        replicas: engine processes wanted.
        granted: host memory for all of them, in bytes.
        gpu_bytes: GPU memory for one of them, in bytes; 0 when the engine cannot use one.
    """
    need = estimate_memory(header, smallest)
    model = f"{header.name or header.architecture} ({header.file_type})"
    slots = "1 slot" if smallest.slots == 1 else f"{smallest.slots} slots"
    least = f"{slots} of {smallest.context} tokens, KV cache {smallest.cache_type}"
    if replicas > 1:
        least += f", {replicas} replicas"
    needed = need.of(replicas)
    lines = [
        f"{model} does not fit: {mib(needed)} needed, {mib_there(granted)} granted ({_origin(host, wishes)}).",
        f"The least that was allowed is {least}: {breakdown(need, replicas)}.",
    ]
    if smallest.gpu_layers and need.gpu > gpu_bytes:
        lines.append(
            f"On the GPU {smallest.gpu_layers} layers need {mib(need.gpu)}, {mib_there(gpu_bytes)} are free; "
            "lower plan.gpu_layers or leave it out."
        )
    lines.append("What would fit:")
    options = _options(header, smallest, replicas, granted)
    layers = _layers_that_help(header, smallest, replicas, granted, gpu_bytes)
    if layers:
        options.append(f"{layers} of {header.layers + 1} layers on the GPU (plan.gpu_layers {layers})")
    elif host.gpus and not gpu_bytes:
        options.append(f"layers on the GPU ({host.gpus[0].name}): install a build of the engine that supports it")
    missing = needed - granted
    if missing > 0:
        options.append(f"more memory: {mib(missing)} beyond what is granted, or a smaller model")
    lines.extend(f"- {option}" for option in options)
    return PlanError("\n".join(lines))


def breakdown(need: MemoryNeed, replicas: int = 1) -> str:
    """The parts of a need, largest first, for people."""
    parts = {
        "weights": need.weights,
        "repacked weights": need.repack * replicas,
        "KV cache": need.kv * replicas,
        "compute buffers": need.compute * replicas,
        "runtime": need.base * replicas,
        "prompt cache": need.prompt_cache * replicas,
    }
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {mib(octets)}" for name, octets in ordered if octets)


def mib(octets: int) -> str:
    """Bytes that are needed as whole MiB, rounded up, for people."""
    return f"{-(-octets // MIB):,} MiB"


def mib_there(octets: int) -> str:
    """Bytes that are there as whole MiB, rounded down, for people."""
    return f"{octets // MIB:,} MiB"


def _origin(host: Host, wishes: PlanConfig) -> str:
    if wishes.memory_mib is not None:
        return "plan.memory_mib"
    return f"of {mib_there(host.memory_bytes)} free by {host.memory_source}, less the gateway's part and a margin"


def _options(header: GgufHeader, smallest: Shape, replicas: int, granted: int) -> list[str]:
    """Remedies without other hardware, with their figures, the cheapest first."""
    options: list[str] = []
    leanest = replace(
        smallest,
        slots=1,
        prompt_cache_mib=0,
        cache_type="q8_0" if quantisable(header) else "f16",
        gpu_layers=0,
    )
    context = largest_context(header, leanest, replicas, granted)
    if context:
        options.append(
            f"a smaller context: 1 slot of {context} tokens, KV cache {leanest.cache_type} "
            f"(plan.slots 1, plan.context {context}, plan.cache_type {leanest.cache_type})"
        )
    if replicas > 1 and estimate_memory(header, smallest).of(1) <= granted:
        options.append("one replica instead of " + str(replicas))
    options.extend(_quantisations(header, leanest, replicas, granted))
    return options


def largest_context(header: GgufHeader, shape: Shape, replicas: int, granted: int) -> int:
    """The most tokens a slot that fit with everything else as in `shape`; 0 when not even 256 do."""
    fitting = 0
    low, high = 1, header.context_train // CONTEXT_STEP
    while low <= high:
        middle = (low + high) // 2
        tokens = middle * CONTEXT_STEP
        batch = shape.batch if header.causal_attention else tokens
        tried = replace(shape, context=tokens, batch=batch)
        if estimate_memory(header, tried).of(replicas) <= granted:
            fitting, low = tokens, middle + 1
        else:
            high = middle - 1
    return fitting if fitting >= SMALLEST_USEFUL_CONTEXT else 0


def _quantisations(header: GgufHeader, leanest: Shape, replicas: int, granted: int) -> list[str]:
    """Stronger quantisations of which the model fits with a useful context."""
    options = []
    for name in QUANTISED_BITS:
        smaller = quantised(header, name)
        if smaller.file_bytes >= header.file_bytes * 0.95:
            continue
        context = largest_context(smaller, leanest, replicas, granted)
        if context:
            options.append(
                f"quantised to {name}: about {mib(smaller.file_bytes)} instead of {mib(header.file_bytes)}, "
                f"then up to {context} tokens of context"
            )
    return options


def _layers_that_help(header: GgufHeader, shape: Shape, replicas: int, granted: int, gpu_bytes: int) -> int:
    """The fewest layers on the GPU with which both memories suffice; 0 when none do."""
    for layers in range(1, header.layers + 2) if gpu_bytes else ():
        need = estimate_memory(header, replace(shape, gpu_layers=layers))
        if need.of(replicas) <= granted and need.gpu <= gpu_bytes:
            return layers
    return 0
