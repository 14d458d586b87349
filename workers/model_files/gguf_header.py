"""Reads the header of a GGUF file without loading the model.

The file may be hostile or truncated. So every length is checked against the file's size and a limit
before it is used, and no memory is allocated by a length alone. The file is read and not mapped,
because a process that reads a mapping of a truncated file is killed.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import ConfigurationError
from shared.settings import KvType
from workers.model_files.magic import GGUF_MAGIC

MAX_HEADER = 256 << 20
"""The most bytes of a header. The largest known vocabularies need 16 MiB."""
MAX_ENTRIES = 1 << 16
"""The most metadata keys, and the most tensors."""
MAX_ELEMENTS = 1 << 21
"""The most strings and arrays inside arrays, which must be visited one by one. Gemma 3 has 777,000:
its tokens and merges."""
MAX_TEXT = 16 << 20
"""The most bytes of a string, and of all keys and string values together, which are kept."""
MAX_NAME = 64 << 10
"""The most bytes of a key or of a tensor's name."""
MAX_DIMENSIONS = 8
"""The most dimensions of a tensor."""
MAX_DEPTH = 2
"""The most levels of arrays inside arrays."""
MAX_PARAMS = (1 << 63) - 1
"""The most elements of all tensors."""

KV_ELEMENT_BYTES: dict[KvType, float] = {"f16": 2, "f32": 4, "q8_0": 34 / 32}
"""Bytes of one number in the KV cache. A q8_0 block of 32 numbers has 34 bytes."""

