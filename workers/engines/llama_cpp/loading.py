"""Loading a model into llama.cpp: what it logs, its model and context parameters, its memory."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as lib

from shared.errors import ConfigurationError
from shared.settings import KvType, ModelSettings
from workers.engines.llama_cpp.batch import BATCH
from workers.engines.memory_plan import PADDING
from workers.model_files.gguf_header import KV_ELEMENT_BYTES, read_gguf_header

ATTENTION_BYTES = 32 * 2**20
"""The most bytes of the attention scores of all heads, which should stay in the CPU's caches: a
step is computed in parts that keep to it. With 900 tokens of 1.1 billion weights, parts of 128
tokens took 11.7 s and parts of 512 took 12.6 s."""
SMALLEST_PART = 64
"""The fewest tokens of a part."""
MOST_CELLS = 2**31 - 1
"""The most tokens of all slots together."""
KV_TYPES: dict[KvType, int] = {"f16": 1, "f32": 0, "q8_0": 8}
"""ggml's number of each type."""
LONGEST_LINE = 1000
"""Characters of a logged line; the rest is cut off."""
LOG_LEVELS = {3: logging.WARNING, 4: logging.WARNING}
"""Levels of ggml's warnings and errors. All other lines are logged for debugging."""
ERROR_LEVEL = 4
EXPECTED_LINES = ("n_ctx_train", "default pooling_type")
"""Parts of lines that are not logged: the front warns of a context beyond the trained one, and
outputs are deliberately not pooled."""

logger = logging.getLogger("tokenflume.llama_cpp")


class NativeLog:
    """Logs the lines of llama.cpp, until another NativeLog is made."""

    def __init__(self) -> None:
        self.is_loading = True
        """While loading, errors are raised, so their lines are logged for debugging only."""
        self.first_error = ""
        """The first error's line, which states the reason. Later lines state its consequences."""
        self._callback = lib.llama_log_callback(self._log)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))
        # The library may log for as long as the process runs, even after the engine is gone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._callback))

    def _log(self, level: int, text: bytes, _: ctypes.c_void_p) -> None:
        line = one_line(text)
        if level == ERROR_LEVEL and not self.first_error:
            self.first_error = line
        is_progress = not line.strip(".")
        if not is_progress and not any(part in line for part in EXPECTED_LINES):
            usual = LOG_LEVELS.get(level, logging.DEBUG)
            logger.log(logging.DEBUG if self.is_loading else usual, "%s", line)


def one_line(text: bytes) -> str:
    """A message of llama.cpp as one printable line. It may cite long texts from files."""
    line = text.decode(errors="replace").strip()[:LONGEST_LINE]
    return "".join(character if character.isprintable() else " " for character in line)


def load_model(
    settings: ModelSettings, log: NativeLog, on_progress: Callable[[float], None] = lambda _: None
) -> Any:
    """Load a llama_model. Its weights are mapped, so workers share them.

    Raises ConfigurationError if llama.cpp refuses it, or if it cannot continue texts.
    """

    def report(progress: float, _: ctypes.c_void_p) -> bool:
        on_progress(progress)
        return True  # continue

    params = lib.llama_model_default_params()
    params.progress_callback = callback = lib.llama_progress_callback(report)
    params.n_gpu_layers = 0
    params.use_extra_bufts = settings.repack
    params.load_mode = (
        lib.LLAMA_LOAD_MODE_MMAP_MLOCK if settings.mlock else lib.LLAMA_LOAD_MODE_MMAP
    )
    model = lib.llama_model_load_from_file(str(settings.path).encode(), params)
    del callback  # it had to live until here
    if not model:
        raise ConfigurationError(f"llama.cpp cannot load {settings.path}: {log.first_error}")
    unfit = why_unfit(model)
    if unfit:
        raise ConfigurationError(f"{settings.path} {unfit}")
    return model


def why_unfit(model: Any) -> str:
    """Why the model cannot continue a text, as a predicate; "" if it can."""
    if lib.llama_model_has_encoder(model):
        return "has an encoder, but only decoder-only models can be served"
    if not lib.llama_model_has_decoder(model):
        return "cannot generate text: it has no decoder"
    if lib.llama_model_is_diffusion(model):
        return "is a diffusion model, which does not generate token by token"
    if lib.llama_vocab_type(lib.llama_model_get_vocab(model)) == lib.LLAMA_VOCAB_TYPE_NONE:
        return "has no vocabulary"
    return ""


def kv_bytes_per_token(model: Any, settings: ModelSettings) -> float:
    """Bytes of one token's keys and values over all layers, by the file's header.

    An upper bound if the header does not say, for example because layers differ: as if each layer
    were as wide as the model.
    """
    element = KV_ELEMENT_BYTES[settings.kv_type]
    known = read_gguf_header(Path(str(settings.path))).kv_bytes_per_token(element)
    widest: float = 2 * lib.llama_model_n_layer(model) * lib.llama_model_n_embd(model) * element
    return widest if known is None else known


def check_memory(settings: ModelSettings, slots: int, slot_bytes: float) -> None:
    """Raise ConfigurationError for a KV cache that llama.cpp or the memory cannot hold."""
    need = (
        f"{slots} slots × {settings.context} tokens of context need about"
        f" {slots * slot_bytes / 2**20:,.0f} MiB for the KV cache"
    )
    if cells_for(settings, slots) > MOST_CELLS:
        raise ConfigurationError(
            f"{need}: llama.cpp supports at most {MOST_CELLS} tokens in all slots together"
        )
    if settings.kv_memory is not None and slots * slot_bytes > 2 * settings.kv_memory:
        raise ConfigurationError(f"{need}: {2 * settings.kv_memory / 2**20:,.0f} MiB are left")


def cells_for(settings: ModelSettings, slots: int) -> int:
    """Tokens that the KV cache holds, in all slots together."""
    return slots * -(-settings.context // PADDING) * PADDING


def context_params(model: Any, settings: ModelSettings, slots: int, threads: int) -> Any:
    """The parameters of a llama_context with `slots` slots."""
    params = lib.llama_context_default_params()
    params.n_ctx = cells = cells_for(settings, slots)
    params.n_batch = BATCH
    params.n_ubatch = part_for(lib.llama_model_n_head(model) * cells // slots)
    params.n_seq_max = slots
    params.n_outputs_max = slots
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    # Flash attention is slower on CPUs except for large chunks of deep prompts. Quantized keys
    # and values need it.
    params.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if settings.kv_type == "q8_0"
        else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.kv_unified = False
    params.no_perf = True
    return params


def make_context(model: Any, params: Any, log: NativeLog) -> Any:
    """A llama_context with its KV cache. Raises ConfigurationError."""
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConfigurationError(f"llama.cpp cannot make a context: {log.first_error}")
    return context


def part_for(scores: int) -> int:
    """Tokens that are computed at once if each has `scores` attention scores: a power of two."""
    part = BATCH
    while part > SMALLEST_PART and part * scores * ctypes.sizeof(ctypes.c_float) > ATTENTION_BYTES:
        part //= 2
    return part
