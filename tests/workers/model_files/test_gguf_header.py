"""Headers written by the gguf package, and malformed or hostile ones."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from tests.helpers.paths import BUNDLED
from workers.model_files.gguf_header import (
    MAX_ELEMENTS,
    MAX_ENTRIES,
    MAX_HEADER,
    MAX_NAME,
    MAX_TEXT,
    GgufHeader,
    read_gguf_header,
)

U8, U32, STRING, ARRAY = 0, 4, 8, 9
FAR = 1 << 36
"""Size in bytes of a sparse file, in which huge lengths are true."""


def text(data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(entries: Iterable[bytes] = (), tensors: Iterable[bytes] = (), version: int = 3) -> bytes:
    entries, tensors = list(entries), list(tensors)
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    return b"".join([start, *entries, *tensors])


def read(tmp_path: Path, data: bytes, size: int | None = None) -> GgufHeader:
    """Read the header of a file with these bytes, extended by a hole to `size`."""
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    if size is not None:
        os.truncate(path, size)
    return read_gguf_header(path)


def llama(**values: int) -> GgufHeader:
    """A header with these values of the architecture. In names, `__` stands for a dot."""
    metadata: dict[str, Any] = {
        f"llama.{name.replace('__', '.')}": value for name, value in values.items()
    }
    return GgufHeader(
        size=0,
        version=3,
        metadata={"general.architecture": "llama"} | metadata,
        array_lengths={},
        tensors=0,
        tensor_types=frozenset(),
        n_params=0,
    )


def write_every_type(path: Path) -> None:
    """A header with a value of every type, without the data of its tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("llama.block_count", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("語", "naïve 🙂")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "語", ""])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_array("nested", [[1, 2, 3], [4]])
    writer.add_key_value("bytes", b"\x01\x02", gguf.GGUFValueType.ARRAY)
    writer.add_tensor_info("w", (3, 64), np.dtype(np.float16), 384)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_ti_data_to_file,
    ):
        write()
    writer.close()


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "every-type.gguf"
    write_every_type(path)
    return path.read_bytes()


def test_values_of_every_type_are_read_as_they_were_written(
    tmp_path: Path, every_type: bytes
) -> None:
    found = read(tmp_path, every_type)

    assert found.metadata == {
        "general.architecture": "llama",
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "llama.block_count": 2**32 - 1,
        "i32": -(2**31),
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": 0.5,
        "f64": 0.1,
        "yes": True,
        "no": False,
        "語": "naïve 🙂",
        "tokenizer.ggml.model": "gpt2",
    }
    assert type(found.metadata["yes"]) is bool
    assert (found.version, found.size) == (3, len(every_type))
    assert (found.architecture, found.tokenizer) == ("llama", "gpt2")
    assert found.architecture_value("block_count") == 2**32 - 1


def test_the_lengths_of_arrays_are_kept(tmp_path: Path, every_type: bytes) -> None:
    found = read(tmp_path, every_type)

    assert found.array_lengths == {
        "tokenizer.ggml.tokens": 3,
        "numbers": 2,
        "nested": 2,
        "bytes": 2,
    }


