"""The engine for GGML-era files, and for llama and falcon GGUF, on the ctransformers library.

It runs one model with one context and one sequence at a time. The library's own generation loop is
not used, because it evaluates a whole prompt in one call, uses the same random seed for every
token, and drops bytes that are not whole characters. This file calls the library's C functions.

Threads: the library's tokenizers only read the vocabulary, which no evaluation changes, so a prompt
may be tokenized while another thread decodes. Two tokenizations must not run at the same time,
because the falcon tokenizer inserts into shared tables; a lock prevents this. The pieces of all
tokens are read while loading, because the library returns them in a buffer that calls share.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctransformers.llm import LLM, Config

from shared.errors import ConfigurationError, ContextTooShort, EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from shared.settings import ModelSettings
from shared.values import ModelCard, ModelInfo
from workers.engines.base import Engine, Feed
from workers.engines.continued_text import continued
from workers.machine.cpu_features import cpu_features
from workers.model_files.card import file_size, gguf_card
from workers.model_files.gguf_header import read_gguf_header
from workers.model_files.magic import GGUF_MAGIC

DEFAULT_BATCH = 8
MAX_BATCH = 512
"""The most tokens of one evaluation: the library's llama has buffers for this number."""
PART = 1000
"""The most bytes of a text that the library may split into words at once."""
WORD_START = re.compile(rb"\S \S")
WHOLE_TEXT_TOKENIZERS = ("llama", "falcon", "replit")
"""Architectures whose tokenizers are fast on any text, and need it as a whole."""
LLAMA_NAMES = {1: b"<s>", 2: b"</s>"}
"""Names of the tokens that begin and end a sequence, in all llama vocabularies with these ids."""
FORBIDDEN = -1e30
"""A logit that is never chosen."""


def load(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None]
) -> CtransformersEngine:
    """Load the model. Raises ConfigurationError if the library refuses it.

    The library reports no progress, so `on_progress` is never called.
    """
    if settings.kv_type != "f16":
        raise ConfigurationError(
            f"the ctransformers engine stores the KV cache as f16; it has no {settings.kv_type}"
        )
    if settings.slots not in (None, 1):
        raise ConfigurationError(
            "the ctransformers engine runs one stream per worker: --slots must be 1;"
            " use more --workers for more streams"
        )
    config = Config(context_length=settings.context, threads=threads, mlock=settings.mlock)
    try:
        model = LLM(str(settings.path), settings.model_type, config=config, lib=library_build())
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(f"ctransformers cannot load {settings.path}: {error}") from None
    engine = CtransformersEngine(model, threads, settings.batch or DEFAULT_BATCH, model_card(model))
    engine.warm_up(str(settings.path))
    return engine


def library_build() -> str | None:
    """The library's fastest build for this CPU; None: let the library choose.

    The library would choose the same one on x86, but takes more than a second to do so.
    """
    features = cpu_features()
    if "avx2" in features:
        return "avx2"
    return "avx" if "avx" in features and "f16c" in features else None


def model_card(model: LLM) -> ModelCard:
    """The model's card. A GGML file contains none of it, so only its size is known."""
    path = Path(model.model_path)
    names = control_names(model)
    bos, eos = (names.get(t, b"").decode() for t in (model.bos_token_id, model.eos_token_id))
    control = tuple(name for name in (bos, eos) if name)
    with path.open("rb") as file:
        is_gguf = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    if not is_gguf:
        return ModelCard(size=file_size(path), bos=bos, eos=eos, control=control)
    return gguf_card(path, read_gguf_header(path), bos=bos, eos=eos, control=control)


def control_names(model: LLM) -> dict[int, bytes]:
    """The names of control tokens in prompts, by token. The library itself does not know them."""
    ids = (model.bos_token_id, model.eos_token_id)
    return LLAMA_NAMES if model.model_type == "llama" and set(ids) <= set(LLAMA_NAMES) else {}


def split_text(data: bytes) -> list[bytes]:
    """Cut a text into parts of at most PART bytes where words begin, or within a longer word.

    The library finds words with a recursive regular expression: 20,000 letters in a row take a
    quarter of a minute, and 40,000 overflow the stack. A cut before a word's own space does not
    change any token.
    """
    parts = []
    while len(data) > PART:
        found = [match.start() + 1 for match in WORD_START.finditer(data, 0, PART + 1)]
        end = found[-1] if found else character_start(data, PART)
        parts.append(data[:end])
        data = data[end:]
    return [*parts, data]


def character_start(data: bytes, position: int) -> int:
    """The index of the first byte of the UTF-8 character that contains the byte `position`."""
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


