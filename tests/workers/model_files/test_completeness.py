"""Which files in a folder of models are complete language models."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from shared.errors import ConfigurationError
from tests.helpers import models
from tests.helpers.gguf_files import write_gguf
from workers.model_files.completeness import check_complete


@pytest.mark.parametrize(
    ("architecture", "kind", "tensors", "what"),
    [
        ("llama", "adapter", 1, "an adapter"),
        ("clip", "mmproj", 1, "a projector"),
        ("clip", "", 1, "a projector"),
        ("", "imatrix", 1, "an importance matrix"),
        ("controlvector", "", 1, "a control vector"),
        ("llama", "vocab", 0, "a vocabulary"),
        ("llama", "", 0, "a vocabulary"),
        ("flux", "", 1, "without a vocabulary"),
        ("llama", "something new", 1, "of the type 'something new'"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_what_it_is(
    tmp_path: Path, architecture: str, kind: str, tensors: int, what: str
) -> None:
    """They were listed as models, and each request for one was a 500."""
    path = write_gguf(tmp_path / "x.gguf", architecture, kind, tensors)
    with pytest.raises(ConfigurationError, match=f"x.gguf is no language model: it is {what}"):
        check_complete([path])


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_whole_model_is_complete_and_one_without_its_last_byte_is_not(
    tmp_path: Path, kind: str
) -> None:
    """A download that lacked its last byte was listed as a model, and failed with 500."""
    path = models.build_llama_gguf(tmp_path / "m.gguf", kind=kind)
    check_complete([path])
    tensors = gguf.GGUFReader(path).tensors
    end = max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in tensors)
    del tensors
    path.write_bytes(path.read_bytes()[:end])  # without padding
    check_complete([path])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=f"has {end - 1} bytes, .* up to {end}"):
        check_complete([path])


def test_every_part_of_a_split_model_must_be_complete(tmp_path: Path) -> None:
    whole = models.build_llama_gguf(tmp_path / "m.gguf")
    parts = models.split_gguf(whole, tmp_path, 3)
    check_complete(parts)
    parts[1].write_bytes(parts[1].read_bytes()[:-40])
    with pytest.raises(ConfigurationError, match=r"00002-of-00003\.gguf is not complete"):
        check_complete(parts)
