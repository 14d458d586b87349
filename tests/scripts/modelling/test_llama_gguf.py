"""Writing GGUF files, tensor by tensor or as a whole."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from scripts.modelling.llama_gguf import LlamaShape, write_llama
from scripts.modelling.shapes import SHAPES
from scripts.modelling.vocabulary import make_vocabulary
from scripts.modelling.weights import plain_bias, random_weights


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_streamed_file_is_the_same_as_one_written_whole(kind: str, tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    streamed, whole = tmp_path / "streamed.gguf", tmp_path / "whole.gguf"
    for path, stream in ((streamed, True), (whole, False)):
        _write(path, shape, _weights(shape), kind=kind, stream=stream)
    assert streamed.read_bytes() == whole.read_bytes()


def test_a_streamed_file_refuses_tensors_out_of_order_or_missing(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    weights = _weights(shape)
    for wrong in (weights[::-1], weights[:-1]):
        with pytest.raises(ValueError, match=r"instead of|shorter"):
            _write(tmp_path / "model.gguf", shape, wrong, kind="F16", stream=True)


def _weights(shape: LlamaShape) -> list[tuple[str, np.ndarray]]:
    bias = plain_bias(make_vocabulary(shape.vocabulary))
    return list(random_weights(shape, bias, seed=1))


def _write(
    path: Path,
    shape: LlamaShape,
    weights: list[tuple[str, np.ndarray]],
    *,
    kind: str,
    stream: bool,
) -> None:
    vocabulary = make_vocabulary(shape.vocabulary)
    quantization = gguf.GGMLQuantizationType[kind]
    write_llama(path, shape, vocabulary, weights, quantization, name="A model", stream=stream)
