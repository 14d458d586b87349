"""Every current GGUF, many sequences at once, through llama.cpp's own C interface.

llama-cpp-python's bindings are used, one to one with llama.h; its high-level class is not: it
runs one sequence and is not safe with threads. A slot is a llama.cpp sequence id, with KV cells
of its own, so no sequence looks at the cells of another.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from shared.errors import (
    ConfigurationError,
    EngineFailed,
)
from shared.sampling import SamplingParams
from shared.settings import KvType, ModelSettings
from shared.values import Candidate, Logprobs, ModelCard, ModelInfo
from workers.engines.base import Feed, Interrupted
from workers.engines.llama_cpp.embedding import PART, Embedder, embedding_size
from workers.engines.llama_cpp.sampling import SamplerChain, build_chain
from workers.engines.llama_cpp.vocabulary import Vocabulary, metadata
from workers.engines.memory_plan import PADDING, slots_for
from workers.machine.memory import available_memory
from workers.model_files.card import gguf_card
from workers.model_files.gguf_header import KV_ELEMENT_BYTES, read_gguf_header

BATCH = 512
"""Tokens of a step at the most. Larger ones bring nothing: the weights are read once for all."""
ATTENTION_BYTES = 32 * 2**20
"""For the attention scores of all heads, which should stay in the caches: what a step carries is
computed in parts. Of 900 tokens of 1.1 billion weights parts of 128 took 11.7 s, of 512 12.6 s."""
SMALLEST_PART = 64
MOST_FILLERS = 4
"""Idle slots between two that decode which are fed along: as many tokens cost less than reading
the weights once more."""
MOST_CELLS = 2**31 - 1
KV_TYPES: dict[KvType, int] = {"f16": 1, "f32": 0, "q8_0": 8}
"""ggml's number of each type."""
LONGEST_LINE = 1000
"""Characters of what llama.cpp logs."""
LOG_LEVELS = {3: logging.WARNING, 4: logging.WARNING}
"""ggml's warnings and errors; all else it says is for debugging."""
ERROR_LEVEL = 4
ABORTED = 2

logger = logging.getLogger("tokenflume.llama_cpp")


def load(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None]
) -> LlamaCppEngine:
    """Load the model. Raises ConfigurationError when llama.cpp refuses it or memory is short."""
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


class NativeLog:
    """Takes what llama.cpp logs, until another one does."""

    def __init__(self) -> None:
        self.is_loading = True
        """What goes wrong is raised then, and need not be logged, too."""
        self.first_error = ""
        """The one that tells the reason; those that follow tell what it led to."""
        self._callback = lib.llama_log_callback(self._log)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))
        # The library may log as long as the process lives, also when no engine is left.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._callback))

    def _log(self, level: int, text: bytes, _: ctypes.c_void_p) -> None:
        line = one_line(text)
        if level == ERROR_LEVEL and not self.first_error:
            self.first_error = line
        # It shows progress in dots; of a context beyond the training's the front warns, and it is
        # meant that outputs are not pooled.
        if line.strip(".") and "n_ctx_train" not in line and "default pooling_type" not in line:
            usual = LOG_LEVELS.get(level, logging.DEBUG)
            logger.log(logging.DEBUG if self.is_loading else usual, "%s", line)


def one_line(text: bytes) -> str:
    """What llama.cpp says, without the line ends and the length of what it cites from files."""
    line = text.decode(errors="replace").strip()[:LONGEST_LINE]
    return "".join(character if character.isprintable() else " " for character in line)


def load_model(
    settings: ModelSettings, log: NativeLog, on_progress: Callable[[float], None] = lambda _: None
) -> Any:
    """llama.cpp's model, its weights mapped so that workers share them. ConfigurationError."""

    def report(progress: float, _: ctypes.c_void_p) -> bool:
        on_progress(progress)
        return True  # go on

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
    """What keeps a model from continuing a text, in words; empty for a fit one."""
    if lib.llama_model_has_encoder(model):
        return "has an encoder, and only models that are decoders alone can be served"
    if not lib.llama_model_has_decoder(model):
        return "makes no text: it has no decoder"
    if lib.llama_model_is_diffusion(model):
        return "is a diffusion model, which does not write token after token"
    if lib.llama_vocab_type(lib.llama_model_get_vocab(model)) == lib.LLAMA_VOCAB_TYPE_NONE:
        return "has no vocabulary"
    return ""


