"""GGML-era files, and llama and falcon GGUF, through the ctransformers library.

One model, one context, one sequence at a time. The library's own generation
loop is not used: it evaluates a whole prompt in one call, keeps one random
seed for every token, and drops bytes that are not whole characters. This file
calls the functions below it.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctransformers.llm import LLM, Config

from shared.errors import ConfigurationError, ContextTooShort, EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from shared.settings import ModelSettings
from shared.values import Logprobs, ModelCard, ModelInfo
from workers.engines.base import Feed
from workers.engines.continued_text import continued
from workers.machine.cpu_features import cpu_features
from workers.model_files.card import file_size, gguf_card
from workers.model_files.gguf_header import read_gguf_header
from workers.model_files.magic import GGUF_MAGIC

DEFAULT_BATCH = 8
MAX_BATCH = 512
"""Tokens: the buffers of the library's llama are sized for so many at once."""
PART = 1000
WORD_START = re.compile(rb"\S \S")
WHOLE_TEXT_TOKENIZERS = ("llama", "falcon", "replit")
"""Architectures whose tokenizers are fast on any text, and see it as a whole."""
LLAMA_NAMES = {1: b"<s>", 2: b"</s>"}
"""Of the tokens that begin and end a sequence, in all llama vocabularies with these ids."""


def load(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None]
) -> CtransformersEngine:
    """Load the model. Raises ConfigurationError when the library refuses it.

    The library says nothing of its progress.
    """
    if settings.kv_type != "f16":
        raise ConfigurationError(
            f"the ctransformers engine keeps keys and values as f16; it has no {settings.kv_type}"
        )
    if settings.slots not in (None, 1):
        raise ConfigurationError(
            "the ctransformers engine runs one stream in each worker: --slots must be 1;"
            " --workers gives it more"
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
    """Which of the library's builds this CPU runs best; None: let the library look.

    It would find the same on x86, but takes more than a second to.
    """
    features = cpu_features()
    if "avx2" in features:
        return "avx2"
    return "avx" if "avx" in features and "f16c" in features else None


def model_card(model: LLM) -> ModelCard:
    """What the file says; a GGML file tells nothing but its size."""
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
    """The names that stand for control tokens in a prompt: the library itself knows none."""
    ids = (model.bos_token_id, model.eos_token_id)
    return LLAMA_NAMES if model.model_type == "llama" and set(ids) <= set(LLAMA_NAMES) else {}


def split_text(data: bytes) -> list[bytes]:
    """Cut a text where a word begins, in parts of at most PART bytes; a longer word is cut too.

    The library splits words with a recursive regular expression: 20,000 letters in a row take
    it a quarter of a minute, 40,000 overflow its stack. A cut before a word's own space changes
    no token.
    """
    parts = []
    while len(data) > PART:
        found = [match.start() + 1 for match in WORD_START.finditer(data, 0, PART + 1)]
        end = found[-1] if found else character_start(data, PART)
        parts.append(data[:end])
        data = data[end:]
    return [*parts, data]


def character_start(data: bytes, position: int) -> int:
    """The first byte of the UTF-8 character that has the byte at `position`."""
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


class CtransformersSampler:
    """One sequence's choices: the library's sampler with a fresh seed for every token."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocabulary: int) -> None:
        self.recent: deque[int] = deque(prompt, maxlen=params.repeat_last_n)
        self.penalty = params.repeat_penalty
        self.ignore_eos = params.ignore_eos
        self._random = random.Random(params.seed)
        greedy = params.temp == 0
        # The library divides by the temperature and reads top_k entries, however many there are.
        self.temp = 1.0 if greedy else params.temp
        self.top_k = 1 if greedy else min(params.top_k or vocabulary, vocabulary)
        self.top_p = params.top_p

    def seed(self) -> int:
        return self._random.getrandbits(31)


class CtransformersEngine:
    """See the module's docstring.

    Threads: as Engine says, without a lock. The library's Tokenize changes nothing, and reads
    nothing but the vocabulary, which eval and sample do not change. Detokenize has a buffer of its
    own in the model, so the pieces of all tokens are read before the first request.
    """

    max_batch = MAX_BATCH
    state_format = ""

    def __init__(self, model: LLM, threads: int, batch: int, card: ModelCard) -> None:
        self._model = model
        self._lib: Any = model._lib
        self._llm = model._llm
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
        if least >= self.info.context:  # also spares the library texts that overflow its stack
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

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        raise EngineFailed("the ctransformers engine has no log probabilities")

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        raise EngineFailed("the ctransformers engine makes no embeddings")

    def interrupt(self) -> None:
        """It cannot: its chunks are short instead."""

    def resume(self) -> None:
        """Nothing to take back."""

    def truncate(self, slot: int, length: int) -> int:
        """What is fed next overwrites the context from its position on."""
        self._length = min(length, self._length)
        return self._length

    def usable_prefix(self, held: int, length: int) -> int:
        return min(held, length)

    def save(self, slot: int) -> bytearray:
        raise EngineFailed("the ctransformers engine cannot save what it has processed")

    def load(self, slot: int, state: bytearray) -> None:
        raise EngineFailed("the ctransformers engine cannot load what was processed before")

    def warm_up(self, name: str) -> None:
        """Run one token through the model: a cut file shows here, and buffers get their size.

        Raises ConfigurationError when what comes out is not a distribution.
        """
        self.decode([Feed(0, [self._model.bos_token_id], 0, wants_logits=True)])
        logits = list(self._model.logits)
        if not math.isfinite(sum(logits)) or min(logits) == max(logits):
            raise ConfigurationError(f"{name} is damaged or cut: the model computes no numbers")

    def _tokenize(self, data: bytes) -> list[int]:
        """The names of control tokens are these tokens; what is between them is text."""
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
        # Room for a token a byte and a leading space: the library does not look.
        buffer = (ctypes.c_int * (len(data) + 8))()
        count = self._lib.ctransformers_llm_tokenize(self._llm, data, False, buffer)
        return buffer[:count]

    def _forbid_end(self) -> None:
        """Make the end token impossible, in the library's own logits of the last position."""
        logits = self._lib.ctransformers_llm_logits_data(self._llm)
        size = self._lib.ctransformers_llm_logits_size(self._llm)
        logits[size - self._vocabulary + self._eos] = -1e30

    def _detokenize(self, token: int) -> bytes:
        if token in (self._model.bos_token_id, self._eos):
            return b""  # some formats have names for them, such as "<s>"
        piece: bytes = self._lib.ctransformers_llm_detokenize(self._llm, token)
        return piece
