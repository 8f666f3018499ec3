"""How much memory an engine with a given plan will take: the sums behind `plan`.

The parts follow what llama.cpp allocates on a CPU; the constants were set by measuring it (docs/planning.md has the
table, benchmarks/plan_memory.py makes it). An estimate is meant to be at or a little above what is seen, never below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from stoker.config import CacheType
from stoker.models.gguf import GgufHeader

MIB: Final = 1 << 20

KV_BITS: Final = MappingProxyType({"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5})
"""Bits an element by cache type: blocks of 32 elements with a 16-bit scale (ggml's `block_q8_0`, `block_q4_0`)."""

QUANTISED_BITS: Final = MappingProxyType({"Q8_0": 8.5, "Q6_K": 6.6, "Q4_K_M": 4.9, "Q3_K_M": 4.0})
"""Bits a parameter of whole files in common quantisations: llama.cpp's quantisation README, rounded up."""

REPACKED: Final = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Storage types that llama.cpp copies into another layout for the CPU (`ggml-cpu/repack.cpp`). On ARM there are more;
a copy takes the place of its mapped original, so that the sum is the same for one engine."""

CONTEXT_STEP: Final = 256
"""llama.cpp rounds each sequence's cells up to a multiple of this."""

BASE: Final = 64 * MIB
"""The child without a model: interpreter, libraries, HTTP threads."""
TOKENIZER_BYTES: Final = 160
"""What an entry of the vocabulary takes in the tokenizer's tables."""
SAMPLER_BYTES: Final = 12
"""What each slot's sampler keeps for an entry of the vocabulary (`llama_token_data` of llama.cpp's `llama.h`)."""
GPU_BASE: Final = 512 * MIB
"""What a GPU's runtime and its scratch buffers take beside weights and cache."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides an engine's memory. `context` is tokens a slot, `gpu_layers` counts the output layer as one more."""

    slots: int
    context: int
    batch: int
    cache_type: CacheType
    prompt_cache_mib: int
    checkpoints: int
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of host memory of one engine process, by purpose, and of GPU memory beside them.

    `weights` is the part of the mapped file that stays in use, which several engines of one model share; the rest is
    each engine's own. Of weights that were copied into another layout (`repack`) the mapped original is not counted:
    nobody touches it again, so that the kernel drops it when memory is short.
    """

    weights: int
    repack: int
    kv: int
    compute: int
    base: int
    prompt_cache: int
    gpu: int = 0

    @property
    def own(self) -> int:
        """Bytes that every engine process takes for itself."""
        return self.repack + self.kv + self.compute + self.base + self.prompt_cache

    @property
    def total(self) -> int:
        """Bytes of host memory for one engine."""
        return self.weights + self.own

    def of(self, replicas: int) -> int:
        """Bytes of host memory for so many engines of one model."""
        return self.weights + replicas * self.own


def estimate_memory(header: GgufHeader, shape: Shape) -> MemoryNeed:
    """What an engine of this model and shape will take at its peak, in bytes."""
    share = min(shape.gpu_layers, header.layers + 1) / (header.layers + 1)
    cache = kv_bytes(header, shape)
    weights = round(header.file_bytes * (1 - share))
    if share:
        # The table of token embeddings is looked up on the CPU wherever the layers are.
        weights += round(header.vocabulary * header.embedding_length * header.tensor_bytes / header.parameters)
    moved = round(header.tensor_bytes * share) + round(cache * share)
    repack = round(repack_bytes(header) * (1 - share))
    return MemoryNeed(
        weights=max(min(weights, header.file_bytes) - repack, 0),
        repack=repack,
        kv=round(cache * (1 - share)),
        compute=compute_bytes(header, shape),
        base=BASE + TOKENIZER_BYTES * header.vocabulary,
        prompt_cache=shape.prompt_cache_mib * MIB,
        gpu=moved + GPU_BASE + compute_bytes(header, shape) if share else 0,
    )


def kv_bytes(header: GgufHeader, shape: Shape) -> int:
    """Keys and values of all slots, the state of recurrent layers, and checkpoints of what cannot be recomputed.

    A layer keeps `kv_heads * (key_length * bits_k + value_length * bits_v) / 8` bytes a token. A windowed layer keeps
    its window and one batch instead of the context (llama.cpp's `llama-kv-cache-iswa.cpp`). Checkpoints hold the
    windowed and the recurrent part, and belong to a slot.
    """
    cells = padded(shape.context)
    window = min(cells, padded(header.sliding_window + shape.batch))
    heads_full = sum(count for count, limited in zip(header.kv_heads, header.windowed, strict=True) if not limited)
    heads_window = sum(header.kv_heads) - heads_full
    a_head = (header.key_length + header.value_length) * KV_BITS[shape.cache_type] / 8
    kept_again = 1 + shape.checkpoints
    a_slot = a_head * (heads_full * cells + heads_window * window * kept_again)
    return round(shape.slots * (a_slot + header.recurrent_bytes * kept_again))


def token_bytes(header: GgufHeader, cache_type: CacheType) -> float:
    """Bytes that one more token of context takes in the layers that attend to everything."""
    heads = sum(count for count, limited in zip(header.kv_heads, header.windowed, strict=True) if not limited)
    return heads * (header.key_length + header.value_length) * KV_BITS[cache_type] / 8


def repack_bytes(header: GgufHeader) -> int:
    """Weights that the engine copies into the layout that the CPU's kernels want."""
    return sum(octets for name, octets in header.bytes_by_type if name in REPACKED)


def compute_bytes(header: GgufHeader, shape: Shape) -> int:
    """Scratch memory: a batch's activations and attention mask, scores over the vocabulary, and the samplers' copies.

    An embedding makes every token of its batch an output, so that the scores of a whole batch are there, twice: where
    they are computed and where the caller would read them (measured: 8 bytes a batch token and vocabulary entry).
    """
    batch = max(shape.batch, shape.slots)
    activations = 4 * batch * (6 * header.embedding_length + 3 * header.feed_forward)
    mask = 6 * batch * padded(shape.context)
    scores = 8 * batch * header.vocabulary
    candidates = SAMPLER_BYTES * shape.slots * header.vocabulary
    return activations + mask + scores + candidates


def padded(tokens: int) -> int:
    """Cells that llama.cpp reserves for so many tokens."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def quantised(header: GgufHeader, name: str) -> GgufHeader:
    """The same model as it would be in another quantisation, by its usual bits a parameter."""
    octets = round(header.parameters * QUANTISED_BITS[name] / 8)
    storage = name.removesuffix("_M")
    return replace(
        header,
        file_type=name,
        file_bytes=octets + header.file_bytes - header.tensor_bytes,
        tensor_bytes=octets,
        bytes_by_type=((storage, octets),),
    )


def quantisable(header: GgufHeader) -> bool:
    """Whether the KV cache can be stored in blocks of 32: heads must be whole blocks wide."""
    return bool(sum(header.kv_heads)) and header.key_length % 32 == 0 and header.value_length % 32 == 0
