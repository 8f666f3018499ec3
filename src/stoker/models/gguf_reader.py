"""The bytes of a GGUF file's head, read with bounds on everything.

A model file comes from strangers: each count, length and offset in it is checked against what the file can hold and
against a limit before it is believed, so that a hostile file costs neither memory nor time. Long arrays (the
vocabulary) are counted and skipped. What the values mean is `gguf`'s business.

Format: the GGUF specification, versions 2 and 3, in ggml's `docs/gguf.md`. Read by hand, because the `gguf` package
needs numpy and trusts what it reads.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, Final

from stoker.errors import ModelFileError
from stoker.models.gguf_types import TENSOR_TYPES, Storage

MAX_METADATA: Final = 16_384
"""Metadata entries; real files have less than a hundred."""
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535
"""The specification's limit on a key."""
MAX_TENSOR_NAME_BYTES: Final = 1024
MAX_KEPT_STRING: Final = 1024 * 1024
"""Longest string that is kept, in bytes; the chat template is the only long one that is wanted."""
MAX_KEPT_ITEMS: Final = 4096
"""Longest array that is kept; longer ones are only counted."""
MAX_KEPT_TOTAL: Final = 8 * 1024 * 1024
"""All that is kept together (names, texts, short arrays), in bytes, estimated."""
MAX_ITEMS: Final = 16_000_000
"""Items of all arrays together; the largest vocabularies, with merges, have about a million."""
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = 1 << 48
MAX_ALIGNMENT: Final = 1 << 20

_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32: Final = _SCALARS[4]
_U64: Final = _SCALARS[10]
_CHUNK: Final = 1024 * 1024

_UNKNOWN_TYPE: Final = "holds a value of unknown type {}; the file is damaged, or newer than this version"


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array of which only the length was kept."""

    length: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | LongArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file: `offset` is in bytes from the start of the tensor data."""

    name: str
    dimensions: tuple[int, ...]
    storage: Storage
    offset: int

    @property
    def elements(self) -> int:
        return prod(self.dimensions)

    @property
    def octets(self) -> int:
        """Bytes of data."""
        return self.elements // self.storage.elements * self.storage.octets


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything at the head of a file; `data_start` is where tensor data begin, in bytes from the file's start."""

    version: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_start: int


