"""Texts to vectors, in a llama.cpp context of their own, beside those of all sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import EngineFailed
from workers.engines.llama_cpp.vocabulary import metadata

PART = 64
"""Tokens that are computed at once. llama.cpp keeps the logits of all of them too: 64 × 150,000
are 38 MB."""
FIRST, LAST, RANK = (
    str(kind)
    for kind in (
        lib.LLAMA_POOLING_TYPE_CLS,
        lib.LLAMA_POOLING_TYPE_LAST,
        lib.LLAMA_POOLING_TYPE_RANK,
    )
)


def embedding_size(model: Any) -> int:
    """Numbers of a text's vector; 0 for models whose outputs are none, or need a whole text."""
    looks_ahead = _said(model, "attention.causal") == "false"
    if looks_ahead or pooling(model) == RANK:
        return 0
    return int(lib.llama_model_n_embd_out(model))


def pooling(model: Any) -> str:
    """Which tokens' outputs make the vector, as the metadata says it: one of the above, or of
    all tokens their mean."""
    return _said(model, "pooling_type")


def _said(model: Any, name: str) -> str:
    return metadata(model, f"{metadata(model, 'general.architecture')}.{name}")


class Embedder:
    """Makes its context when it is first needed: it takes as much memory as a slot."""

    def __init__(self, model: Any, make_context: Callable[[], Any]) -> None:
        self._make_context = make_context
        self._context: Any = None
        self._size: int = lib.llama_model_n_embd_out(model)
        self._pooling = pooling(model)
        self._sum = np.zeros(self._size)

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        """As Engine.embed."""
        if self._context is None:
            self._context = self._make_context()
        if position == 0:
            lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        for start in range(0, len(tokens), PART):
            outputs = self._outputs(tokens[start : start + PART])
            self._take(outputs, is_first=position + start == 0)
        return self._vector() if is_last else b""

    def _outputs(self, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The hidden state of each token, where llama.cpp has them: not a copy."""
        count = len(tokens)
        array, outputs = (ctypes.c_int32 * count)(*tokens), (ctypes.c_int8 * count)(*[1] * count)
        batch = lib.llama_batch_get_one(array, count)
        batch.logits = outputs
        status = lib.llama_decode(self._context, batch)
        if status != 0:
            raise EngineFailed(f"the model failed to process these tokens (status {status})")
        first = lib.llama_get_embeddings_ith(self._context, 0)
        if not first:
            raise EngineFailed("the model has no outputs that make an embedding")
        return np.ctypeslib.as_array(first, (count, self._size))

    def _take(self, outputs: np.ndarray[Any, np.dtype[np.float32]], *, is_first: bool) -> None:
        if is_first:
            self._sum = np.zeros(self._size)
        if self._pooling == LAST:
            self._sum = outputs[-1].astype(np.float64)
        elif self._pooling != FIRST:
            self._sum += outputs.sum(axis=0, dtype=np.float64)
        elif is_first:
            self._sum = outputs[0].astype(np.float64)

    def _vector(self) -> bytes:
        """Of length 1, so a sum's direction is that of its mean."""
        length = float(np.linalg.norm(self._sum))
        if not np.isfinite(length) or length == 0:
            raise EngineFailed("the model computes no numbers for this text")
        return (self._sum / length).astype("<f4").tobytes()
