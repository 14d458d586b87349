"""Texts to vectors, in a llama.cpp context of their own besides that of the slots."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import ConfigurationError, EngineFailed
from shared.settings import ModelSettings
from workers.engines.llama_cpp.loading import (
    NativeLog,
    context_params,
    kv_bytes_per_token,
    make_context,
)
from workers.engines.llama_cpp.vocabulary import metadata
from workers.machine.memory import available_memory

PART = 64
"""Tokens that are computed at once. llama.cpp also stores the logits of all of them: 64 × 150,000
numbers are 38 MB."""
FIRST, LAST, RANK = (
    str(kind)
    for kind in (
        lib.LLAMA_POOLING_TYPE_CLS,
        lib.LLAMA_POOLING_TYPE_LAST,
        lib.LLAMA_POOLING_TYPE_RANK,
    )
)
"""Pooling types as the metadata writes them."""


def embedding_size(model: Any) -> int:
    """Numbers in a text's vector; 0 if the model has no usable outputs, or needs whole texts."""
    looks_ahead = _architecture_value(model, "attention.causal") == "false"
    if looks_ahead or pooling(model) == RANK:
        return 0
    return int(lib.llama_model_n_embd_out(model))


def pooling(model: Any) -> str:
    """The metadata's pooling type: FIRST, LAST or RANK. Anything else means the mean."""
    return _architecture_value(model, "pooling_type")


def _architecture_value(model: Any, name: str) -> str:
    return metadata(model, f"{metadata(model, 'general.architecture')}.{name}")


class Embedder:
    """Computes vectors. Its context, which takes as much memory as a slot, is made at first use."""

    def __init__(self, model: Any, settings: ModelSettings, threads: int, log: NativeLog) -> None:
        self._model = model
        self._settings = settings
        self._threads = threads
        self._log = log
        self._context: Any = None
        self._size: int = lib.llama_model_n_embd_out(model)
        self._pooling = pooling(model)
        self._sum = np.zeros(self._size)

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        """See Engine.embed."""
        if self._context is None:
            self._context = self._make_context()
        if position == 0:
            lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        for start in range(0, len(tokens), PART):
            outputs = self._outputs(tokens[start : start + PART])
            self._add(outputs, is_first=position + start == 0)
        return self._vector() if is_last else b""

    def _make_context(self) -> Any:
        """A context of one slot whose outputs are hidden states. Raises EngineFailed."""
        slot_bytes = kv_bytes_per_token(self._model, self._settings) * self._settings.context
        left = available_memory()
        if left is not None and slot_bytes > left:
            raise EngineFailed(
                f"not enough memory for embeddings: {slot_bytes / 2**20:,.0f} MiB are needed,"
                f" {left / 2**20:,.0f} MiB are left"
            )
        params = context_params(self._model, self._settings, 1, self._threads)
        params.n_batch = params.n_ubatch = params.n_outputs_max = PART
        params.embeddings = True
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        try:
            return make_context(self._model, params, self._log)
        except ConfigurationError as error:
            raise EngineFailed(str(error)) from None

    def _outputs(self, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The hidden state of each token, as a view of llama.cpp's own buffer."""
        count = len(tokens)
        array, outputs = (ctypes.c_int32 * count)(*tokens), (ctypes.c_int8 * count)(*[1] * count)
        batch = lib.llama_batch_get_one(array, count)
        batch.logits = outputs
        status = lib.llama_decode(self._context, batch)
        if status != 0:
            raise EngineFailed(f"the model failed to process these tokens (status {status})")
        first = lib.llama_get_embeddings_ith(self._context, 0)
        if not first:
            raise EngineFailed("the model has no outputs for embeddings")
        return np.ctypeslib.as_array(first, (count, self._size))

    def _add(self, outputs: np.ndarray[Any, np.dtype[np.float32]], *, is_first: bool) -> None:
        """Pool a part's outputs. `is_first`: the part begins a text."""
        if is_first:
            self._sum = np.zeros(self._size)
        if self._pooling == LAST:
            self._sum = outputs[-1].astype(np.float64)
        elif self._pooling != FIRST:
            self._sum += outputs.sum(axis=0, dtype=np.float64)
        elif is_first:
            self._sum = outputs[0].astype(np.float64)

    def _vector(self) -> bytes:
        """The pooled outputs, scaled to length 1. A sum then equals the mean."""
        length = float(np.linalg.norm(self._sum))
        if not np.isfinite(length) or length == 0:
            raise EngineFailed("the model computes no usable numbers for this text")
        return (self._sum / length).astype("<f4").tobytes()
