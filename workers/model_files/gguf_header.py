"""What the header of a GGUF file says, read without loading the model.

The file may be hostile or cut. So every length is checked against the file's size and a cap
before it is followed, and no memory is set aside on the file's word. The file is read and not
mapped: a mapped file that somebody truncates kills the process that looks at it.
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

MAX_HEADER = 256 << 20
"""Bytes of a whole header; the largest vocabularies of today need 16 MiB."""
MAX_ENTRIES = 1 << 16
"""Metadata keys, and tensors."""
MAX_ELEMENTS = 1 << 21
"""Elements that must be visited one by one: strings and arrays in arrays, in all arrays together.
Gemma 3 has 777,000, its tokens and its merges."""
MAX_TEXT = 16 << 20
"""Bytes of a string, and of all keys and string values together, which are kept."""
MAX_NAME = 64 << 10
"""Bytes of a key or of a tensor's name."""
MAX_DIMENSIONS = 8
MAX_DEPTH = 2
"""Arrays in arrays."""
MAX_PARAMS = (1 << 63) - 1

KV_ELEMENT_BYTES: dict[KvType, float] = {"f16": 2, "f32": 4, "q8_0": 34 / 32}
"""Bytes of a number among keys and values; of blocks its share."""

_BUFFER = 256 << 10

