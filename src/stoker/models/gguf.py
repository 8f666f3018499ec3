"""What a GGUF file says about its model: the figures that planning, listing and serving need.

Only the head of the file is read (`gguf_reader`), never its tensors; the registry vouches for the rest by its digest.
Keys follow the GGUF specification (ggml's `docs/gguf.md`) and llama.cpp (`llama-arch.cpp`) where it goes further.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from stoker.errors import ModelFileError
from stoker.models.gguf_reader import Contents, LongArray, Reader
from stoker.models.gguf_types import FILE_TYPES

MAX_LAYERS: Final = 4096
MAX_FIGURE: Final = 1 << 31
"""Bound of every size that a file states; llama.cpp keeps them in 32 bits."""
DEFAULT_CONTEXT: Final = 2048

WINDOW_PERIODS: Final = MappingProxyType(
    {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2}
)
"""Of so many layers the last attends to everything, the others to a window: fixed in llama.cpp's `llama-model.cpp` for
these architectures, said by no key of the file."""
_SPLIT_NAME: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model's figures. Sizes of the architecture are in elements, lengths in tokens, octets in bytes.

    `kv_heads` and `windowed` have one entry a layer: a layer without attention (recurrent ones of hybrid models) has 0
    heads, and a windowed layer attends to the last `sliding_window` tokens only. `recurrent_bytes` is the state that
    all recurrent layers keep for one sequence. `bytes_by_type` sums tensor data by storage type. `file_type` is the
    quantisation's usual name (`Q4_K_M`), or the most used storage type where the file names none that is known.
    """

    version: int
    architecture: str
    name: str | None
    file_type: str
    quantization_version: int | None
    parameters: int
    layers: int
    context_train: int
    embedding_length: int
    feed_forward: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    vocabulary: int
    sliding_window: int
    windowed: tuple[bool, ...]
    experts: int
    experts_used: int
    expert_parameters: int
    recurrent_bytes: int
    chat_template: str | None
    pooling_type: int | None
    causal_attention: bool
    file_bytes: int
    tensor_bytes: int
    tensors: int
    bytes_by_type: tuple[tuple[str, int], ...]

    @property
    def active_parameters(self) -> int:
        """Parameters that compute one token: of the experts only those that are used."""
        if not self.experts:
            return self.parameters
        idle = self.expert_parameters * (self.experts - min(self.experts_used, self.experts)) // self.experts
        return self.parameters - idle


def read_header(path: Path) -> GgufHeader:
    """Read what a model file says about itself, and check that its tensors are all there.

    Args:
        path: a GGUF file, version 2 or 3, little-endian, in one part.

    Returns: the model's figures.

    Raises:
        ModelFileError: the file is missing, not a file, truncated, damaged, not GGUF, one part of several, or holds no
            language model; the message begins with the path and says what to do.
    """
    try:
        size = _regular_size(path)
        with path.open("rb") as file:
            return _read(file, size, path.name)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}") from None
    except FileNotFoundError:
        raise ModelFileError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)  # ValueError: a NUL in the path
        raise ModelFileError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None


def _regular_size(path: Path) -> int:
    """The file's length in bytes. A pipe would block `open` for ever: only regular files pass."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError("is not a regular file; name a .gguf file")
    return status.st_size


def _read(file: BinaryIO, size: int, filename: str) -> GgufHeader:
    contents = Reader(file, size).contents()
    _refuse_part(contents, filename)
    _refuse_truncated(contents, size)
    _refuse_overlap(contents)
    return _Interpreter(contents, size).header()


def _refuse_part(contents: Contents, filename: str) -> None:
    """Files in several parts cannot be stored under one digest; refuse any of them."""
    count = contents.metadata.get("split.count", 0)
    number = contents.metadata.get("split.no", 0)
    if isinstance(count, int) and isinstance(number, int) and count > 1:
        named = _SPLIT_NAME.search(filename)
        which = f"part {int(named[1])} of {int(named[2])}" if named else f"part {number + 1} of {count}"
        raise ModelFileError(
            f"is {which} of a model in several files; join them with `llama-gguf-split --merge FIRST_PART OUTPUT` "
            "and use the output"
        )


def _refuse_truncated(contents: Contents, size: int) -> None:
    """Every tensor's data must lie inside the file."""
    end = max((tensor.offset + tensor.octets for tensor in contents.tensors), default=0) + contents.data_start
    if end > size:
        raise ModelFileError(
            f"is truncated or damaged: its tensors need {end} bytes, {size} found ({end - size} missing); "
            "download it again"
        )