class Reader:
    """Walks over a file's head once, from the first byte on.

    Args:
        file: a seekable binary file, at its start.
        size: the file's length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._items_left = MAX_ITEMS
        self._kept_left = MAX_KEPT_TOTAL

    def contents(self) -> Contents:
        """Read it all. Raises ModelFileError (its message without the path) on anything that is not sound."""
        version, tensor_count, metadata_count = self._preamble()
        metadata: dict[str, Value] = {}
        for _ in range(metadata_count):
            key = self._text(MAX_KEY_BYTES, "a metadata key")
            if key in metadata:
                raise ModelFileError(f"holds the metadata key {key[:80]!r} twice; the file is damaged")
            metadata[key] = self._value(self._unpack(_U32))
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        names = {tensor.name for tensor in tensors}
        if len(names) != len(tensors):
            raise ModelFileError("holds two tensors of one name; the file is damaged")
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 1 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)  # a power of two has one bit
        ):
            raise ModelFileError("names an alignment that is not a power of two; the file is damaged")
        for tensor in tensors:
            if tensor.offset % alignment:
                raise ModelFileError(f"places the tensor {tensor.name!r} off its alignment; the file is damaged")
        data_start = -(-self._file.tell() // alignment) * alignment
        return Contents(version, metadata, tensors, data_start)

    def _preamble(self) -> tuple[int, int, int]:
        magic = self._file.read(4)
        if magic != b"GGUF":
            raise ModelFileError(
                f"is not a GGUF file: it begins with {magic!r}"
                if magic
                else "is empty; a GGUF file was expected, download it again"
            )
        version = self._unpack(_U32)
        if version not in {2, 3}:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in {2, 3}:
                raise ModelFileError("is a GGUF file for big-endian machines; get the little-endian one")
            raise ModelFileError(
                f"is GGUF version {version}, and only versions 2 and 3 can be read; convert the model anew"
            )
        tensors, metadata = self._unpack(_U64), self._unpack(_U64)
        if tensors > MAX_TENSORS or metadata > MAX_METADATA:
            raise ModelFileError(
                f"claims {tensors} tensors and {metadata} metadata entries, beyond any model; the file is damaged"
            )
        return version, tensors, metadata

    def _need(self, count: int) -> None:
        """Refuse to go on when fewer than `count` bytes are left in the file."""
        position = self._file.tell()
        if position + count > self._size:
            raise ModelFileError(
                f"ends inside its header: {position + count} bytes expected at least, {self._size} found; "
                "it is truncated or damaged, download it again"
            )

    def _bytes(self, count: int) -> bytes:
        self._need(count)
        data = self._file.read(count)
        if len(data) != count:
            raise ModelFileError("became shorter while it was read; wait until it is written completely")
        return data

    def _unpack(self, form: struct.Struct) -> int:
        value: int = form.unpack(self._bytes(form.size))[0]
        return value

    def _text(self, limit: int, what: str) -> str:
        length = self._unpack(_U64)
        if length > limit:
            raise ModelFileError(f"has {what} of {length} bytes, more than {limit}; the file is damaged")
        self._keep(length)
        return self._bytes(length).decode("utf-8", "replace")

    def _value(self, kind: int) -> Value:
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self._text(MAX_KEPT_STRING, "a text in its metadata")
        form = _SCALARS.get(kind)
        if form is None:
            raise ModelFileError(_UNKNOWN_TYPE.format(kind))
        number: Scalar = form.unpack(self._bytes(form.size))[0]
        return number

    def _array(self) -> Value:
        kind, length = self._unpack(_U32), self._unpack(_U64)
        form = _SCALARS.get(kind)
        if form is None and kind != _STRING:
            # The specification allows arrays of arrays; no model uses them, and llama.cpp refuses them too.
            raise ModelFileError(_UNKNOWN_TYPE.format(f"array of {kind}"))
        if length > self._items_left:
            raise ModelFileError(f"claims an array of {length} items, beyond any model; the file is damaged")
        self._items_left -= length
        if form is None:
            self._skip_strings(length)
            return LongArray(length)
        self._need(length * form.size)
        if length > MAX_KEPT_ITEMS:
            self._file.seek(length * form.size, 1)
            return LongArray(length)
        self._keep(length * 32)
        return tuple(item for (item,) in form.iter_unpack(self._bytes(length * form.size)))

    def _keep(self, octets: int) -> None:
        self._kept_left -= octets
        if self._kept_left < 0:
            raise ModelFileError(f"has more than {MAX_KEPT_TOTAL} bytes of metadata; the file is damaged")

    def _skip_strings(self, count: int) -> None:
        """Pass over `count` strings: in chunks, because a vocabulary has hundreds of thousands of them."""
        unpack, width = _U64.unpack_from, _U64.size
        while count:
            start = self._file.tell()
            self._need(width)
            chunk = self._file.read(_CHUNK)
            position, end = 0, len(chunk) - width
            while count and position <= end:
                position += width + unpack(chunk, position)[0]
                count -= 1
            if start + position > self._size or position == 0:
                raise ModelFileError(
                    f"ends inside its vocabulary: {start + position} bytes expected at least, {self._size} found; "
                    "it is truncated or damaged, download it again"
                )
            self._file.seek(start + position)

    def _tensor(self) -> Tensor:
        name = self._text(MAX_TENSOR_NAME_BYTES, "a tensor's name")
        count = self._unpack(_U32)
        if count > MAX_DIMENSIONS:
            raise ModelFileError(f"gives the tensor {name!r} {count} dimensions; the file is damaged")
        dimensions = tuple(self._unpack(_U64) for _ in range(count))
        number, offset = self._unpack(_U32), self._unpack(_U64)
        storage = TENSOR_TYPES.get(number)
        if storage is None:
            raise ModelFileError(
                f"stores the tensor {name!r} in the unknown type {number}; "
                "the file is damaged, or newer than this version"
            )
        if prod(dimensions) > MAX_ELEMENTS or 0 in dimensions:
            raise ModelFileError(f"gives the tensor {name!r} impossible dimensions; the file is damaged")
        if dimensions and dimensions[0] % storage.elements:
            raise ModelFileError(
                f"gives the tensor {name!r} rows that are no whole blocks of {storage.name}; the file is damaged"
            )
        if not dimensions and storage.elements > 1:
            raise ModelFileError(f"gives the tensor {name!r} no dimensions; the file is damaged")
        return Tensor(name, dimensions, storage, offset)
