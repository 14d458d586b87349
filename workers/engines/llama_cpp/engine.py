"""The engine for every current GGUF and many sequences at once, on llama.cpp's own C interface.

It uses the bindings of llama-cpp-python, which follow llama.h one to one, and not its high-level
class, which runs one sequence and is not thread-safe. A slot is a llama.cpp sequence id with KV
cells of its own, so no sequence looks at the cells of another.

Threads: tokenizing and making samplers only read llama.cpp's vocabulary, which never changes, and
use buffers of their own. Everything else uses the context, and belongs to the engine's thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import ConfigurationError, EngineFailed
from shared.sampling import SamplingParams
from shared.settings import ModelSettings
from shared.values import Candidate, Logprobs, ModelCard, ModelInfo
from workers.engines.base import Engine, Feed, Interrupted
from workers.engines.llama_cpp.batch import BATCH, Batch, fillers
from workers.engines.llama_cpp.embedding import Embedder, embedding_size
from workers.engines.llama_cpp.loading import (
    NativeLog,
    check_memory,
    context_params,
    kv_bytes_per_token,
    load_model,
    make_context,
)
from workers.engines.llama_cpp.sampling import SamplerChain, build_chain
from workers.engines.llama_cpp.vocabulary import NO_TOKEN, Vocabulary, metadata
from workers.engines.memory_plan import slots_for
from workers.model_files.card import gguf_card
from workers.model_files.gguf_header import read_gguf_header

ABORTED = 2
"""The status of a llama_decode that its abort callback ended."""


def load(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None]
) -> LlamaCppEngine:
    """Load the model. Raises ConfigurationError if llama.cpp refuses it or memory is short."""
    log = NativeLog()
    lib.llama_backend_init()
    model = load_model(settings, log, on_progress)
    slot_bytes = kv_bytes_per_token(model, settings) * settings.context
    slots = settings.slots or slots_for(settings.kv_memory, slot_bytes)
    check_memory(settings, slots, slot_bytes)
    context = make_context(model, context_params(model, settings, slots, threads), log)
    engine = LlamaCppEngine(model, context, settings, slots, log)
    engine.warm_up()
    log.is_loading = False
    return engine


class LlamaCppEngine(Engine):
    """The engine that the module's docstring describes."""

    max_batch = BATCH

    def __init__(
        self, model: Any, context: Any, settings: ModelSettings, slots: int, log: NativeLog
    ) -> None:
        self._model = model
        self._context = context
        self._name = str(settings.path)
        self._memory = lib.llama_get_memory(context)
        self._vocabulary = Vocabulary(model, settings.context)
        self._batch = Batch(BATCH, slots)
        self._lengths = [0] * slots
        self._cells: int = lib.llama_n_ctx_seq(context)
        """Tokens that fit into a slot."""
        self._can_rewind = not (
            lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        )
        """Whether a sequence can be cut to any length, and not only to 0."""
        self.state_format = f"llama.cpp {lib.__version__}, {settings.kv_type}"
        self._window: int = lib.llama_model_n_swa(model)
        """Tokens that a layer with a sliding window looks back; 0: the model has none."""
        self._abort = AbortFlag(context)
        threads: int = lib.llama_n_threads(context)
        self._embedder = Embedder(model, settings, threads, log)
        self.info = ModelInfo(
            engine="llama_cpp",
            architecture=metadata(model, "general.architecture"),
            context=settings.context,
            vocabulary=self._vocabulary.size,
            slots=slots,
            batch=min(settings.batch or BATCH, BATCH),
            sampling=tuple(field.name for field in fields(SamplingParams)),
            saves_states=True,
            embedding=embedding_size(model),
            card=model_card(model, Path(self._name), self._vocabulary),
        )

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        return self._vocabulary.tokenize(text, is_start=is_start, continues=continues)

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        return self._vocabulary.piece(token, shows_control=shows_control)

    def is_end(self, token: int) -> bool:
        return token == NO_TOKEN or token in self._vocabulary.ends

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> SamplerChain:
        return build_chain(params, prompt, vocab=self._vocabulary, context=self.info.context)

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        feeds = sorted(feeds)  # by slot: llama.cpp computes adjacent slots together
        added = fillers(feeds, width, self._lengths, self._cells) if self._can_rewind else []
        batch = self._batch.fill(sorted(feeds + added) if added else feeds)
        self._abort.watch(interruptible and self._can_rewind)
        status = lib.llama_decode(self._context, batch)
        for filler in added:
            self._cut(filler.slot, filler.position)
        if status != 0:
            self._undo(feeds)
        if status == ABORTED:
            raise Interrupted
        if status != 0:
            raise EngineFailed(f"the model failed to process these tokens (status {status})")
        for slot, tokens, position, _ in feeds:
            self._lengths[slot] = position + len(tokens)

    def sample(self, slot: int, sampler: SamplerChain) -> int:
        if sampler.grammar is not None:
            return sampler.grammar.sample(sampler.chain, self._logits(self._batch.logits_at[slot]))
        token: int = lib.llama_sampler_sample(
            sampler.chain, self._context, self._batch.logits_at[slot]
        )
        return token

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        logits = self._logits(self._batch.logits_at[slot]).astype(np.float64)
        peak = logits.max()
        logits -= peak + np.log(np.exp(logits - peak).sum())
        likeliest = np.argpartition(-logits, min(top, self._vocabulary.size - 1))[:top]
        likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
        return Logprobs(
            float(logits[token]),
            tuple(Candidate(int(i), self.piece(int(i)), float(logits[i])) for i in likeliest),
        )

    def truncate(self, slot: int, length: int) -> int:
        if length < self._lengths[slot]:
            if not self._can_rewind:
                length = 0
            self._cut(slot, length)
            if length and self._lacks_window(slot, length):
                length = 0
                self._cut(slot, 0)
            self._lengths[slot] = length
        return self._lengths[slot]

    def usable_prefix(self, held: int, length: int) -> int:
        if length >= held:
            return held
        return length if self._can_rewind and held <= (self._window or held) else 0

    def save(self, slot: int) -> bytearray:
        size = lib.llama_state_seq_get_size(self._context, slot)
        try:
            state = bytearray(size)
        except MemoryError:
            raise EngineFailed(f"not enough memory for a state of {size} bytes") from None
        if lib.llama_state_seq_get_data(self._context, _bytes_of(state), size, slot) != size:
            raise EngineFailed("llama.cpp could not save the state of a sequence")
        return state

    def load(self, slot: int, state: bytearray) -> None:
        self.truncate(slot, 0)
        size = len(state)
        read = lib.llama_state_seq_set_data(self._context, _bytes_of(state), size, slot)
        if read != size or not size:
            self._cut(slot, 0)
            raise EngineFailed("llama.cpp could not load the state of a sequence")
        self._lengths[slot] = lib.llama_memory_seq_pos_max(self._memory, slot) + 1

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        return self._embedder.embed(tokens, position, is_last=is_last)

    def interrupt(self) -> None:
        self._abort.set()

    def resume(self) -> None:
        self._abort.clear()

    def warm_up(self) -> None:
        """Process one token, to allocate all buffers and to detect a damaged file.

        Raises ConfigurationError if the logits are not those of a distribution.
        """
        self.decode([Feed(0, [next(iter(self._vocabulary.ends), 0)], 0, wants_logits=True)])
        logits = self._logits(self._batch.logits_at[0])
        if not np.isfinite(logits.sum()) or logits.min() == logits.max():
            raise ConfigurationError(
                f"{self._name} is damaged: the model computes no usable numbers"
            )
        self.truncate(0, 0)

    def _undo(self, feeds: Sequence[Feed]) -> None:
        """Remove what a failed or interrupted decode has processed of the feeds."""
        for feed in feeds:
            length = feed.position if self._can_rewind else 0
            self._cut(feed.slot, length)
            self._lengths[feed.slot] = length

    def _lacks_window(self, slot: int, length: int) -> bool:
        """Whether the token after `length` tokens would look back at tokens that are gone.

        With a sliding window llama.cpp neither keeps nor saves the tokens outside of the last
        token's window.
        """
        first: int = lib.llama_memory_seq_pos_min(self._memory, slot)
        return first < 0 or first > max(0, length - self._window)

    def _cut(self, slot: int, length: int) -> None:
        """Remove the slot's tokens from `length` on."""
        lib.llama_memory_seq_rm(self._memory, slot, length, -1)

    def _logits(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits at an index of the batch, as a view of llama.cpp's own buffer."""
        pointer = lib.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self._vocabulary.size,))