def _refuse_overlap(contents: Contents) -> None:
    """Tensors lie one behind the other; llama.cpp refuses a file in which they do not."""
    ordered = sorted(contents.tensors, key=lambda tensor: tensor.offset)
    for one, following in pairwise(ordered):
        if one.offset + one.octets > following.offset:
            names = f"{_printable(one.name)} and {_printable(following.name)}"
            raise ModelFileError(f"is damaged: its tensors {names} overlap; download it again")


def _printable(text: str | None) -> str | None:
    """A stranger's text, safe on a terminal: no control characters, 200 characters at most."""
    return "".join(letter for letter in text[:200] if letter.isprintable()) or None if text else None


class _Interpreter:
    """Turns keys and tensors into figures, refusing those that make no sense."""

    def __init__(self, contents: Contents, size: int) -> None:
        self._contents = contents
        self._metadata = contents.metadata
        self._size = size
        self._architecture = self._named_architecture()

    def header(self) -> GgufHeader:
        """Everything together; raises ModelFileError for what is missing or senseless."""
        tensors = self._contents.tensors
        if not tensors:
            raise ModelFileError("holds no tensors: a vocabulary only, not a model; get the whole model")
        layers = self._figure("block_count", lowest=1, highest=MAX_LAYERS)
        embedding = self._figure("embedding_length", lowest=1)
        heads = max(self._per_layer("attention.head_count", layers, 0))
        head_length = embedding // heads if heads else 0
        window = self._figure("attention.sliding_window", default=0)
        octets = Counter[str]()
        for tensor in tensors:
            octets[tensor.storage.name] += tensor.octets
        return GgufHeader(
            version=self._contents.version,
            architecture=self._architecture,
            name=_printable(self._text("general.name")),
            file_type=self._file_type(octets),
            quantization_version=self._optional("general.quantization_version"),
            parameters=sum(tensor.elements for tensor in tensors),
            layers=layers,
            context_train=self._figure("context_length", default=DEFAULT_CONTEXT, lowest=1),
            embedding_length=embedding,
            feed_forward=max(self._per_layer("feed_forward_length", layers, 0)),
            heads=heads,
            kv_heads=self._kv_heads(layers, heads),
            key_length=self._widest("attention.key_length", head_length),
            value_length=self._widest("attention.value_length", head_length),
            vocabulary=self._vocabulary(),
            sliding_window=window,
            windowed=self._windowed(layers) if window else (False,) * layers,
            experts=self._figure("expert_count", default=0),
            experts_used=self._figure("expert_used_count", default=0),
            expert_parameters=sum(tensor.elements for tensor in tensors if "_exps" in tensor.name),
            recurrent_bytes=self._recurrent_bytes(layers, heads),
            chat_template=self._text("tokenizer.chat_template"),
            pooling_type=self._optional(f"{self._architecture}.pooling_type"),
            causal_attention=self._metadata.get(f"{self._architecture}.attention.causal", True) is not False,
            file_bytes=self._size,
            tensor_bytes=sum(octets.values()),
            tensors=len(tensors),
            bytes_by_type=tuple(sorted(octets.items())),
        )

    def _named_architecture(self) -> str:
        name = self._metadata.get("general.architecture")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ModelFileError("names no architecture (general.architecture); it is damaged, or holds no model")
        kind = self._metadata.get("general.type", "model")
        if kind != "model" or name == "clip":
            what = "an image encoder (mmproj)" if name == "clip" or kind == "mmproj" else f"of type {str(kind)[:40]!r}"
            raise ModelFileError(f"is {what}, not a language model; name the model's own file")
        return name

    def _text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        return value if isinstance(value, str) and value else None

    def _optional(self, key: str) -> int | None:
        return self._checked(key, self._metadata[key], 0, MAX_FIGURE) if key in self._metadata else None

    def _checked(self, key: str, value: object, lowest: int, highest: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            shown = f"{value!r:.40}" if not isinstance(value, LongArray) else "a long array"
            raise ModelFileError(f"says {key} = {shown}, expected {lowest} to {highest}; the file is damaged")
        return value

    def _figure(self, suffix: str, *, default: int | None = None, lowest: int = 0, highest: int = MAX_FIGURE) -> int:
        key = f"{self._architecture}.{suffix}"
        if key not in self._metadata:
            if default is None:
                raise ModelFileError(f"lacks {key}; it is damaged, or holds no language model")
            return default
        return self._checked(key, self._metadata[key], lowest, highest)

    def _per_layer(self, suffix: str, layers: int, default: int) -> tuple[int, ...]:
        """A figure that is one for all layers, or an array with one for each."""
        key = f"{self._architecture}.{suffix}"
        value = self._metadata.get(key, default)
        if not isinstance(value, tuple):
            return (self._checked(key, value, 0, MAX_FIGURE),) * layers
        if len(value) < layers:
            raise ModelFileError(f"gives {key} for {len(value)} of {layers} layers; the file is damaged")
        return tuple(self._checked(key, item, 0, MAX_FIGURE) for item in value[:layers])

    def _kv_heads(self, layers: int, heads: int) -> tuple[int, ...]:
        counts = self._per_layer("attention.head_count_kv", layers, heads)
        interval = self._figure("full_attention_interval", default=1)
        if interval in {0, 1}:
            return counts
        # Hybrid models (Qwen3-Next and its kin): every `interval`-th layer attends, the others are recurrent.
        return tuple(count if (index + 1) % interval == 0 else 0 for index, count in enumerate(counts))

    def _widest(self, suffix: str, default: int) -> int:
        """A head's width; windowed layers may have their own (`_swa`), of which the wider counts."""
        return max(self._figure(suffix, default=default), self._figure(f"{suffix}_swa", default=0))

    def _windowed(self, layers: int) -> tuple[bool, ...]:
        """Which layers attend to a window only. A layer of which nothing is known counts as attending to everything."""
        key = f"{self._architecture}.attention.sliding_window_pattern"
        pattern = self._metadata.get(key)
        if isinstance(pattern, tuple) and len(pattern) >= layers:
            return tuple(bool(item) for item in pattern[:layers])
        period = WINDOW_PERIODS.get(self._architecture, 1)
        if pattern is not None and not isinstance(pattern, tuple):
            period = self._checked(key, pattern, 0, MAX_LAYERS) or 1
        return tuple(index % period < period - 1 for index in range(layers))

    def _recurrent_bytes(self, layers: int, heads: int) -> int:
        """State of one sequence in all recurrent layers, in 32-bit floats (llama.cpp's `llama-hparams.cpp`)."""
        kernel = self._figure("ssm.conv_kernel", default=0)
        inner = self._figure("ssm.inner_size", default=0)
        state = self._figure("ssm.state_size", default=0)
        groups = self._figure("ssm.group_count", default=0)
        short = self._figure("shortconv.l_cache", default=0)
        if not kernel and not short:
            return 0
        attending = sum(1 for count in self._kv_heads(layers, heads) if count)
        # Falcon-H1 and its kin run both in each layer: then no layer is without heads, and all count.
        recurrent = layers - attending or layers
        width = max(kernel - 1, 0) * (inner + 2 * groups * state) + inner * state
        width += max(short - 1, 0) * self._figure("embedding_length")
        return 4 * width * recurrent

    def _vocabulary(self) -> int:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, LongArray):
            return tokens.length
        embedding = next((tensor for tensor in self._contents.tensors if tensor.name == "token_embd.weight"), None)
        rows = embedding.dimensions[1] if embedding and len(embedding.dimensions) > 1 else 0
        return self._figure("vocab_size", default=rows)

    def _file_type(self, octets: Counter[str]) -> str:
        value = self._metadata.get("general.file_type")
        named = FILE_TYPES.get(value & 1023) if isinstance(value, int) and value >= 0 else None  # bit 10: guessed
        if named:
            return named
        return max(octets, key=octets.__getitem__)
