"""The details of models in lists."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from shared.errors import ConfigurationError
from workers.model_files.card import FILE_TYPES
from workers.model_files.details import (
    DetailsCache,
    ModelDetails,
    parameter_size,
    read_details,
)
from workers.model_files.folder import ModelFile, list_model_files


@pytest.fixture
def model(tmp_path: Path, llama_gguf: Path) -> ModelFile:
    shutil.copyfile(llama_gguf, tmp_path / "m.gguf")
    return only(tmp_path)


def only(folder: Path) -> ModelFile:
    (model,) = list_model_files(folder)
    return model


def write_gguf(path: Path, elements: int, file_type: int | None = None) -> Path:
    """A GGUF with one tensor."""
    writer = gguf.GGUFWriter(path, "qwen2")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tensor("t", np.zeros(elements, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_details_of_a_gguf_are_family_size_quantization_and_context(model: ModelFile) -> None:
    details = read_details(model)
    assert (details.format, details.family, details.quantization_level) == ("gguf", "llama", "Q8_0")
    assert details.parameter_size.endswith("K")
    assert details.context_length is not None
    assert len(details.digest) == 64
    assert set(details.digest) <= set("0123456789abcdef")


def test_the_details_of_a_ggml_file_are_mostly_unknown(tmp_path: Path, gpt2_ggml: Path) -> None:
    shutil.copyfile(gpt2_ggml, tmp_path / "m.bin")
    details = read_details(only(tmp_path))
    assert details == ModelDetails("ggml", "", "", "unknown", None, details.digest)


def test_the_parts_of_a_split_model_count_together(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00002.gguf", 1000, 15)
    write_gguf(tmp_path / "m-00002-of-00002.gguf", 2000)
    details = read_details(only(tmp_path))
    assert (details.parameter_size, details.quantization_level) == ("3K", "Q4_K_M")


@pytest.mark.parametrize("file_type", [None, 4, 9999])
def test_a_quantization_without_a_name_is_unknown(tmp_path: Path, file_type: int | None) -> None:
    write_gguf(tmp_path / "m.gguf", 10, file_type)
    assert read_details(only(tmp_path)).quantization_level == "unknown"


def test_the_numbers_of_quantizations_are_those_of_the_format() -> None:
    """The gguf package calls Q4_K_M MOSTLY_Q4_K_M."""
    for kind in gguf.LlamaFileType:
        if kind is not gguf.LlamaFileType.GUESSED:
            name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            assert FILE_TYPES[kind.value] == name


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (0, "0"),
        (999, "999"),
        (7_000, "7K"),
        (134_515_008, "134.52M"),
        (1_100_048_384, "1.1B"),
        (8_030_261_248, "8.0B"),
        (70_553_706_496, "70.6B"),
    ],
)
def test_sizes_are_written_as_ollama_writes_them(parameters: int, text: str) -> None:
    assert parameter_size(parameters) == text


def test_the_digest_changes_with_the_file_and_not_with_its_name(
    tmp_path: Path, model: ModelFile
) -> None:
    before = read_details(model).digest
    model.path.rename(tmp_path / "n.gguf")
    renamed = only(tmp_path)
    assert read_details(renamed).digest == before
    with renamed.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert read_details(renamed).digest != before


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, model: ModelFile) -> None:
    cache = DetailsCache()
    details = cache.of(model)
    assert cache.of(only(tmp_path)) is details
    write_gguf(model.path, 10, 7)
    assert cache.of(only(tmp_path)).quantization_level == "Q8_0"


def test_a_file_that_is_gone_or_damaged_is_an_error(tmp_path: Path, model: ModelFile) -> None:
    model.path.write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match="not a usable GGUF"):
        DetailsCache().of(only(tmp_path))
    model.path.unlink()
    with pytest.raises(FileNotFoundError):
        DetailsCache().of(model)