def kv_bytes_per_token(model: Any, settings: ModelSettings) -> float:
    """Bytes of one token's keys and values over all layers: what the file's header says.

    Where it does not, as when layers differ, as if each were as wide as the model: the most.
    """
    element = KV_ELEMENT_BYTES[settings.kv_type]
    said = read_gguf_header(Path(str(settings.path))).kv_bytes_per_token(element)
    widest: float = 2 * lib.llama_model_n_layer(model) * lib.llama_model_n_embd(model) * element
    return widest if said is None else said


def check_memory(settings: ModelSettings, slots: int, slot_bytes: float) -> None:
    """Raise ConfigurationError for a cache that llama.cpp cannot count or the memory not hold."""
    what = (
        f"{slots} slots × {settings.context} tokens of context need about"
        f" {slots * slot_bytes / 2**20:,.0f} MiB for keys and values"
    )
    if cells_for(settings, slots) > MOST_CELLS:
        raise ConfigurationError(f"{what}: llama.cpp has at most {MOST_CELLS} tokens for all slots")
    if settings.kv_memory is not None and slots * slot_bytes > 2 * settings.kv_memory:
        raise ConfigurationError(f"{what}: {2 * settings.kv_memory / 2**20:,.0f} MiB are left")


def cells_for(settings: ModelSettings, slots: int) -> int:
    """Tokens that the KV cache holds, for all slots."""
    return slots * -(-settings.context // PADDING) * PADDING


def context_params(model: Any, settings: ModelSettings, slots: int, threads: int) -> Any:
    """llama.cpp's settings of a context for so many slots."""
    params = lib.llama_context_default_params()
    params.n_ctx = cells = cells_for(settings, slots)
    params.n_batch = BATCH
    params.n_ubatch = part_for(lib.llama_model_n_head(model) * cells // slots)
    params.n_seq_max = slots
    params.n_outputs_max = slots
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    # On CPUs it is slower for all but large chunks of deep prompts; quantized values need it.
    params.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if settings.kv_type == "q8_0"
        else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.kv_unified = False
    params.no_perf = True
    return params


def make_context(model: Any, params: Any, log: NativeLog) -> Any:
    """llama.cpp's context with its KV cache. Raises ConfigurationError."""
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConfigurationError(f"llama.cpp cannot make a context: {log.first_error}")
    return context


def make_embedding_context(
    model: Any, settings: ModelSettings, threads: int, log: NativeLog
) -> Any:
    """A context of one slot whose outputs are hidden states. Raises EngineFailed."""
    slot_bytes = kv_bytes_per_token(model, settings) * settings.context
    left = available_memory()
    if left is not None and slot_bytes > left:
        raise EngineFailed(
            f"there is no memory to embed with: {slot_bytes / 2**20:,.0f} MiB are needed,"
            f" {left / 2**20:,.0f} are left"
        )
    params = context_params(model, settings, 1, threads)
    params.n_batch = params.n_ubatch = params.n_outputs_max = PART
    params.embeddings = True
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    try:
        return make_context(model, params, log)
    except ConfigurationError as error:
        raise EngineFailed(str(error)) from None


def part_for(scores: int) -> int:
    """Tokens that are computed at once, when each has so many attention scores: a power of two."""
    part = BATCH
    while part > SMALLEST_PART and part * scores * ctypes.sizeof(ctypes.c_float) > ATTENTION_BYTES:
        part //= 2
    return part


class LlamaCppEngine:
    """See the module's docstring.

    Threads: as Engine says. llama.cpp's tokenizers and samplers only read the vocabulary, and keep
    what they change in objects of the call.
    """

    max_batch = BATCH

    def __init__(
        self, model: Any, context: Any, settings: ModelSettings, slots: int, log: NativeLog
    ) -> None:
        self._model = model
        self._context = context
        self._log = log
        self._name = str(settings.path)
        self._memory = lib.llama_get_memory(context)
        self._vocabulary = Vocabulary(model, settings.context)
        self._batch = Batch(BATCH, slots)
        self._lengths = [0] * slots
        self._cells: int = lib.llama_n_ctx_seq(context)
        self._can_take_back = not (
            lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        )
        self.state_format = f"llama.cpp {lib.__version__}, {settings.kv_type}"
        self._window: int = lib.llama_model_n_swa(model)
        self._abort = AbortFlag(context)
        threads: int = lib.llama_n_threads(context)
        self._embedder = Embedder(
            model, lambda: make_embedding_context(model, settings, threads, log)
        )
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
        return token in self._vocabulary.ends

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> SamplerChain:
        return build_chain(params, prompt, vocab=self._vocabulary, context=self.info.context)

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        feeds = sorted(feeds)  # by slot: llama.cpp takes neighbours together, in their order
        fillers = self._fillers(feeds, width)
        batch = self._batch.fill(sorted(feeds + fillers) if fillers else feeds)
        self._abort.watch(interruptible and self._can_take_back)
        status = lib.llama_decode(self._context, batch)
        for filler in fillers:
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
            if not self._can_take_back:
                length = 0
            self._cut(slot, length)
            if length and self._misses_some(slot, length):
                length = 0
                self._cut(slot, 0)
            self._lengths[slot] = length
        return self._lengths[slot]

    def usable_prefix(self, held: int, length: int) -> int:
        if length >= held:
            return held
        return length if self._can_take_back and held <= (self._window or held) else 0

    def save(self, slot: int) -> bytearray:
        size = lib.llama_state_seq_get_size(self._context, slot)
        try:
            state = bytearray(size)
        except MemoryError:
            raise EngineFailed(f"there is no memory for a state of {size} bytes") from None
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
        """Run one token through the model: buffers get their size, a damaged file shows itself.

        Raises ConfigurationError when what comes out is not a distribution.
        """
        self.decode([Feed(0, [next(iter(self._vocabulary.ends), 0)], 0, wants_logits=True)])
        logits = self._logits(self._batch.logits_at[0])
        if not np.isfinite(logits.sum()) or logits.min() == logits.max():
            raise ConfigurationError(f"{self._name} is damaged: the model computes no numbers")
        self.truncate(0, 0)

    def _fillers(self, feeds: Sequence[Feed], width: int) -> list[Feed]:
        """Tokens of idle slots to compute along, and to take back.

        llama.cpp computes sequences together, with one reading of the weights, only if their
        numbers follow each other without a gap and each has equally many tokens.
        """
        first, last = feeds[0].slot, feeds[-1].slot
        is_gapless = last - first + 1 == len(feeds)
        if is_gapless and len(feeds) >= width:
            return []
        if not self._can_take_back or any(len(feed.tokens) > 1 for feed in feeds):
            return []
        slots = [
            slot
            for before, after in itertools.pairwise(feeds)
            if after.slot - before.slot - 1 <= MOST_FILLERS
            for slot in range(before.slot + 1, after.slot)
        ]
        beside = [*range(last + 1, len(self._lengths)), *range(first - 1, -1, -1)]
        slots += beside[: max(0, width - len(feeds) - len(slots))]
        return [
            Feed(slot, feeds[0].tokens, self._lengths[slot], wants_logits=False)
            for slot in slots
            if self._lengths[slot] < self._cells
        ]

    def _undo(self, feeds: Sequence[Feed]) -> None:
        """Take back what a decode that did not end well has processed of the feeds."""
        for feed in feeds:
            length = feed.position if self._can_take_back else 0
            self._cut(feed.slot, length)
            self._lengths[feed.slot] = length

    def _misses_some(self, slot: int, length: int) -> bool:
        """Whether the next token would look back at some that are not there any more: with a
        sliding window llama.cpp neither keeps nor saves those that the last one does not see."""
        first: int = lib.llama_memory_seq_pos_min(self._memory, slot)
        return first < 0 or first > max(0, length - self._window)

    def _cut(self, slot: int, length: int) -> None:
        """Let the slot's sequence have so many tokens."""
        lib.llama_memory_seq_rm(self._memory, slot, length, -1)

    def _logits(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits of a place in the batch, where llama.cpp has them: not a copy."""
        pointer = lib.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self._vocabulary.size,))


class Batch:
    """llama.cpp's batch over arrays of our own, which are filled a slice at a time."""

    def __init__(self, size: int, slots: int) -> None:
        self.logits_at = [0] * slots
        """Where in the batch the logits of each slot are, if its feed wanted them."""
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._wants = (ctypes.c_int8 * size)()
        self._one = (ctypes.c_int32 * size)(*[1] * size)
        self._slots = (ctypes.c_int32 * slots)(*range(slots))
        first = ctypes.addressof(self._slots)
        width = ctypes.sizeof(ctypes.c_int32)
        self._slot_pointers = [first + width * slot for slot in range(slots)]
        self._sequences = (ctypes.c_size_t * size)()
        self._batch = lib.llama_batch(
            0,
            self._tokens,
            None,
            self._positions,
            self._one,
            ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self._wants,
        )

    def fill(self, feeds: Iterable[Feed]) -> Any:
        """The feeds as one llama_batch, which stays valid until the next call."""
        tokens: list[Any] = []
        positions: list[Any] = []
        sequences: list[Any] = []
        wants: list[Any] = []
        for slot, more, position, wants_logits in feeds:
            if len(more) == 1:
                tokens.append(more[0])
                positions.append(position)
                sequences.append(self._slot_pointers[slot])
                wants.append(wants_logits)
            else:
                tokens += more
                positions += range(position, position + len(more))
                sequences += [self._slot_pointers[slot]] * len(more)
                wants += [0] * (len(more) - 1)
                wants.append(wants_logits)
            self.logits_at[slot] = len(tokens) - 1
        end = self._batch.n_tokens = len(tokens)
        self._tokens[:end] = tokens
        self._positions[:end] = positions
        self._sequences[:end] = sequences
        self._wants[:end] = wants
        return self._batch


class AbortFlag:
    """Makes a running decode return early, or the next one at once; costs nothing until set.

    llama.cpp asks its abort callback before each operation of a decode, some hundred times. A
    Python function would cost more than the operations; strlen on a buffer that holds "" or "x"
    is native, and answers 0 or 1.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._text = ctypes.create_string_buffer(2)
        self._never = ctypes.create_string_buffer(1)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
        self._is_watched: bool | None = None

    def watch(self, interruptible: bool) -> None:
        """Whether the flag counts in the next decode."""
        if interruptible != self._is_watched:
            self._is_watched = interruptible
            text = self._text if interruptible else self._never
            lib.llama_set_abort_callback(self._context, self._strlen, ctypes.addressof(text))

    def set(self) -> None:
        self._text[0] = b"x"

    def clear(self) -> None:
        self._text[0] = b"\0"


def _bytes_of(state: bytearray) -> Any:
    """The state's own memory, as ctypes wants it: no copy."""
    return (ctypes.c_uint8 * len(state)).from_buffer(state)


def model_card(model: Any, path: Path, vocabulary: Vocabulary) -> ModelCard:
    """What the model says of itself."""
    return gguf_card(
        path,
        read_gguf_header(path),
        bos=vocabulary.name(vocabulary.bos),
        eos=vocabulary.name(vocabulary.eos),
        control=sorted({name.decode(errors="replace") for name in vocabulary.control.values()}),
        parameters=lib.llama_model_n_params(model),
    )