TYPE_SIZES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""By ggml's number of a tensor's type: the elements of a block, and its bytes."""
ALIGNMENT = 32
"""Tensors begin at a multiple of this number of bytes, unless `general.alignment` says another."""
_BUFFER = 256 << 10

# Types of values, and the struct layouts of those with a fixed size.
_STRING = 8
_ARRAY = 9
_LAYOUTS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of one file, which may be a part of a split model."""

    size: int
    """Bytes of the whole file, tensors included."""
    version: int
    """Version of the format, 1 to 3."""
    metadata: Mapping[str, str | int | float | bool]
    """The values that are strings, numbers or booleans. Invalid UTF-8 is replaced by U+FFFD."""
    array_lengths: Mapping[str, int]
    """The number of elements of each array. The elements are not kept. A key is either here or in
    `metadata`."""
    tensors: int
    """The number of tensors."""
    tensor_types: frozenset[int]
    """ggml's numbers of the tensors' types, which may be unknown ones."""
    n_params: int
    """The number of elements of all tensors together, 0 to 2**63-1."""
    least_size: int = 0
    """Bytes up to which the tensors reach. A smaller file was cut. Tensors of unknown types count
    as empty."""

    @property
    def architecture(self) -> str:
        """The model's family, such as "llama"; "" if the header does not say."""
        return self._text("general.architecture")

    @property
    def tokenizer(self) -> str:
        """The kind of its tokenizer, such as "llama" or "gpt2"; "" if the header does not say."""
        return self._text("tokenizer.ggml.model")

    def architecture_value(self, name: str) -> int | None:
        """The architecture's integer `name`, such as "block_count"; None if it is missing."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        # In Python a bool is an int, too.
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def kv_bytes_per_token(self, element_bytes: float) -> int | None:
        """Bytes of one token's keys and values over all layers, rounded up.

        `element_bytes`: bytes of one number, above 0 (see KV_ELEMENT_BYTES).
        None if the header does not say, for example because layers have different heads or none.
        This is an upper bound if layers have a sliding window, or if the engine stores something
        smaller instead of keys and values.
        """
        layers = self._positive("block_count")
        heads = self._kv_heads()
        key, value = self._head_width("key_length"), self._head_width("value_length")
        if layers is None or heads is None or key is None or value is None:
            return None
        return math.ceil(layers * heads * (key + value) * element_bytes)

    def most_kv_bytes_per_token(self, element_bytes: float) -> int:
        """`kv_bytes_per_token`, or an estimate if the header does not say it.

        The estimate assumes that each layer is as wide as the model, which few models exceed.
        0 if the header does not contain the width.
        """
        known = self.kv_bytes_per_token(element_bytes)
        layers, width = self._positive("block_count"), self._positive("embedding_length")
        if known is not None or layers is None or width is None:
            return known or 0
        return math.ceil(2 * layers * width * element_bytes)

    def _kv_heads(self) -> int | None:
        # By default there are as many KV heads as heads. An array means that layers differ.
        shared = "attention.head_count_kv"
        key = f"{self.architecture}.{shared}"
        is_given = key in self.metadata or key in self.array_lengths
        return self._positive(shared if is_given else "attention.head_count")

    def _head_width(self, name: str) -> int | None:
        """The number of elements of a head's key or value."""
        width = self._positive(f"attention.{name}")
        if width is not None:
            return width
        embedding, heads = (
            self._positive("embedding_length"),
            self._positive("attention.head_count"),
        )
        return None if embedding is None or heads is None else embedding // heads

    def _positive(self, name: str) -> int | None:
        value = self.architecture_value(name)
        return value if value is not None and value > 0 else None

    def _text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a little-endian GGUF file of version 1, 2 or 3.

    Raises ConfigurationError, which names the file, if it cannot be read, is truncated, or contains
    what no model can have. Only the header is checked, and that all tensors begin within the file;
    `least_size` tells whether the last one ends within it.
    """
    try:
        # Opening a pipe would block until somebody writes to it.
        if not path.is_file():
            raise ConfigurationError(f"{path} is not a file")
        with path.open("rb", buffering=_BUFFER) as file:
            return _read_header(_Reader(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except _MalformedError as error:
        raise ConfigurationError(f"{path} is not a usable GGUF file: {error}") from None


class _MalformedError(Exception):
    """What is wrong with the file, as a clause."""


class _Reader:
    """Reads forwards through the header, but never beyond the file's end or a limit."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0
        """Bytes that were read or skipped."""
        self.count_layout = struct.Struct("<Q")
        """The layout of lengths and counts, which depends on the version."""
        self.elements_left = MAX_ELEMENTS
        self.text_left = MAX_TEXT

    def skip(self, length: int) -> None:
        self._advance(length)
        self.file.seek(self.position)

    def take(self, length: int) -> bytes:
        """The next `length` bytes. The caller limits `length`."""
        self._advance(length)
        data = self.file.read(length)
        if len(data) < length:
            raise _MalformedError("it was truncated while it was read")
        return data

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, limit: int, what: str) -> int:
        """A length or a count of at most `limit`."""
        layout = self.count_layout
        number: int = layout.unpack(self.take(layout.size))[0]
        if number > limit:
            raise _MalformedError(f"{number} {what} exceed the limit of {limit}")
        return number

    def text(self, limit: int, errors: str = "replace") -> str:
        """A string to keep, of at most `limit` bytes. Strict `errors` raise UnicodeDecodeError."""
        length = self.count(limit, "bytes of text")
        self.text_left -= length
        if self.text_left < 0:
            raise _MalformedError(f"its texts exceed the limit of {MAX_TEXT} bytes")
        return self.take(length).decode("utf-8", errors)

    def skip_string(self, limit: int) -> None:
        self.skip(self.count(limit, "bytes of text"))

    def visit(self, elements: int) -> None:
        """Count elements that will be visited one by one."""
        self.elements_left -= elements
        if self.elements_left < 0:
            raise _MalformedError(f"its arrays exceed the limit of {MAX_ELEMENTS} texts")

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            raise _MalformedError(f"its header is truncated at {self.size} bytes")
        if self.position > MAX_HEADER:
            raise _MalformedError(f"its header exceeds the limit of {MAX_HEADER} bytes")


