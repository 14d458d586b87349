"""Sizes of models: presets, and which sizes can be written."""

from __future__ import annotations

import math

from scripts.modelling.llama_gguf import LlamaShape
from scripts.modelling.vocabulary import LARGEST_VOCABULARY, SMALLEST_VOCABULARY

SHAPES = {
    "tiny": LlamaShape(
        layers=2, width=64, heads=4, kv_heads=2, hidden=192, vocabulary=512, context=256
    ),
    "small-24m": LlamaShape(
        layers=6, width=512, heads=8, kv_heads=8, hidden=1024, vocabulary=8192, context=2048
    ),
    "tinyllama-1.1b": LlamaShape(
        layers=22, width=2048, heads=32, kv_heads=4, hidden=5632, vocabulary=32_000, context=2048
    ),
    "llama-7b": LlamaShape(
        layers=32, width=4096, heads=32, kv_heads=32, hidden=11_008, vocabulary=32_000, context=4096
    ),
    "mistral-7b": LlamaShape(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        vocabulary=32_000,
        context=32_768,
    ),
}
SIZES = ("layers", "width", "heads", "kv_heads", "hidden", "vocabulary", "context")
TYPES = ("F16", "F32", "Q8_0", "Q4_0", "Q4_K_M")
BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q4_K_M": 256}
"""Weights of a row that share a scale. The length of a row must be a multiple of it."""


class ModelError(Exception):
    """The model cannot be written; the message is one sentence for the user."""


def parameters(shape: LlamaShape) -> int:
    """Number of weights, including norms."""
    return sum(math.prod(size) for _, size in shape.tensors())


def check_shape(shape: LlamaShape, kind: str) -> None:
    """Raise ModelError unless an engine can run `shape` with its matrices stored as `kind`."""
    for name in SIZES:
        if getattr(shape, name) < 1:
            raise ModelError(f"{name} must be at least 1, not {getattr(shape, name)}")
    if shape.width % (2 * shape.heads):
        # Rotary position embeddings rotate pairs of a head's elements.
        raise ModelError(
            f"width {shape.width} cannot be split into {shape.heads} heads of an even width"
        )
    if shape.heads % shape.kv_heads:
        raise ModelError(f"{shape.heads} heads cannot share {shape.kv_heads} kv-heads evenly")
    if not SMALLEST_VOCABULARY <= shape.vocabulary <= LARGEST_VOCABULARY:
        raise ModelError(
            f"vocabulary must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"
            f" tokens, not {shape.vocabulary}"
        )
    block = BLOCKS.get(kind, 1)
    for name, row in (("width", shape.width), ("hidden", shape.hidden)):
        if row % block:
            raise ModelError(f"{kind} needs a multiple of {block} as {name}, not {row}")
