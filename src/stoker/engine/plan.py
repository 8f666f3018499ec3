"""Decides how a model runs before it loads: threads, slots, context, batches, cache and GPU layers.

`make_plan` is a pure function of the model's header, of what the host grants and of what was set by hand. Every choice
comes with its reason in figures. What does not fit is made smaller in the order of `candidates`; what does not fit
even then is refused with numbers (`refusal`), because an engine killed for its memory under load is worse than one that
never started.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from stoker.config import CacheType, PlanConfig
from stoker.engine.host import Host
from stoker.engine.memory import MIB, MemoryNeed, Shape, estimate_memory, quantisable
from stoker.engine.reasons import Choice, Pooling, Reason, explain, explain_shrinking
from stoker.engine.refusal import refuse, refuse_wishes
from stoker.models.gguf import GgufHeader

GATEWAY_BYTES: Final = 150 * MIB
"""Kept free for the gateway process itself."""
MARGIN: Final = 0.10
"""Part of the remaining memory that stays free."""
GPU_MARGIN: Final = 0.10

DEFAULT_CONTEXT: Final = 4096
DEFAULT_PROMPT_CACHE_MIB: Final = 64
SLOTS_PER_THREAD: Final = 4
MIN_DEFAULT_SLOTS, MAX_DEFAULT_SLOTS = 2, 16
CHECKPOINTS: Final = 2
"""Saved states a slot for models that cannot go back in their memory (windowed and recurrent layers)."""

FLOPS_PER_THREAD: Final = 35e9
"""Rate of prompt computation a thread, measured on 2-core Xeons with quantised weights."""
BATCH_SECONDS: Final = 0.45
"""Longest step of a prompt: a cancelled request is noticed after one."""
MIN_CPU_BATCH, MAX_CPU_BATCH = 32, 512
GPU_BATCH: Final = 512
"""Steps of a prompt with everything on a GPU. For embeddings the engine keeps scores over the vocabulary for a whole
batch, so that larger ones would cost gigabytes with large vocabularies."""
MIN_STALL_S: Final = 15.0
STALL_BATCHES: Final = 10

POOLINGS: Final[MappingProxyType[int, Pooling]] = MappingProxyType(
    {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
)
"""`enum llama_pooling_type` of llama.cpp's `llama.h`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an engine is started.

    `context` is in tokens for each slot; `batch` tokens of a prompt are handed over at once and `ubatch` computed at
    once: the same number, because the first costs memory for scores and the second time until a cancelled prompt stops.
    `prompt_cache_mib` is in MiB; `checkpoints` are saved states a slot; `gpu_layers` counts the output layer as one
    more; `memory` is one engine's need, `needed_bytes` that of all replicas, `granted_bytes` what they may take. An
    engine that is busy and yields nothing for `stall_timeout_s` seconds is stuck.
    """

    threads: int
    threads_batch: int
    slots: int
    context: int
    batch: int
    ubatch: int
    cache_type: CacheType
    flash_attention: Literal["auto", "on"]
    prompt_cache_mib: int
    checkpoints: int
    gpu_layers: int
    pooling: Pooling
    memory: MemoryNeed
    needed_bytes: int
    granted_bytes: int
    stall_timeout_s: float
    reasons: tuple[Reason, ...]
    shrunk: tuple[Reason, ...]


def make_plan(
    header: GgufHeader,
    host: Host,
    wishes: PlanConfig,
    *,
    replicas: int = 1,
    gpu_offload_supported: bool,
) -> Plan:
    """Decide how this model runs on this host.

    Args:
        header: the model's figures.
        host: what the host grants.
        wishes: values set by hand; they are kept as they are.
        replicas: engine processes of this model, 1 or more; they share the CPUs and the grant.
        gpu_offload_supported: whether the engine can compute on a GPU.

    Returns: a plan whose estimated need is within the grant.

    Raises:
        PlanError: it does not fit, or a value set by hand cannot work; with numbers and what would fit.
    """
    refuse_wishes(header, host, wishes, gpu_offload_supported=gpu_offload_supported)
    threads = wishes.threads or default_threads(host, replicas)
    threads_batch = wishes.threads_batch or threads
    gpu_bytes = _gpu_grant(host, replicas) if gpu_offload_supported else 0
    granted = grant_bytes(host) if wishes.memory_mib is None else wishes.memory_mib * MIB
    wanted = _placed(header, _wanted(header, wishes, threads, threads_batch, gpu_bytes), wishes, gpu_bytes)
    taken = wanted
    for shape in candidates(header, wanted, wishes):
        taken = _placed(header, shape, wishes, gpu_bytes)
        need = estimate_memory(header, taken)
        if need.of(replicas) <= granted and need.gpu <= gpu_bytes:
            break
    else:
        raise refuse(header, host, taken, wishes, replicas=replicas, granted=granted, gpu_bytes=gpu_bytes)
    choice = Choice(
        wanted=wanted,
        taken=taken,
        threads=threads,
        threads_batch=threads_batch,
        replicas=replicas,
        batch_seconds=batch_seconds(header, taken, threads_batch),
        pooling=pooling(header),
        needed=need.of(replicas),
        granted=granted,
    )
    return _plan(header, host, wishes, choice, need)


def _plan(header: GgufHeader, host: Host, wishes: PlanConfig, choice: Choice, need: MemoryNeed) -> Plan:
    """Write a choice down as a plan."""
    taken = choice.taken
    needed_at_first = estimate_memory(header, choice.wanted).of(choice.replicas)
    return Plan(
        threads=choice.threads,
        threads_batch=choice.threads_batch,
        slots=taken.slots,
        context=taken.context,
        batch=taken.batch,
        ubatch=taken.batch,
        cache_type=taken.cache_type,
        # llama.cpp keeps quantised values only for its fused attention.
        flash_attention="auto" if taken.cache_type == "f16" else "on",
        prompt_cache_mib=taken.prompt_cache_mib,
        checkpoints=taken.checkpoints,
        gpu_layers=taken.gpu_layers,
        pooling=choice.pooling,
        memory=need,
        needed_bytes=choice.needed,
        granted_bytes=choice.granted,
        stall_timeout_s=max(MIN_STALL_S, STALL_BATCHES * choice.batch_seconds),
        reasons=explain(header, host, wishes, choice),
        shrunk=explain_shrinking(choice.wanted, taken, needed_at_first, choice.granted),
    )


def pooling(header: GgufHeader) -> Pooling:
    """How token vectors become one: as the file says; else the last token of a causal model, the mean of another."""
    said = POOLINGS.get(header.pooling_type or 0, "none")
    if said != "none":
        return said
    return "last" if header.causal_attention else "mean"


def grant_bytes(host: Host) -> int:
    """Bytes that all engines together may take: what is free, less the gateway's own and a margin."""
    return max(int((host.memory_bytes - GATEWAY_BYTES) * (1 - MARGIN)), 0)


