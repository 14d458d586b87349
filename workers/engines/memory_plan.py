"""Estimates the memory that a model needs, before it is loaded.

The weights are mapped, so workers share them. Each worker has its own KV cache, its own copy of
repacked weights, and its own process. Repacked weights are no longer read from the file, and the
kernel evicts the file's pages when memory is short. (1.1 billion weights, Q4_K_M, 668 MB: 466 MB
were repacked.)
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
"""Slots of a worker without a setting. More would make each stream slower."""
PADDING = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this number of tokens."""
WORKER_BYTES = 64 * 2**20
"""Memory of a worker process without its model: Python, libraries, compute buffers. 45 MiB were
measured with 6 million and with 1.1 billion weights (Linux, Python 3.11). Larger models have larger
buffers."""
FLOATS = frozenset((0, 1, 30))
"""ggml's numbers of F32, F16 and BF16. Weights of these types are never repacked."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The estimated memory of all workers of a model together."""

    weight_bytes: int
    """The model's file, mapped once for all workers."""
    repacked_bytes: int
    """Upper bound of the copies of weights that are repacked for the CPU."""
    slot_bytes: int
    """The KV cache of one slot."""
    slots: int
    """The number of slots in all workers."""
    process_bytes: int
    """The worker processes without their models."""

    @property
    def kv_bytes(self) -> int:
        """The KV cache of all slots."""
        return self.slot_bytes * self.slots

    @property
    def total_bytes(self) -> int:
        """Everything together. The file's own weights are not needed besides repacked ones."""
        return max(self.weight_bytes, self.repacked_bytes) + self.kv_bytes + self.process_bytes


def plan_memory(model: ModelSettings, workers: int) -> MemoryPlan:
    """Estimate the memory of `workers` workers of the model.

    The KV cache of a GGML file counts as 0, because its header does not say its size.
    Raises ConfigurationError if the file cannot be read or its header is broken.
    """
    try:
        header = header_of(model)
        weights = weight_bytes(model.engine, model.path)
    except OSError as error:
        raise ConfigurationError(f"{model.path} cannot be read: {error.strerror}") from None
    slot = slot_bytes(header, model)
    slots = model.slots or (slots_for(model.kv_memory, slot) if _batches(model) else 1)
    return MemoryPlan(
        weight_bytes=weights,
        repacked_bytes=weights * workers if model.repack and can_repack(model, header) else 0,
        slot_bytes=slot,
        slots=slots * workers,
        process_bytes=WORKER_BYTES * workers,
    )


def weight_bytes(engine: EngineName, path: Path | None) -> int:
    """Size of the model's weights in bytes; 0 for the echo engine. Raises OSError."""
    return 0 if path is None or engine == "echo" else file_size(path)


def header_of(model: ModelSettings) -> GgufHeader | None:
    """The header of the model's file; None if it is not a GGUF file.

    Raises ConfigurationError for a broken header, and OSError.
    """
    if model.path is None or model.engine == "echo" or read_magic(model.path) != GGUF_MAGIC:
        return None
    return read_gguf_header(Path(model.path))


def can_repack(model: ModelSettings, header: GgufHeader | None) -> bool:
    """Whether the engine may repack weights of these types for some CPU."""
    return model.engine == "llama_cpp" and bool(header and header.tensor_types - FLOATS)


def slot_bytes(header: GgufHeader | None, model: ModelSettings) -> int:
    """Bytes of one slot's KV cache; 0 if unknown."""
    if header is None:
        return 0
    token = header.most_kv_bytes_per_token(KV_ELEMENT_BYTES[model.kv_type])
    return token * math.ceil(model.context / PADDING) * PADDING


def slots_for(kv_memory: int | None, slot_bytes: float) -> int:
    """Number of slots that fit into `kv_memory` bytes, 1 to MOST_SLOTS. None: no limit."""
    if kv_memory is None or not slot_bytes:
        return MOST_SLOTS
    return max(1, min(MOST_SLOTS, int(kv_memory / slot_bytes)))


def _batches(model: ModelSettings) -> bool:
    return ENGINES[model.engine].batches