# Value types, and the layouts of those that have one size.
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
    """A header. Of a model that is split over several files, this is one file's.

    `size`: of the file, in bytes, tensors included.
    `version`: of the format, 1 to 3.
    `metadata`: values that are a string, a number or a truth value. Bytes of a string that are
    not UTF-8 are U+FFFD.
    `array_lengths`: how many elements the array of a key has; the elements themselves are not
    kept. A key is either here or in `metadata`.
    `tensors`: how many there are.
    `tensor_types`: which ggml types they have, as numbers; they may be unknown ones.
    `n_params`: elements of all tensors together, 0 to 2**63-1.
    """

    size: int
    version: int
    metadata: Mapping[str, str | int | float | bool]
    array_lengths: Mapping[str, int]
    tensors: int
    tensor_types: frozenset[int]
    n_params: int

    @property
    def architecture(self) -> str:
        """The model's family, such as "llama"; "" where the header does not say."""
        return self._text("general.architecture")

    @property
    def tokenizer(self) -> str:
        """The kind of its tokenizer, such as "llama" or "gpt2"; "" where there is none."""
        return self._text("tokenizer.ggml.model")

    def architecture_value(self, name: str) -> int | None:
        """The integer under the architecture's `name`, such as "block_count"; None: no such."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        # To Python a truth value is an integer, too.
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def kv_bytes_per_token(self, element_bytes: float) -> int | None:
        """Bytes that the keys and values of one token take over all layers, rounded up.

        `element_bytes`: bytes of one number, above 0; of blocks its share (34 / 32 for Q8_0).
        None where the header does not say, as when layers differ in their heads, or have none.
        More than is needed where layers look back only so far, or where an engine keeps
        something smaller in their place.
        """
        layers = self._positive("block_count")
        heads = self._kv_heads()
        key, value = self._head_width("key_length"), self._head_width("value_length")
        if layers is None or heads is None or key is None or value is None:
            return None
        return math.ceil(layers * heads * (key + value) * element_bytes)

    def most_kv_bytes_per_token(self, element_bytes: float) -> int:
        """`kv_bytes_per_token`, or where the header does not say it, as if each layer were as
        wide as the model, which few exceed; 0 where it says not even that."""
        said = self.kv_bytes_per_token(element_bytes)
        layers, width = self._positive("block_count"), self._positive("embedding_length")
        if said is not None or layers is None or width is None:
            return said or 0
        return math.ceil(2 * layers * width * element_bytes)

    def _kv_heads(self) -> int | None:
        # Without a number of their own there are as many as heads, unless each layer has its own.
        shared = "attention.head_count_kv"
        key = f"{self.architecture}.{shared}"
        said = key in self.metadata or key in self.array_lengths
        return self._positive(shared if said else "attention.head_count")

    def _head_width(self, name: str) -> int | None:
        """How many numbers a head's key or value has."""
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
    """Read the header of the file at `path`, little-endian GGUF of version 1, 2 or 3.

    Raises ConfigurationError, a sentence that names the file, for anything else: a file that
    cannot be read, is cut, or says what no model can mean. Only the header is looked at, and
    that its tensors begin within the file; a cut within the last one goes unnoticed.
    """
    try:
        # Opening a pipe would wait for somebody to write.
        if not path.is_file():
            raise ConfigurationError(f"there is no file {path}")
        with path.open("rb", buffering=_BUFFER) as file:
            return _read_header(_Reader(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except _MalformedError as error:
        raise ConfigurationError(f"{path} is no usable GGUF file: {error}") from None


class _MalformedError(Exception):
    """What is wrong with the file, as a part of a sentence."""


class _Reader:
    """Goes forwards through the header, never beyond the file's end or a cap.

    `position`: bytes that were read or skipped.
    `count_layout`: how lengths and counts are written, which depends on the version.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0
        self.count_layout = struct.Struct("<Q")
        self.elements_left = MAX_ELEMENTS
        self.text_left = MAX_TEXT

    def skip(self, length: int) -> None:
        self._advance(length)
        self.file.seek(self.position)

    def take(self, length: int) -> bytes:
        """So many bytes; the caller has a cap for `length`."""
        self._advance(length)
        data = self.file.read(length)
        if len(data) < length:
            raise _MalformedError("it became shorter while it was read")
        return data

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, limit: int, what: str) -> int:
        """A length or a count, at most `limit`."""
        layout = self.count_layout
        number: int = layout.unpack(self.take(layout.size))[0]
        if number > limit:
            raise _MalformedError(f"{number} {what} are more than the {limit} of any model")
        return number

    def text(self, limit: int, errors: str = "replace") -> str:
        """A string to be kept, of at most `limit` bytes. Strict `errors`: UnicodeDecodeError."""
        length = self.count(limit, "bytes of text")
        self.text_left -= length
        if self.text_left < 0:
            raise _MalformedError(f"it has more than the {MAX_TEXT} bytes of text of any model")
        return self.take(length).decode("utf-8", errors)

    def skip_string(self, limit: int) -> None:
        self.skip(self.count(limit, "bytes of text"))

    def visit(self, elements: int) -> None:
        """Account for elements that will be gone through one by one."""
        self.elements_left -= elements
        if self.elements_left < 0:
            raise _MalformedError(
                f"its arrays have more than the {MAX_ELEMENTS} texts of any model"
            )

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            raise _MalformedError(f"its header is cut, it goes on beyond the {self.size} bytes")
        if self.position > MAX_HEADER:
            raise _MalformedError(f"its header is larger than the {MAX_HEADER} bytes of any model")


def _read_header(reader: _Reader) -> GgufHeader:
    version = _read_version(reader)
    tensors = reader.count(MAX_ENTRIES, "tensors")
    keys = reader.count(MAX_ENTRIES, "metadata keys")
    metadata, array_lengths = _read_metadata(reader, keys)
    tensor_types, n_params = _read_tensors(reader, tensors)
    return GgufHeader(
        size=reader.size,
        version=version,
        metadata=metadata,
        array_lengths=array_lengths,
        tensors=tensors,
        tensor_types=tensor_types,
        n_params=n_params,
    )


def _read_version(reader: _Reader) -> int:
    if reader.size < 4 or reader.take(4) != b"GGUF":
        raise _MalformedError("it does not begin with GGUF")
    version: int = reader.unpack("<I")
    if version & 0xFFFF == 0:
        raise _MalformedError("it is made for big-endian machines")
    if version > 3:
        raise _MalformedError(f"its version is {version}, and only 1, 2 and 3 are known")
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
        raise _MalformedError(f"it has a value of type {kind}, which is unknown")
    return _LAYOUTS[kind]


def _skip_array(reader: _Reader, depth: int) -> int:
    """Go past an array; how many elements it has."""
    if depth > MAX_DEPTH:
        raise _MalformedError(f"it has arrays in arrays more than {MAX_DEPTH} deep")
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


def _read_tensors(reader: _Reader, tensors: int) -> tuple[frozenset[int], int]:
    """The types that there are, and the number of all elements."""
    types: set[int] = set()
    n_params = 0
    furthest = 0
    for _ in range(tensors):
        elements, kind, offset = _read_tensor(reader)
        types.add(kind)
        n_params += elements
        furthest = max(furthest, offset)
    if n_params > MAX_PARAMS:
        raise _MalformedError("its tensors have more elements than any memory")
    # Offsets count from the header's end, so this finds most files that are cut further on.
    if reader.position + furthest > reader.size:
        raise _MalformedError(f"it is cut, a tensor begins beyond the {reader.size} bytes")
    return frozenset(types), n_params


def _read_tensor(reader: _Reader) -> tuple[int, int, int]:
    """Its number of elements, its ggml type, and its offset in bytes."""
    reader.skip_string(MAX_NAME)
    dimensions: int = reader.unpack("<I")
    if dimensions > MAX_DIMENSIONS:
        raise _MalformedError(f"it has a tensor of {dimensions} dimensions")
    shape = (reader.count(MAX_PARAMS, "elements of a tensor") for _ in range(dimensions))
    return math.prod(shape), reader.unpack("<I"), reader.unpack("<Q")
