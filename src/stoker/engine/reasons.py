"""Why a plan is as it is, in sentences with figures: what `stoker doctor` and the start of `stoker serve` print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stoker.config import PlanConfig
from stoker.engine.host import Host
from stoker.engine.memory import MIB, Shape, token_bytes
from stoker.engine.refusal import mib, mib_there
from stoker.models.gguf import GgufHeader

Pooling = Literal["none", "mean", "cls", "last", "rank"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a setting has its value: one sentence with figures."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided, as far as the sentences need it: the shape wanted and taken, threads, and estimated figures."""

    wanted: Shape
    taken: Shape
    threads: int
    threads_batch: int
    replicas: int
    batch_seconds: float
    pooling: Pooling
    needed: int
    granted: int


def explain(header: GgufHeader, host: Host, wishes: PlanConfig, choice: Choice) -> tuple[Reason, ...]:
    """A reason for every setting of the plan, in the order in which people read them."""
    by_hand = {name for name, value in wishes.model_dump().items() if value is not None}
    shape = choice.taken
    sentences = [
        ("threads", str(choice.threads), _threads(host, choice)),
        ("threads_batch", str(choice.threads_batch), "as threads"),
        ("slots", str(shape.slots), _slots(header, choice)),
        ("context", f"{shape.context} tokens a slot", _context(header, choice)),
        ("batch", f"{shape.batch} tokens", _batch(header, choice)),
        ("cache_type", shape.cache_type, _cache(header, choice)),
        ("prompt_cache_mib", f"{shape.prompt_cache_mib} MiB", _prompt_cache(choice)),
        ("gpu_layers", f"{shape.gpu_layers} of {header.layers + 1}", _gpu(header, host, choice)),
    ]
    reasons = [
        Reason(name, value, "set by hand" + _warning(header, host, name, choice) if name in by_hand else why)
        for name, value, why in sentences
    ]
    reasons.append(Reason("pooling", choice.pooling, _pooling(header)))
    reasons.append(Reason("memory", f"{mib(choice.needed)} of {mib_there(choice.granted)}", _memory(host, wishes)))
    return tuple(reasons)


def explain_shrinking(wanted: Shape, taken: Shape, needed_at_first: int, granted: int) -> tuple[Reason, ...]:
    """What was made smaller to fit, in the stated order; empty when nothing was."""
    why = f"as wanted it needed {mib(needed_at_first)}, {mib_there(granted)} are granted"
    pairs = (
        ("prompt_cache_mib", wanted.prompt_cache_mib, taken.prompt_cache_mib),
        ("context", wanted.context, taken.context),
        ("slots", wanted.slots, taken.slots),
        ("cache_type", wanted.cache_type, taken.cache_type),
    )
    return tuple(Reason(name, f"{before} -> {after}", why) for name, before, after in pairs if before != after)


def _threads(host: Host, choice: Choice) -> str:
    if host.cpu_quota is not None and host.cpu_quota < host.logical_cpus:
        why = f"the CPU quota is {host.cpu_quota:g} ({host.cpu_source}), rounded down: a thread more would be throttled"
        if host.cpu_quota < 1:
            why = f"the CPU quota is {host.cpu_quota:g} ({host.cpu_source}): one thread is the least, and is throttled"
    elif host.physical_cores and host.physical_cores < host.logical_cpus:
        why = (
            f"{host.physical_cores} cores behind {host.logical_cpus} CPUs: "
            "two threads of one core share its arithmetic units"
        )
    else:
        why = f"{host.logical_cpus} CPUs may be used (affinity), no quota below that"
    return why + (f"; divided between {choice.replicas} replicas" if choice.replicas > 1 else "")


def _slots(header: GgufHeader, choice: Choice) -> str:
    if choice.taken.slots < choice.wanted.slots:
        return f"made smaller from {choice.wanted.slots} to fit the memory"
    if choice.taken.gpu_layers > header.layers:
        return "all layers are on the GPU, which gains from many sequences at once"
    return f"4 for each of {choice.threads} threads, from 2 to 16: batching raises the rate up to about there"


def _context(header: GgufHeader, choice: Choice) -> str:
    if choice.taken.context < choice.wanted.context:
        return f"made smaller from {choice.wanted.context} to fit the memory"
    if choice.taken.context == header.context_train:
        return f"the model was trained for {header.context_train}"
    return f"enough for most requests; the model was trained for {header.context_train}"


def _batch(header: GgufHeader, choice: Choice) -> str:
    if not header.causal_attention:
        return "the model reads its whole input at once"
    if choice.taken.gpu_layers > header.layers:
        return "all layers are on the GPU, where larger steps cost little time"
    return (
        f"about {choice.batch_seconds:.2f} s of work for {choice.threads_batch} threads, "
        "so that a cancelled prompt stops soon"
    )


def _cache(header: GgufHeader, choice: Choice) -> str:
    cost = token_bytes(header, choice.taken.cache_type)
    if choice.taken.cache_type != choice.wanted.cache_type:
        return f"made smaller from {choice.wanted.cache_type} to fit the memory: {cost / 1024:.1f} KiB a token"
    return f"the engine's exact form: {cost / 1024:.1f} KiB a token"


def _prompt_cache(choice: Choice) -> str:
    if choice.taken.prompt_cache_mib < choice.wanted.prompt_cache_mib:
        return "given up to fit the memory"
    return "a few recent prompts beside the slots; the engine's own default of 8192 MiB is beyond most limits"


def _gpu(header: GgufHeader, host: Host, choice: Choice) -> str:
    if not host.gpus:
        return "no GPU was found"
    free = sum(gpu.free_bytes for gpu in host.gpus)
    if not choice.taken.gpu_layers:
        return f"the engine has no GPU support, or no layer fits into {mib_there(free)} of free GPU memory"
    part = "all" if choice.taken.gpu_layers > header.layers else "as many as"
    return f"{part} fit into {mib_there(free)} of free GPU memory"


def _pooling(header: GgufHeader) -> str:
    if header.pooling_type:
        return "the file says so"
    if header.causal_attention:
        return "the last token of a causal model has seen the whole text"
    return "the usual one for a model that reads both ways and names none"


def _memory(host: Host, wishes: PlanConfig) -> str:
    free = f"{mib_there(host.memory_bytes)} are free by {host.memory_source}"
    if wishes.memory_mib is None:
        return f"{free}; 150 MiB are the gateway's and 10% stay free"
    over = " - less than this model may take" if wishes.memory_mib * MIB > host.memory_bytes else ""
    return f"plan.memory_mib bounds it; {free}{over}"


def _warning(header: GgufHeader, host: Host, name: str, choice: Choice) -> str:
    """What a person should know about a value of their own; empty when there is nothing."""
    if name == "threads" and choice.threads * choice.replicas > max(int(host.cpus), 1):
        return f"; more than the {host.cpus:g} CPUs that may be used: threads will wait for each other"
    if name == "context" and choice.taken.context > header.context_train:
        return f"; the model was trained for {header.context_train} only, answers beyond that get worse"
    if name == "batch" and not header.causal_attention and choice.taken.batch < choice.taken.context:
        return f"; inputs of more than {choice.taken.batch} tokens will be refused"
    return ""