def test_tensors_are_counted_with_their_types_and_elements(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", np.zeros((3, 5), np.float32))
    writer.add_tensor("b", np.zeros(7, np.float16))
    q8 = gguf.quants.quantize(np.zeros((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_gguf_header(path)

    assert found.tensors == 3
    assert found.tensor_types == {0, 1, 8}
    assert found.n_params == 3 * 5 + 7 + 2 * 64


def test_the_bundled_model_is_what_its_description_says() -> None:
    found = read_gguf_header(BUNDLED)

    assert (found.architecture, found.tokenizer) == ("llama", "llama")
    assert found.size == BUNDLED.stat().st_size
    assert found.array_lengths["tokenizer.ggml.tokens"] == 4096
    assert found.architecture_value("block_count") == 6
    assert found.tensor_types == {0, 8}
    # The description counts the embeddings once, the file has them for the output again.
    assert found.n_params == 5_868_800 + 4096 * 256


def test_it_agrees_with_the_gguf_package_about_the_bundled_model() -> None:
    found, theirs = read_gguf_header(BUNDLED), gguf.GGUFReader(BUNDLED)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}

    assert found.metadata.keys() | found.array_lengths.keys() == fields.keys()
    assert found.metadata == {key: fields[key].contents() for key in found.metadata}
    assert found.array_lengths == {key: len(fields[key].data) for key in found.array_lengths}
    assert found.tensors == len(theirs.tensors)
    assert found.n_params == sum(int(tensor.n_elements) for tensor in theirs.tensors)


def test_version_2_is_written_like_version_3(tmp_path: Path) -> None:
    assert read(tmp_path, header([entry("k", U8, b"\x05")], version=2)).metadata == {"k": 5}


def test_version_1_has_shorter_lengths(tmp_path: Path) -> None:
    def short(data: bytes) -> bytes:
        return struct.pack("<I", len(data)) + data

    data = b"GGUF" + struct.pack("<III", 1, 1, 3)
    data += short(b"general.architecture") + struct.pack("<I", STRING) + short(b"falcon")
    data += short(b"tokens") + struct.pack("<III", ARRAY, STRING, 2) + short(b"a") + short(b"bc")
    data += short(b"falcon.block_count") + struct.pack("<II", U32, 32)
    data += short(b"w") + struct.pack("<IIIIQ", 2, 3, 4, 1, 0)

    found = read(tmp_path, data)

    assert (found.version, found.architecture) == (1, "falcon")
    assert found.array_lengths == {"tokens": 2}
    assert found.architecture_value("block_count") == 32
    assert (found.tensors, found.tensor_types, found.n_params) == (1, {1}, 12)


def test_values_that_a_header_lacks_are_empty(tmp_path: Path) -> None:
    found = read(tmp_path, header())

    assert (found.architecture, found.tokenizer) == ("", "")
    assert found.architecture_value("block_count") is None
    assert found.kv_bytes_per_token(2) is None
    assert (found.tensors, found.tensor_types, found.n_params) == (0, frozenset(), 0)


def test_an_architecture_that_is_not_a_text_is_ignored(tmp_path: Path) -> None:
    data = header([entry("general.architecture", U8, b"\x01"), entry("1.block_count", U8, b"\x01")])

    assert read(tmp_path, data).architecture == ""


def test_a_bool_is_not_an_integer_of_the_architecture() -> None:
    assert llama(flag=True).architecture_value("flag") is None


def test_a_text_may_be_empty(tmp_path: Path) -> None:
    # The gguf package leaves such out.
    assert read(tmp_path, header([entry("k", STRING, text(""))])).metadata == {"k": ""}


def test_a_value_that_is_not_utf_8_has_replacement_characters(tmp_path: Path) -> None:
    found = read(tmp_path, header([entry("general.author", STRING, text(b"Jos\xe9"))]))

    assert found.metadata["general.author"] == "Jos\ufffd"


def test_keys_and_values_of_a_token_are_counted_over_layers_and_shared_heads() -> None:
    grouped = llama(
        block_count=32,
        embedding_length=4096,
        attention__head_count=32,
        attention__head_count_kv=8,
    )

    assert grouped.kv_bytes_per_token(2) == 32 * 8 * (128 + 128) * 2
    assert grouped.kv_bytes_per_token(34 / 32) == 32 * 8 * 256 * 34 // 32


def test_without_shared_heads_each_head_has_its_own_keys_and_values() -> None:
    found = llama(block_count=2, embedding_length=64, attention__head_count=4)

    assert found.kv_bytes_per_token(2) == 2 * 4 * (16 + 16) * 2


def test_heads_may_have_widths_other_than_their_share_of_the_embedding() -> None:
    found = llama(
        block_count=2,
        embedding_length=64,
        attention__head_count=4,
        attention__key_length=24,
        attention__value_length=8,
    )

    assert found.kv_bytes_per_token(4) == 2 * 4 * (24 + 8) * 4


def test_the_bytes_of_a_token_are_rounded_up() -> None:
    found = llama(
        block_count=1,
        attention__head_count=1,
        attention__key_length=1,
        attention__value_length=2,
    )

    assert found.kv_bytes_per_token(0.5) == 2


def test_the_bytes_of_a_token_are_unknown_if_layers_have_different_heads(
    tmp_path: Path,
) -> None:
    numbers = {"block_count": 2, "embedding_length": 64, "attention.head_count": 4}
    per_layer = array(U32, 2, struct.pack("<2I", 4, 2))
    found = read(
        tmp_path,
        header(
            [
                entry("general.architecture", STRING, text("llama")),
                *(entry(f"llama.{k}", U32, struct.pack("<I", v)) for k, v in numbers.items()),
                entry("llama.attention.head_count_kv", ARRAY, per_layer),
            ]
        ),
    )

    assert found.array_lengths == {"llama.attention.head_count_kv": 2}
    assert found.kv_bytes_per_token(2) is None


@pytest.mark.parametrize(
    "missing",
    [
        {"attention__head_count": 0},
        {"attention__head_count": -1},
        {"attention__head_count_kv": 0},
        {"block_count": 0},
        {"embedding_length": 0},
    ],
)
def test_the_bytes_of_a_token_are_unknown_without_attention(missing: dict[str, int]) -> None:
    whole = {"block_count": 2, "embedding_length": 64, "attention__head_count": 4}

    assert llama(**whole).kv_bytes_per_token(2) is not None
    assert llama(**whole | missing).kv_bytes_per_token(2) is None


MALFORMED = {
    "does not begin with GGUF": b"ggjt" + bytes(20),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version is 4": header(version=4),
    "unknown type 13": header([entry("k", 13, bytes(8))]),
    "unknown type 4294967295": header([entry("k", ARRAY, array(2**32 - 1, 1, bytes(8)))]),
    "2 deep": header([entry("k", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(U8, 0))))]),
    "'k' twice": header([entry("k", U8, b"\x01"), entry("k", ARRAY, array(U8, 0))]),
    "not UTF-8": header([entry(b"\xff", U8, b"\x01")]),
    "truncated at": header([entry("k", ARRAY, array(U32, 3, bytes(11)))]),
    "of 9 dimensions": header(tensors=[tensor("w", (1,) * 9)]),
    "exceed the limit of 9223372036854775807 elements": header(
        tensors=[tensor("w", (2**32, 2**31))]
    ),
    "truncated: a tensor begins beyond": header(tensors=[tensor("w", (1,), offset=1)]),
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_header_is_refused_in_a_sentence_that_names_the_file(
    tmp_path: Path, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        read(tmp_path, MALFORMED[reason])

    assert str(tmp_path / "model.gguf") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def huge_count(count: int) -> bytes:
    return struct.pack("<Q", count)


ABSURD = {
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, MAX_ENTRIES + 1, 0),
    "keys": b"GGUF" + struct.pack("<IQQ", 3, 0, MAX_ENTRIES + 1),
    "most tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0),
    "long key": header([huge_count(MAX_NAME + 1)]),
    "longest key": header([huge_count(2**64 - 1)]),
    "long tensor name": header(tensors=[huge_count(MAX_NAME + 1)]),
    "long text": header([text("k") + struct.pack("<IQ", STRING, MAX_TEXT + 1)]),
    "longest text": header([text("k") + struct.pack("<IQ", STRING, 2**64 - 1)]),
    "long token": header([entry("k", ARRAY, array(STRING, 1, huge_count(MAX_TEXT + 1)))]),
    "many tokens": header([entry("k", ARRAY, array(STRING, MAX_ELEMENTS + 1))]),
    "most tokens": header([entry("k", ARRAY, array(STRING, 2**64 - 1))]),
    "many arrays": header([entry("k", ARRAY, array(ARRAY, MAX_ELEMENTS + 1))]),
    "many numbers": header([entry("k", ARRAY, array(U32, MAX_HEADER // 4))]),
    "most numbers": header([entry("k", ARRAY, array(U32, 2**64 - 1))]),
    "texts that are too long together": header(
        [entry(f"{n}", STRING, text(bytes(MAX_TEXT // 2))) for n in range(3)]
    ),
}


@pytest.mark.parametrize("what", ABSURD)
def test_lengths_above_the_limits_are_refused_even_if_the_file_is_that_large(
    tmp_path: Path, what: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.gguf .* limit of"):
        read(tmp_path, ABSURD[what], size=FAR)


@pytest.mark.parametrize("what", [what for what in ABSURD if "texts" not in what])
def test_no_memory_is_allocated_by_a_length_alone(tmp_path: Path, what: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError):
            read(tmp_path, ABSURD[what], size=FAR)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 << 20


def test_a_length_that_a_truncated_file_does_not_have_takes_no_memory(tmp_path: Path) -> None:
    longest = MAX_TEXT - len("k")
    promise = header([text("k") + struct.pack("<IQ", STRING, longest)])

    with pytest.raises(ConfigurationError, match="header is truncated"):
        read(tmp_path, promise)
    refused_or_read(tmp_path, promise)


def test_a_header_in_front_of_a_hole_is_read_like_any_other(tmp_path: Path) -> None:
    found = read(tmp_path, header(tensors=[tensor("w", (2, 3), offset=FAR - 4096)]), size=FAR)

    assert (found.n_params, found.size) == (6, FAR)


def test_a_header_that_is_truncated_at_any_byte_is_refused(
    tmp_path: Path, every_type: bytes
) -> None:
    for length in range(len(every_type)):
        with pytest.raises(ConfigurationError):
            read(tmp_path, every_type[:length])


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)

    for path in (tmp_path / "absent.gguf", tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(ConfigurationError, match=str(path)):
            read_gguf_header(path)


def test_a_path_that_the_system_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nnnn"):
        read_gguf_header(tmp_path / ("n" * 300))


def refused_or_read(directory: Path, data: bytes) -> None:
    tracemalloc.start()
    try:
        read(directory, data)
    except ConfigurationError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 << 20


@settings(max_examples=150, deadline=5000)
@given(data=st.binary(max_size=200), version=st.sampled_from([b"", b"\1\0\0\0", b"\3\0\0\0"]))
def test_random_bytes_are_refused_or_read_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, version: bytes
) -> None:
    start = b"GGUF" + version if version else b""

    refused_or_read(tmp_path_factory.getbasetemp(), start + data)


# What a length may be made: its extremes, and the caps.
TELLING = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, MAX_ELEMENTS, MAX_TEXT]
CORRUPTION = st.binary(min_size=1, max_size=8) | st.sampled_from(TELLING).map(huge_count)


@settings(max_examples=250, deadline=5000)
@given(
    changes=st.lists(
        st.tuples(st.integers(min_value=0, max_value=2000), CORRUPTION), min_size=1, max_size=4
    )
)
@example(changes=[(8, huge_count(2**64 - 1))])
def test_a_corrupted_header_is_refused_or_read_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, every_type: bytes, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(every_type)
    for position, replacement in changes:
        start = position % len(every_type)
        data[start : start + len(replacement)] = replacement

    refused_or_read(tmp_path_factory.getbasetemp(), bytes(data))
