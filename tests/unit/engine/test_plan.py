"""The plan: what is decided from which figures, what is made smaller first, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import PlanConfig
from stoker.engine.host import Gpu, Host
from stoker.engine.memory import MIB, Shape, estimate_memory, kv_bytes
from stoker.engine.plan import divide_memory, grant_bytes, make_plan
from stoker.errors import PlanError
from stoker.models.gguf import GgufHeader

GIB = 1 << 30

# SmolLM2-135M's figures.
SMALL = GgufHeader(
    version=3,
    architecture="llama",
    name="Small",
    file_type="Q4_1",
    quantization_version=2,
    parameters=134_515_008,
    layers=30,
    context_train=8192,
    embedding_length=576,
    feed_forward=1536,
    heads=9,
    kv_heads=(3,) * 30,
    key_length=64,
    value_length=64,
    vocabulary=49_152,
    sliding_window=0,
    windowed=(False,) * 30,
    experts=0,
    experts_used=0,
    expert_parameters=0,
    recurrent_bytes=0,
    chat_template="x",
    pooling_type=None,
    causal_attention=True,
    file_bytes=98_362_432,
    tensor_bytes=96_576_768,
    tensors=272,
    bytes_by_type=(("F32", 140_544), ("Q4_1", 66_355_200), ("Q8_0", 30_081_024)),
)
# Llama 3.1 8B's, in F16.
LARGE = replace(
    SMALL,
    name="Large",
    file_type="F16",
    parameters=8_030_261_312,
    layers=32,
    context_train=131_072,
    embedding_length=4096,
    feed_forward=14_336,
    heads=32,
    kv_heads=(8,) * 32,
    windowed=(False,) * 32,
    key_length=128,
    value_length=128,
    vocabulary=128_256,
    file_bytes=16_068_000_000,
    tensor_bytes=16_060_000_000,
    bytes_by_type=(("F16", 16_060_000_000),),
)
ENCODER = replace(SMALL, architecture="bert", causal_attention=False, pooling_type=2, context_train=512)
WINDOWED = replace(SMALL, windowed=(True,) * 25 + (False,) * 5, sliding_window=512)


def plan(
    header: GgufHeader = SMALL, host: Host | None = None, *, replicas: int = 1, gpu: bool = False, **wishes: Any
) -> Any:
    return make_plan(
        header,
        host or Host.plain(cpus=2, memory_bytes=24 * GIB),
        PlanConfig(**wishes),
        replicas=replicas,
        gpu_offload_supported=gpu,
    )


def why(made: Any, setting: str) -> str:
    (reason,) = [reason for reason in made.reasons if reason.setting == setting]
    return reason.why


def test_a_small_model_on_two_cores() -> None:
    made = plan()
    assert (made.threads, made.threads_batch, made.slots, made.context) == (2, 2, 8, 4096)
    assert (made.batch, made.ubatch) == (64, 64)
    assert (made.cache_type, made.flash_attention, made.prompt_cache_mib) == ("f16", "auto", 64)
    assert (made.gpu_layers, made.pooling, made.checkpoints) == (0, "last", 0)
    assert made.stall_timeout_s == 15.0
    assert made.shrunk == ()
    assert made.needed_bytes == made.memory.total <= made.granted_bytes
    assert {"threads", "slots", "context", "batch", "cache_type", "memory"} <= {r.setting for r in made.reasons}
    assert all(reason.why and reason.value for reason in made.reasons)


def test_keys_and_values_by_hand() -> None:
    # 30 layers x 3 heads x (64 + 64) elements x 2 bytes = 23,040 bytes a token.
    shape = Shape(slots=4, context=2048, batch=64, cache_type="f16", prompt_cache_mib=0, checkpoints=0)
    assert kv_bytes(SMALL, shape) == 4 * 2048 * 23_040
    assert kv_bytes(SMALL, replace(shape, cache_type="q8_0")) == 4 * 2048 * 23_040 * 17 // 32
    assert kv_bytes(SMALL, replace(shape, context=2000)) == 4 * 2048 * 23_040  # whole steps of 256 cells
    assert kv_bytes(WINDOWED, shape) == 4 * 768 * (2048 * 5 + 768 * 25)
    assert kv_bytes(WINDOWED, replace(shape, checkpoints=2)) == 4 * 768 * (2048 * 5 + 3 * 768 * 25)


@pytest.mark.parametrize(("quota", "threads"), [(1.5, 1), (0.3, 1), (2.0, 2), (3.99, 3), (None, 4), (64.0, 4)])
def test_the_quota_is_rounded_down(quota: float | None, threads: int) -> None:
    host = replace(Host.plain(cpus=8, memory_bytes=8 * GIB), physical_cores=4, cpu_quota=quota, cpu_source="/c/cpu.max")
    made = plan(host=host)
    assert made.threads == threads
    if quota is not None and quota < 8:
        assert f"{quota:g}" in why(made, "threads")
        assert "/c/cpu.max" in why(made, "threads")


def test_replicas_share_cpus_memory_and_the_mapped_file() -> None:
    host = Host.plain(cpus=8, memory_bytes=24 * GIB)
    made = plan(host=host, replicas=4)
    assert made.threads == 2
    assert made.needed_bytes == made.memory.weights + 4 * made.memory.own


def test_large_models_get_small_steps_and_a_longer_stall() -> None:
    host = Host.plain(cpus=4, memory_bytes=64 * GIB)
    made = plan(LARGE, host)
    assert made.batch == 32
    # 2 x 8.03e9 x 32 operations at 4 x 35e9 a second are 3.7 s.
    assert made.stall_timeout_s == pytest.approx(36.7, abs=0.1)


def test_encoders_read_their_input_at_once() -> None:
    made = plan(ENCODER)
    assert (made.context, made.batch, made.pooling) == (512, 512, "cls")
    assert plan(replace(ENCODER, pooling_type=None)).pooling == "mean"
    assert "refused" in why(plan(ENCODER, batch=64), "batch")


def test_windows_and_recurrent_layers_get_checkpoints() -> None:
    assert plan(WINDOWED).checkpoints == 2
    assert plan(replace(SMALL, recurrent_bytes=1000)).checkpoints == 2


def test_the_order_of_shrinking() -> None:
    """With less and less memory, the settings give way one after the other."""
    seen = []
    for mib in range(2000, 100, -4):
        try:
            made = plan(memory_mib=mib)
        except PlanError:
            break
        key = (made.prompt_cache_mib, made.context, made.slots, made.cache_type)
        if not seen or seen[-1] != key:
            seen.append(key)
    caches, contexts, slots, types = (list(dict.fromkeys(column)) for column in zip(*seen, strict=True))
    assert seen[0] == (64, 4096, 8, "f16")
    assert seen[1][0] == 0
    assert caches == [64, 0]
    assert contexts == sorted(contexts, reverse=True)
    assert slots == sorted(slots, reverse=True)
    assert types == ["f16", "q8_0"]
    first = {
        name: next(i for i, key in enumerate(seen) if test(key))
        for name, test in {
            "context 2048": lambda key: key[1] == 2048,
            "slots 7": lambda key: key[2] == 7,
            "slots 2": lambda key: key[2] == 2,
            "q8_0": lambda key: key[3] == "q8_0",
            "context below 2048": lambda key: key[1] < 2048,
            "slot 1": lambda key: key[2] == 1,
            "context below 1024": lambda key: key[1] < 1024,
        }.items()
    }
    assert list(first) == sorted(first, key=first.__getitem__)
    assert first["slots 7"] == first["context 2048"] + 1


def test_shrinking_is_told() -> None:
    made = plan(memory_mib=300)
    assert [step.setting for step in made.shrunk] == ["prompt_cache_mib", "context", "slots"]
    assert made.shrunk[1].value == "4096 -> 2048"
    assert "300 MiB are granted" in made.shrunk[0].why
    assert "from 8" in why(made, "slots")


def test_values_by_hand_are_not_shrunk() -> None:
    made = plan(memory_mib=500, context=4096, prompt_cache_mib=64)
    assert (made.context, made.prompt_cache_mib) == (4096, 64)
    assert made.slots < 8
    with pytest.raises(PlanError):
        plan(memory_mib=500, context=4096, slots=8, cache_type="f16")
    assert "trained for 8192 only" in why(plan(context=16_384), "context")
    assert "more than the 2 CPUs" in why(plan(threads=5), "threads")


def test_a_refusal_has_the_numbers_and_what_would_fit() -> None:
    with pytest.raises(PlanError) as caught:
        plan(LARGE, Host.plain(cpus=8, memory_bytes=8 * GIB))
    message = caught.value.message
    assert "Large (F16) does not fit" in message
    assert "MiB needed, 7,237 MiB granted" in message
    assert "weights 15,324 MiB" in message
    assert "quantised to Q4_K_M: about 4,6" in message
    assert "quantised to Q3_K_M" in message
    assert "quantised to Q8_0" not in message  # would not fit either
    assert "a smaller context" not in message  # no context helps
    assert "more memory" in message


def test_a_refusal_names_the_largest_context_that_fits() -> None:
    with pytest.raises(PlanError) as caught:
        plan(memory_mib=400, context=8192, slots=8)
    words = caught.value.message
    context = int(words.split("1 slot of ")[1].split(" ")[0])
    assert plan(memory_mib=400, context=context, slots=1, cache_type="q8_0", prompt_cache_mib=0)
    with pytest.raises(PlanError):
        plan(memory_mib=400, context=8192, slots=8, cache_type="q8_0", prompt_cache_mib=0)


def test_a_gpu_takes_everything_that_fits() -> None:
    card = Gpu("Card", 48 * GIB, 47 * GIB)
    made = plan(LARGE, Host.plain(cpus=8, memory_bytes=64 * GIB, gpus=(card,)), gpu=True)
    assert (made.gpu_layers, made.batch, made.slots) == (33, 512, 16)
    assert made.memory.gpu <= card.free_bytes
    assert made.memory.weights < LARGE.file_bytes / 4


def test_a_small_gpu_takes_some_layers() -> None:
    host = Host.plain(cpus=8, memory_bytes=64 * GIB, gpus=(Gpu("Card", 12 * GIB, 11 * GIB),))
    made = plan(LARGE, host, gpu=True)
    assert 1 <= made.gpu_layers <= 32
    assert made.memory.gpu <= 11 * GIB
    # The engine cannot use it, or was told not to.
    assert plan(LARGE, host, gpu=False).gpu_layers == 0
    assert plan(LARGE, host, gpu=True, gpu_layers=0).gpu_layers == 0


def test_a_gpu_is_offered_where_it_would_help() -> None:
    host = Host.plain(cpus=8, memory_bytes=12 * GIB, gpus=(Gpu("Card", 24 * GIB, 24 * GIB),))
    with pytest.raises(PlanError, match="layers on the GPU"):
        plan(LARGE, host, gpu=False)
    with pytest.raises(PlanError, match=r"\d+ of 33 layers on the GPU"):
        plan(LARGE, host, gpu=True, gpu_layers=0)


@pytest.mark.parametrize(
    ("wishes", "gpus", "supported", "words"),
    [
        ({"gpu_layers": -1}, (), False, "CPUs only"),
        ({"gpu_layers": 5}, (), True, "no GPU was found"),
        ({"gpu_layers": -1}, (Gpu("Card", GIB, 20 * MIB),), True, "20 MiB|18 MiB are free"),
    ],
)
def test_impossible_gpu_wishes(wishes: dict[str, int], gpus: tuple[Gpu, ...], supported: bool, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(host=Host.plain(cpus=2, memory_bytes=8 * GIB, gpus=gpus), gpu=supported, **wishes)


def test_odd_heads_keep_an_exact_cache() -> None:
    odd = replace(SMALL, key_length=80, value_length=80)
    assert plan(odd, memory_mib=240).cache_type == "f16"
    with pytest.raises(PlanError, match="whole blocks of 32"):
        plan(odd, cache_type="q8_0")


def test_dividing_between_models() -> None:
    host = Host.plain(cpus=4, memory_bytes=8 * GIB)
    granted = grant_bytes(host) // MIB
    shares = divide_memory(host, [(SMALL, 1, None), (SMALL, 2, None), (LARGE, 1, 1000)])
    assert shares[2] == 1000
    assert sum(shares) <= granted
    assert sum(shares) >= granted - 3
    assert shares[1] > shares[0] > SMALL.file_bytes // MIB
    assert all(share >= 64 for share in divide_memory(host, [(LARGE, 1, None), (LARGE, 1, None)]))
    assert divide_memory(replace(host, memory_available=0), [(SMALL, 1, None)]) == (0,)


headers = st.sampled_from([SMALL, LARGE, ENCODER, WINDOWED])
memories = st.integers(64 * MIB, 64 * GIB)
wish_sets = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(1, 64),
        "threads_batch": st.integers(1, 64),
        "slots": st.integers(1, 64),
        "context": st.integers(128, 65_536),
        "batch": st.integers(8, 2048),
        "cache_type": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "prompt_cache_mib": st.integers(0, 4096),
        "memory_mib": st.integers(64, 65_536),
    },
)
hosts = st.builds(
    lambda cpus, memory, quota: replace(Host.plain(cpus=cpus, memory_bytes=memory), cpu_quota=quota),
    st.integers(1, 128),
    memories,
    st.none() | st.floats(0.1, 256),
)


@given(header=headers, host=hosts, wishes=wish_sets, replicas=st.integers(1, 8))
def test_a_plan_never_exceeds_its_grant_and_keeps_wishes(
    header: GgufHeader, host: Host, wishes: dict[str, Any], replicas: int
) -> None:
    try:
        made = plan(header, host, replicas=replicas, **wishes)
    except PlanError as error:
        assert "What would fit:" in error.message
        return
    assert made.needed_bytes <= made.granted_bytes
    if "memory_mib" not in wishes:
        assert made.granted_bytes < host.memory_bytes
    for name, value in wishes.items():
        if name != "memory_mib":
            assert getattr(made, name) == value
    if "threads" not in wishes:
        assert 1 <= made.threads <= max(int(host.cpus), 1)
    assert made.stall_timeout_s >= 15
    assert all(getattr(made.memory, field.name) >= 0 for field in fields(made.memory))


@given(header=headers, less=memories, more=memories, wishes=wish_sets)
def test_more_memory_never_gives_less(header: GgufHeader, less: int, more: int, wishes: dict[str, Any]) -> None:
    less, more = sorted((less, more))
    wishes.pop("memory_mib", None)
    assert _tokens_at_once(header, more, wishes) >= _tokens_at_once(header, less, wishes)


def _tokens_at_once(header: GgufHeader, memory: int, wishes: dict[str, Any]) -> int:
    """Slots times context; 0 for a refusal."""
    try:
        made = plan(header, Host.plain(cpus=4, memory_bytes=memory), **wishes)
    except PlanError:
        return 0
    return int(made.slots * made.context)


@given(header=headers, slots=st.integers(1, 32), context=st.integers(256, 32_768), batch=st.integers(8, 2048))
def test_estimates_grow_with_what_is_asked(header: GgufHeader, slots: int, context: int, batch: int) -> None:
    shape = Shape(slots, context, batch, "f16", 0, 0)
    need = estimate_memory(header, shape).total
    for larger in (
        replace(shape, slots=slots + 1),
        replace(shape, context=context + 256),
        replace(shape, batch=batch + 64),
        replace(shape, prompt_cache_mib=1),
    ):
        assert estimate_memory(header, larger).total > need
    assert estimate_memory(header, replace(shape, cache_type="q8_0")).total < need