def divide_memory(host: Host, models: Sequence[tuple[GgufHeader, int, int | None]]) -> tuple[int, ...]:
    """Divide the grant between models: each gets its weights, and an equal part of what is left for each engine.

    Args:
        host: what the host grants.
        models: for each its header, its replicas, and the MiB it was given by hand (None: decide).

    Returns: MiB for each model, for `PlanConfig.memory_mib`; what was given by hand is kept.
    """
    left = grant_bytes(host) - sum(mib * MIB for _, _, mib in models if mib is not None)
    undecided = [(header, replicas) for header, replicas, mib in models if mib is None]
    weights = sum(header.file_bytes for header, _ in undecided)
    engines = sum(replicas for _, replicas in undecided)
    # With less than the weights there is nothing to divide: in proportion, so that each refusal has true figures.
    scale = min(left / weights, 1.0) if left > 0 and weights else 0.0
    part = max(left - weights, 0) / engines if engines else 0.0
    return tuple(
        mib if mib is not None else int(header.file_bytes * scale + part * replicas) // MIB
        for header, replicas, mib in models
    )


def default_threads(host: Host, replicas: int) -> int:
    """Threads of one engine: whole CPUs of the quota, at most one a physical core, divided between replicas."""
    whole = int(host.cpus)
    if host.physical_cores:
        whole = min(whole, host.physical_cores)
    return max(whole // max(replicas, 1), 1)


def batch_seconds(header: GgufHeader, shape: Shape, threads: int) -> float:
    """Estimated seconds of one prompt step on the CPU: two operations a parameter and token; a GPU's part is free."""
    share = min(shape.gpu_layers, header.layers + 1) / (header.layers + 1)
    return 2 * header.active_parameters * (1 - share) * shape.batch / (FLOPS_PER_THREAD * threads)


def candidates(header: GgufHeader, start: Shape, wishes: PlanConfig) -> Iterator[Shape]:
    """The shapes to try, from the one wanted to the smallest, leaving alone what was set by hand.

    Each step makes one setting smaller: prompt cache and checkpoints to 0, context to 2048, slots to 2, KV cache to
    q8_0, context to 1024, slots to 1, context to 512. The first that fits is taken, so that more memory never gives
    less.
    """
    shape = start
    yield shape
    if wishes.prompt_cache_mib is None and shape.prompt_cache_mib:
        shape = replace(shape, prompt_cache_mib=0, checkpoints=0)
        yield shape
    for context_floor, slots_floor in ((2048, 2), (1024, 1), (512, 1)):
        if wishes.context is None:
            while shape.context > context_floor:
                # By quarters of a power of two: few steps for a large context, fine ones for a small.
                step = max(256, 1 << (shape.context.bit_length() - 3))
                shape = _of_context(header, shape, max(shape.context - step, context_floor), wishes)
                yield shape
        if wishes.slots is None:
            while shape.slots > slots_floor:
                shape = replace(shape, slots=shape.slots - 1)
                yield shape
        if wishes.cache_type is None and shape.cache_type == "f16" and quantisable(header):
            shape = replace(shape, cache_type="q8_0")
            yield shape


def _wanted(header: GgufHeader, wishes: PlanConfig, threads: int, threads_batch: int, gpu_bytes: int) -> Shape:
    """The shape that is wanted before memory has its say."""
    context = wishes.context or min(header.context_train, DEFAULT_CONTEXT)
    slots = wishes.slots or min(max(SLOTS_PER_THREAD * threads, MIN_DEFAULT_SLOTS), MAX_DEFAULT_SLOTS)
    cannot_go_back = any(header.windowed) or header.recurrent_bytes
    shape = Shape(
        slots=slots,
        context=context,
        batch=wishes.batch or _cpu_batch(header, threads_batch),
        cache_type=wishes.cache_type or "f16",
        prompt_cache_mib=DEFAULT_PROMPT_CACHE_MIB if wishes.prompt_cache_mib is None else wishes.prompt_cache_mib,
        checkpoints=CHECKPOINTS if cannot_go_back else 0,
    )
    shape = _of_context(header, shape, context, wishes)
    if gpu_bytes and wishes.batch is None and header.causal_attention:
        on_gpu = replace(shape, batch=GPU_BATCH, slots=wishes.slots or MAX_DEFAULT_SLOTS)
        if _placed(header, on_gpu, wishes, gpu_bytes).gpu_layers > header.layers:
            return on_gpu
    return shape


def _of_context(header: GgufHeader, shape: Shape, context: int, wishes: PlanConfig) -> Shape:
    """The shape with another context; a model that reads both ways needs its whole input in one batch."""
    batch = context if not header.causal_attention and wishes.batch is None else shape.batch
    return replace(shape, context=context, batch=batch)


def _cpu_batch(header: GgufHeader, threads: int) -> int:
    """The largest power of two of tokens that is computed within BATCH_SECONDS."""
    batch = MAX_CPU_BATCH
    while batch > MIN_CPU_BATCH and 2 * header.active_parameters * batch > BATCH_SECONDS * FLOPS_PER_THREAD * threads:
        batch //= 2
    return batch


def _gpu_grant(host: Host, replicas: int) -> int:
    """GPU memory of one engine, in bytes."""
    return int(sum(gpu.free_bytes for gpu in host.gpus) * (1 - GPU_MARGIN)) // max(replicas, 1)


def _placed(header: GgufHeader, shape: Shape, wishes: PlanConfig, gpu_bytes: int) -> Shape:
    """The shape with as many layers on the GPU as were asked for, or as fit."""
    everything = header.layers + 1
    if wishes.gpu_layers is not None:
        wanted = everything if wishes.gpu_layers == -1 else min(wishes.gpu_layers, everything)
        return replace(shape, gpu_layers=wanted)
    for count in range(everything, 0, -1):
        placed = replace(shape, gpu_layers=count)
        if gpu_bytes and estimate_memory(header, placed).gpu <= gpu_bytes:
            return placed
    return replace(shape, gpu_layers=0)
