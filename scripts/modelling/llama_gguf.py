"""Writes llama-architecture GGUF files: the only module that knows their keys and tensor names.

Used by train_demo_model (trained weights) and make_model (random weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that determine every tensor of a llama model.

    `width` is the embedding length and `hidden` the feed-forward length, both in
    elements; `context` is the trained context in tokens. With `kv_heads` < `heads`
    attention is grouped-query attention.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    context: int
    rope_base: float = 10_000.0
    rms_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def tensors(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Name and numpy shape (rows first) of each tensor, in file order."""
        kv_width = self.kv_heads * self.head_width
        yield "token_embd.weight", (self.vocabulary, self.width)
        for i in range(self.layers):
            block = f"blk.{i}."
            yield block + "attn_norm.weight", (self.width,)
            yield block + "attn_q.weight", (self.width, self.width)
            yield block + "attn_k.weight", (kv_width, self.width)
            yield block + "attn_v.weight", (kv_width, self.width)
            yield block + "attn_output.weight", (self.width, self.width)
            yield block + "ffn_norm.weight", (self.width,)
            yield block + "ffn_gate.weight", (self.hidden, self.width)
            yield block + "ffn_up.weight", (self.hidden, self.width)
            yield block + "ffn_down.weight", (self.width, self.hidden)
        yield "output_norm.weight", (self.width,)
        yield "output.weight", (self.vocabulary, self.width)


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece-style vocabulary. The three lists are indexed by token id."""

    pieces: Sequence[bytes]
    scores: Sequence[float]
    types: Sequence[gguf.TokenType]
    unk: int = 0
    bos: int = 1
    eos: int = 2


def write_llama(
    path: Path,
    shape: LlamaShape,
    vocabulary: Vocabulary,
    weights: Iterable[tuple[str, np.ndarray]],
    quantization: gguf.GGMLQuantizationType,
    *,
    name: str,
    description: str = "",
    license_name: str = "",
    stream: bool = False,
) -> None:
    """Write the model to `path`; matrices are quantized, norms stay float32.

    `weights` yields float32 arrays with the names of `shape.tensors()`. The rotary
    position embedding is ggml's interleaved one: pairs (2i, 2i + 1).
    With `stream`, memory holds one tensor at a time, and `weights` must have the
    order of `shape.tensors()`. Without it, memory holds all, in any order.
    Raises ValueError if a tensor is missing, unknown or of another shape; a
    streamed file is then incomplete.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    if description:
        writer.add_description(description)
    if license_name:
        writer.add_license(license_name)
    add_sizes(writer, shape)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(_file_type(quantization))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary)

    if stream:
        _stream_tensors(writer, shape, weights, quantization)
        return
    expected = dict(shape.tensors())
    for tensor_name, values in weights:
        if expected.pop(tensor_name, None) != values.shape:
            raise ValueError(f"{tensor_name}: unexpected shape {values.shape}")
        if values.ndim == 1:
            writer.add_tensor(tensor_name, values.astype(np.float32))
        else:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(tensor_name, packed, raw_dtype=quantization)
    if expected:
        raise ValueError(f"missing tensors: {', '.join(expected)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, shape: LlamaShape) -> None:
    """Write the sizes that llama and similar architectures have, for the writer's architecture."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)


def _stream_tensors(
    writer: gguf.GGUFWriter,
    shape: LlamaShape,
    weights: Iterable[tuple[str, np.ndarray]],
    quantization: gguf.GGMLQuantizationType,
) -> None:
    for tensor_name, size in shape.tensors():
        stored = _stored_type(len(size), quantization)
        packed_size = gguf.quant_shape_to_byte_shape(size, stored)
        writer.add_tensor_info(
            tensor_name, packed_size, np.dtype(np.uint8), math.prod(packed_size), raw_dtype=stored
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for expected, (tensor_name, values) in zip(shape.tensors(), weights, strict=True):
            if expected != (tensor_name, values.shape):
                raise ValueError(f"{tensor_name}: {values.shape} instead of {expected}")
            stored = _stored_type(values.ndim, quantization)
            writer.write_tensor_data(gguf.quants.quantize(values, stored))
    finally:
        writer.close()


def _stored_type(
    dimensions: int, quantization: gguf.GGMLQuantizationType
) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType.F32 if dimensions == 1 else quantization


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types([int(t) for t in vocabulary.types])
    writer.add_unk_token_id(vocabulary.unk)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _file_type(quantization: gguf.GGMLQuantizationType) -> gguf.LlamaFileType:
    if quantization is gguf.GGMLQuantizationType.F32:
        return gguf.LlamaFileType.ALL_F32
    return gguf.LlamaFileType[f"MOSTLY_{quantization.name}"]