class AbortFlag:
    """Ends a running decode early, or the next one at once. It costs nothing until it is set.

    llama.cpp calls its abort callback before each of the hundreds of operations of a decode. A
    Python function would take longer than the operations. So the callback is the C function
    strlen on a buffer that contains "" or "x", which returns 0 or 1.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._text = ctypes.create_string_buffer(2)
        self._never = ctypes.create_string_buffer(1)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
        self._is_watched: bool | None = None

    def watch(self, interruptible: bool) -> None:
        """Say whether the flag has an effect on the next decode."""
        if interruptible != self._is_watched:
            self._is_watched = interruptible
            text = self._text if interruptible else self._never
            lib.llama_set_abort_callback(self._context, self._strlen, ctypes.addressof(text))

    def set(self) -> None:
        self._text[0] = b"x"

    def clear(self) -> None:
        self._text[0] = b"\0"


def _bytes_of(state: bytearray) -> Any:
    """The state as a ctypes array that shares its memory."""
    return (ctypes.c_uint8 * len(state)).from_buffer(state)


def model_card(model: Any, path: Path, vocabulary: Vocabulary) -> ModelCard:
    """The card of the model."""
    return gguf_card(
        path,
        read_gguf_header(path),
        bos=vocabulary.name(vocabulary.bos),
        eos=vocabulary.name(vocabulary.eos),
        control=sorted({name.decode(errors="replace") for name in vocabulary.control.values()}),
        parameters=lib.llama_model_n_params(model),
    )