def _read_header(reader: _Reader) -> GgufHeader:
    version = _read_version(reader)
    tensors = reader.count(MAX_ENTRIES, "tensors")
    keys = reader.count(MAX_ENTRIES, "metadata keys")
    metadata, array_lengths = _read_metadata(reader, keys)
    tensor_types, n_params, data_size = _read_tensors(reader, tensors)
    given = metadata.get("general.alignment")
    alignment = given if type(given) is int and given > 0 else ALIGNMENT
    data_start = -(-reader.position // alignment) * alignment
    return GgufHeader(
        size=reader.size,
        version=version,
        metadata=metadata,
        array_lengths=array_lengths,
        tensors=tensors,
        tensor_types=tensor_types,
        n_params=n_params,
        least_size=data_start + data_size if tensors else reader.position,
    )


def _read_version(reader: _Reader) -> int:
    if reader.size < len(GGUF_MAGIC) or reader.take(len(GGUF_MAGIC)) != GGUF_MAGIC:
        raise _MalformedError("it does not begin with GGUF")
    version: int = reader.unpack("<I")
    if version & 0xFFFF == 0:
        raise _MalformedError("it is big-endian")
    if version > 3:
        raise _MalformedError(f"its version is {version}, but only 1, 2 and 3 are supported")
    if version == 1:
        reader.count_layout = struct.Struct("<I")
    return version


def _read_metadata(
    reader: _Reader, keys: int
) -> tuple[dict[str, str | int | float | bool], dict[str, int]]:
    values: dict[str, str | int | float | bool] = {}
    lengths: dict[str, int] = {}
    for _ in range(keys):
        key = _read_key(reader)
        if key in values or key in lengths:
            raise _MalformedError(f"it has the key {key[:80]!r} twice")
        kind: int = reader.unpack("<I")
        if kind == _ARRAY:
            lengths[key] = _skip_array(reader, depth=1)
        else:
            values[key] = _read_value(reader, kind)
    return values, lengths


def _read_key(reader: _Reader) -> str:
    try:
        return reader.text(MAX_NAME, errors="strict")
    except UnicodeDecodeError:
        raise _MalformedError("one of its keys is not UTF-8") from None


def _read_value(reader: _Reader, kind: int) -> str | int | float | bool:
    if kind == _STRING:
        return reader.text(MAX_TEXT)
    value: int | float | bool = reader.unpack(_layout_of(kind))
    return value


def _layout_of(kind: int) -> str:
    if kind not in _LAYOUTS:
        raise _MalformedError(f"it has a value of the unknown type {kind}")
    return _LAYOUTS[kind]


def _skip_array(reader: _Reader, depth: int) -> int:
    """Skip an array. Returns the number of its elements."""
    if depth > MAX_DEPTH:
        raise _MalformedError(f"its arrays are nested more than {MAX_DEPTH} deep")
    kind: int = reader.unpack("<I")
    length = reader.count(MAX_HEADER, "elements of an array")
    if kind not in (_STRING, _ARRAY):
        reader.skip(length * struct.calcsize(_layout_of(kind)))
        return length
    reader.visit(length)
    for _ in range(length):
        if kind == _STRING:
            reader.skip_string(MAX_TEXT)
        else:
            _skip_array(reader, depth + 1)
    return length


def _read_tensors(reader: _Reader, tensors: int) -> tuple[frozenset[int], int, int]:
    """The types of the tensors, the number of all elements, and the bytes of all data."""
    types: set[int] = set()
    n_params = 0
    furthest = 0
    data_size = 0
    for _ in range(tensors):
        elements, kind, offset = _read_tensor(reader)
        types.add(kind)
        n_params += elements
        furthest = max(furthest, offset)
        block, size = TYPE_SIZES.get(kind, (1, 0))
        data_size = max(data_size, offset + -(-elements // block) * size)
    if n_params > MAX_PARAMS:
        raise _MalformedError(f"its tensors exceed the limit of {MAX_PARAMS} elements")
    # Offsets count from the header's end, so this detects most truncated files.
    if reader.position + furthest > reader.size:
        raise _MalformedError(f"it is truncated: a tensor begins beyond its {reader.size} bytes")
    return frozenset(types), n_params, data_size


def _read_tensor(reader: _Reader) -> tuple[int, int, int]:
    """A tensor's number of elements, its ggml type, and its offset in bytes."""
    reader.skip_string(MAX_NAME)
    dimensions: int = reader.unpack("<I")
    if dimensions > MAX_DIMENSIONS:
        raise _MalformedError(f"it has a tensor of {dimensions} dimensions")
    shape = (reader.count(MAX_PARAMS, "elements of a tensor") for _ in range(dimensions))
    return math.prod(shape), reader.unpack("<I"), reader.unpack("<Q")
