"""The memory that a model will take, said before it is loaded.

Weights are mapped, so workers share them. Keys and values, rearranged weights and what a process
needs for itself are each worker's own. What was rearranged is not read from the file any more, and
the kernel drops its pages when it must (1.1 billion weights, Q4_K_M, 668 MB: 466 MB were copied).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from shared.settings import EngineName, ModelSettings
from workers.engines.table import ENGINES
from workers.model_files.card import file_size
from workers.model_files.gguf_header import KV_ELEMENT_BYTES, GgufHeader, read_gguf_header
from workers.model_files.magic import GGUF_MAGIC, read_magic

MOST_SLOTS = 16
"""Slots of a worker that is not told how many. More would be slower for each stream."""
PADDING = 256
"""llama.cpp rounds the context of a sequence up to so many tokens."""
WORKER_BYTES = 64 * 2**20
"""Of a worker for itself: Python, the library, buffers to compute in. 45 MiB were seen with 6
million and with 1.1 billion weights (Linux, Python 3.11); larger models have larger buffers."""
FLOATS = frozenset((0, 1, 30))
"""ggml's numbers of F32, F16 and BF16: such weights are never rearranged."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, about, of all workers together."""

    weights: int
    repacked: int
    """Copies of the weights that are rearranged for the CPU, at most."""
    slot: int
    """Keys and values of one stream."""
    slots: int
    """In all workers."""
    processes: int
    """What the workers need for themselves."""

    @property
    def keys_and_values(self) -> int:
        return self.slot * self.slots

    @property
    def total(self) -> int:
        return max(self.weights, self.repacked) + self.keys_and_values + self.processes


def plan_memory(model: ModelSettings, workers: int) -> MemoryPlan:
    """What so many workers of the model will take. ConfigurationError: its file cannot be read, or
    its header is broken.

    Of a GGML file, whose header does not say its kind, keys and values are not counted.
    """
    try:
        header = header_of(model)
        weights = weight_bytes(model.engine, model.path)
    except OSError as error:
        raise ConfigurationError(f"{model.path} cannot be read: {error.strerror}") from None
    slot = slot_bytes(header, model)
    slots = model.slots or (slots_for(model.kv_memory, slot) if _batches(model) else 1)
    return MemoryPlan(
        weights=weights,
        repacked=weights * workers if model.repack and can_repack(model, header) else 0,
        slot=slot,
        slots=slots * workers,
        processes=WORKER_BYTES * workers,
    )


def weight_bytes(engine: EngineName, path: Path | None) -> int:
    """0 where there are none. Raises OSError."""
    return 0 if path is None or engine == "echo" else file_size(path)


def header_of(model: ModelSettings) -> GgufHeader | None:
    """None of a model that is no GGUF. Raises ConfigurationError."""
    if model.path is None or model.engine == "echo" or read_magic(model.path) != GGUF_MAGIC:
        return None
    return read_gguf_header(Path(model.path))


def can_repack(model: ModelSettings, header: GgufHeader | None) -> bool:
    """Whether the engine may rearrange weights of these types for some CPU."""
    return model.engine == "llama_cpp" and bool(header and header.tensor_types - FLOATS)


def slot_bytes(header: GgufHeader | None, model: ModelSettings) -> int:
    """Keys and values of one stream; 0 where that is not known."""
    if header is None:
        return 0
    token = header.most_kv_bytes_per_token(KV_ELEMENT_BYTES[model.kv_type])
    return token * math.ceil(model.context / PADDING) * PADDING


def slots_for(kv_memory: int | None, slot_bytes: float) -> int:
    """As many as the memory for keys and values allows, from 1 to MOST_SLOTS."""
    if kv_memory is None or not slot_bytes:
        return MOST_SLOTS
    return max(1, min(MOST_SLOTS, int(kv_memory / slot_bytes)))


def _batches(model: ModelSettings) -> bool:
    return ENGINES[model.engine].batches