class CtransformersSampler:
    """Samples one sequence with the library's sampler, with a new seed for every token."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocabulary: int) -> None:
        self.recent: deque[int] = deque(prompt, maxlen=params.repeat_last_n)
        self.penalty = params.repeat_penalty
        self.ignore_eos = params.ignore_eos
        self._random = random.Random(params.seed)
        greedy = params.temp == 0
        # The library divides by the temperature, and does not check top_k against the vocabulary.
        self.temp = 1.0 if greedy else params.temp
        self.top_k = 1 if greedy else min(params.top_k or vocabulary, vocabulary)
        self.top_p = params.top_p

    def seed(self) -> int:
        return self._random.getrandbits(31)


class CtransformersEngine(Engine):
    """The engine that the module's docstring describes."""

    max_batch = MAX_BATCH

    def __init__(self, model: LLM, threads: int, batch: int, card: ModelCard) -> None:
        self._model = model
        self._lib: Any = model._lib
        self._llm = model._llm
        self._tokenizing = threading.Lock()
        self._threads = threads
        self._length = 0
        self._eos = model.eos_token_id
        self._vocabulary = model.vocab_size
        self._pieces = [self._detokenize(token) for token in range(self._vocabulary)]
        self._control = control_names(model)
        self._tokens = {name: token for token, name in self._control.items()}
        self._longest_piece = max(map(len, (*self._pieces, *self._tokens)))
        text = b"".join(self._pieces[token] for token in self._plain(b"a"))
        self._adds_space = text.startswith(b" ")
        self.info = ModelInfo(
            engine="ctransformers",
            architecture=model.model_type,
            context=model.context_length,
            vocabulary=self._vocabulary,
            slots=1,
            batch=min(batch, MAX_BATCH),
            sampling=(
                "num_predict",
                "n_batch",
                "top_k",
                "top_p",
                "temp",
                "repeat_penalty",
                "repeat_last_n",
                "seed",
                "ignore_eos",
                "stop",
            ),
            card=card,
        )

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        data = text.encode()
        least = len(data) // self._longest_piece
        if least >= self.info.context:  # such texts could overflow the library's stack, too
            raise ContextTooShort(
                f"the prompt has at least {least} tokens; the context holds {self.info.context}"
            )
        if continues:
            return continued(self._tokenize, data) if self._adds_space else self._tokenize(data)
        tokens = self._tokenize(data)
        bos = self._model.bos_token_id
        if is_start and self._model.model_type == "llama" and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        if not tokens:
            raise InvalidRequest("the prompt has no tokens in this model's vocabulary")
        return tokens

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        if shows_control and token in self._control:
            return self._control[token]
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        return bool(self._lib.ctransformers_llm_is_eos_token(self._llm, token))

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> CtransformersSampler:
        return CtransformersSampler(params, prompt, self._vocabulary)

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        (feed,) = feeds
        count = len(feed.tokens)
        tokens = (ctypes.c_int * count)(*feed.tokens)
        if not self._lib.ctransformers_llm_batch_eval(
            self._llm, tokens, count, feed.position, count, self._threads
        ):
            raise EngineFailed("the model failed to process these tokens")
        self._length = feed.position + count

    def sample(self, slot: int, sampler: CtransformersSampler) -> int:
        if sampler.ignore_eos:
            self._forbid_end()
        count = len(sampler.recent)
        token: int = self._lib.ctransformers_llm_sample(
            self._llm,
            (ctypes.c_int * count)(*sampler.recent),
            count,
            sampler.top_k,
            sampler.top_p,
            sampler.temp,
            sampler.penalty,
            sampler.seed(),
        )
        sampler.recent.append(token)
        return token

    def truncate(self, slot: int, length: int) -> int:
        """Changes only the length: the next feed overwrites the context from its position on."""
        self._length = min(length, self._length)
        return self._length

    def warm_up(self, name: str) -> None:
        """Process one token, to allocate all buffers and to detect a damaged file.

        Raises ConfigurationError if the logits are not those of a distribution.
        """
        self.decode([Feed(0, [self._model.bos_token_id], 0, wants_logits=True)])
        logits = list(self._model.logits)
        if not math.isfinite(sum(logits)) or min(logits) == max(logits):
            raise ConfigurationError(
                f"{name} is damaged or cut: the model computes no usable numbers"
            )

    def _tokenize(self, data: bytes) -> list[int]:
        """Tokens of a text in which the names of control tokens stand for these tokens."""
        tokens: list[int] = []
        for part in self._split_at_names(data):
            if part in self._tokens:
                tokens.append(self._tokens[part])
            elif self._model.model_type in WHOLE_TEXT_TOKENIZERS:
                tokens += self._plain(part)
            else:
                for short in split_text(part):
                    tokens += self._plain(short)
        return tokens

    def _split_at_names(self, data: bytes) -> list[bytes]:
        if not self._tokens:
            return [data]
        names = b"|".join(map(re.escape, self._tokens))
        return [part for part in re.split(b"(" + names + b")", data) if part]

    def _plain(self, data: bytes) -> list[int]:
        # One token per byte and a leading space must fit: the library does not check.
        buffer = (ctypes.c_int * (len(data) + 8))()
        with self._tokenizing:
            count = self._lib.ctransformers_llm_tokenize(self._llm, data, False, buffer)
        return buffer[:count]

    def _forbid_end(self) -> None:
        """Make the end token impossible, in the library's own buffer of the last logits."""
        logits = self._lib.ctransformers_llm_logits_data(self._llm)
        size = self._lib.ctransformers_llm_logits_size(self._llm)
        logits[size - self._vocabulary + self._eos] = FORBIDDEN

    def _detokenize(self, token: int) -> bytes:
        if token in (self._model.bos_token_id, self._eos):
            return b""  # some formats have a text for them, such as "<s>"
        piece: bytes = self._lib.ctransformers_llm_detokenize(self._llm, token)
        return piece
