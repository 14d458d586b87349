"""Random weights that make a model write varied text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import gguf
import numpy as np

from scripts.modelling.llama_gguf import LlamaShape, Vocabulary

NEVER = -15.0
"""Approximate logit bias of tokens that must never be sampled: see `random_weights`."""
ANCHOR = 2.0
"""Element 0 of every embedding. Nothing else writes there, so it reaches the output matrix as a
constant, and column 0 of that matrix adds a bias to the logit of each token."""


def plain_bias(vocabulary: Vocabulary) -> np.ndarray:
    """Logit biases [vocabulary] with which a model writes only its NORMAL tokens."""
    normal = [kind == gguf.TokenType.NORMAL for kind in vocabulary.types]
    return np.where(normal, 0.0, NEVER).astype(np.float32)


def random_weights(
    shape: LlamaShape, bias: np.ndarray, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of `shape`, in its order, as float32.

    `bias` [vocabulary] is added to the logits, times a factor between 1 and 2. The remaining
    part of a logit has a standard deviation of about 3 at any depth and width.
    """
    noise = Noise(seed)
    for name, size in shape.tensors():
        if len(size) == 1:
            yield name, np.ones(size, np.float32)
            continue
        values = noise.array(size, _spread(name, size[1], shape.layers))
        if name == "token_embd.weight":
            values[:, 0] = ANCHOR
        elif name == "output.weight":
            values[:, 0] = bias
        elif _writes_residual(name):
            values[0] = 0.0
        yield name, values


def _spread(name: str, inputs: int, layers: int) -> float:
    """Standard deviation of the weights of matrix `name`, whose rows have `inputs` elements."""
    if name == "token_embd.weight":
        return 1.0
    if name == "output.weight":
        return 3 / math.sqrt(inputs)
    if _writes_residual(name):
        return 1 / math.sqrt(inputs * layers)
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        # Attention picks single positions. So the same token at another position has another
        # successor, and greedy sampling does not repeat itself.
        return 2 / math.sqrt(inputs)
    return 1 / math.sqrt(inputs)


def _writes_residual(name: str) -> bool:
    """Whether the product with this matrix is added to the residual stream."""
    return name.endswith(("attn_output.weight", "ffn_down.weight"))


class Noise:
    """Normally distributed numbers, copied out of one random block, which is fast.

    Copies start anywhere and change their sign at random, so hardly any two rows are equal.
    """

    BLOCK = 1 << 22
    LONGEST_COPY = 1 << 20

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._block = self._random.standard_normal(self.BLOCK, dtype=np.float32)

    def array(self, size: tuple[int, ...], spread: float) -> np.ndarray:
        """Numbers of mean 0 and standard deviation `spread`, as float32."""
        flat = np.empty(math.prod(size), np.float32)
        for start in range(0, len(flat), self.LONGEST_COPY):
            part = flat[start : start + self.LONGEST_COPY]
            offset = int(self._random.integers(self.BLOCK - len(part)))
            sign = 1 - 2 * int(self._random.integers(2))
            source = self._block[offset : offset + len(part)]
            np.multiply(source, np.float32(sign * spread), out=part)
        return flat.reshape(size)
