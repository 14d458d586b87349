"""The Engine protocol, the table of engines, and the choice of one for a file.

Only this module's table names the engines; each is imported in the worker that
runs it, never in the front.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from shared.errors import ConfigurationError
from shared.messages import Logprobs, ModelInfo
from shared.sampling import SamplingParams
from shared.settings import EngineName, ModelSettings
from workers.gguf_header import read_gguf_header

GGUF_MAGIC = b"GGUF"
GGML_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")
"""ggml, ggjt, ggmf and ggla, as little-endian integers on disk."""
INSTALL_LLAMA_CPP = "pip install 'tokenflume[llama]'"
CTRANSFORMERS_GGUF = {("llama", "llama"), ("falcon", "gpt2")}
"""(architecture, tokenizer) of the GGUF files that ctransformers runs."""
CTRANSFORMERS_TENSORS = frozenset((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
"""ggml's numbers of the tensor types it knows: F32 and F16, Q4_0 to Q8_1, Q2_K to Q8_K."""


class Feed(NamedTuple):
    """Tokens to process next in `slot`; the first of them stands at `position` of its sequence.

    A tuple, because a step makes one for every sequence.
    """

    slot: int
    tokens: Sequence[int]
    position: int
    wants_logits: bool
    """A sample of this slot follows."""


class Interrupted(Exception):
    """A decode was interrupted: its feeds count as not processed, and may be fed again."""


class Sampler(Protocol):
    """Chooses one sequence's tokens; made by an engine, opaque to everyone else."""


class Engine(Protocol):
    """What a loaded model can do, without any policy. Used from one thread."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def max_batch(self) -> int:
        """The most tokens that the feeds of one decode may hold together."""

    @property
    def state_format(self) -> str:
        """What its saved states fit to, besides the model file; empty: it can save none."""

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        """The text's tokens; at the start of a sequence with a BOS where the model wants one and
        the text has none. `continues`: directly behind other text, so without a space before it.

        Raises ContextTooShort when it can tell, without the work, that the text cannot fit into
        the context; InvalidRequest when the text has no tokens, unless it continues another.
        """

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        """The token's bytes: any part of UTF-8 text, also half a character.

        Of a control token none, or its name if it is to be shown.
        """

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A sampler for a sequence that begins with `prompt`.

        Raises InvalidRequest for parameters that do not fit the model.
        """

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        """Process the feeds, at most one a slot: a token of each sequence, or chunks of prompts.

        `width`: single tokens of so many sequences are best computed together, so idle slots may
        be computed along, where the engine can do that without a trace.
        Raises EngineFailed, for all of them; Interrupted, only if it may.
        """

    def sample(self, slot: int, sampler: Sampler) -> int:
        """The next token of the slot, whose last feed wanted logits. Raises EngineFailed."""

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        """Of the token just sampled, and of the `top` likeliest; before the next decode.

        Only asked of an engine whose `info.sampling` names "logprobs".
        """

    def keep(self, slot: int, length: int) -> int:
        """Cut the slot's sequence to so many tokens, or fewer; return how many it has now.

        What follows is fed at that position. 0: the slot is empty, and has no sequence.
        """

    def stays(self, held: int, length: int) -> int:
        """How many of the first `length` tokens stay when a saved state of `held` tokens is loaded
        and cut to them: all, none, or as many as it has."""

    def save(self, slot: int) -> bytearray:
        """The state behind the slot's tokens, for any slot. Raises EngineFailed."""

    def load(self, slot: int, state: bytearray) -> None:
        """Put a saved state in the place of what the slot holds. EngineFailed: it does not fit,
        and the slot is empty."""

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        """Process a part of the one text that is being embedded, beside all slots.

        Its first token stands at `position`; at 0 another text begins. After the last part the
        text's vector, as Embedded has it; before, nothing. Raises EngineFailed. Only asked of an
        engine that has `info.embedding`.
        """

    def interrupt(self) -> None:
        """Until `resume`, let decodes that may be interrupted return early, where it can.

        The one method for other threads.
        """

    def resume(self) -> None:
        """Take back an `interrupt`."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A row of the table of engines."""

    module: str
    """Has `load(settings, threads, on_progress) -> Engine`."""
    batches: bool
    """Runs many sequences in one step, so few large workers beat many small ones."""
    measured: bool = False
    """What a step takes depends on what it carries, and is measured when a worker starts."""


ENGINES: dict[EngineName, EngineEntry] = {
    "llama_cpp": EngineEntry("workers.engines.llama_cpp", batches=True, measured=True),
    "ctransformers": EngineEntry("workers.engines.ctransformers", batches=False),
    "echo": EngineEntry("workers.engines.echo", batches=True),
}


def choose_engine(path: Path, model_type: str | None) -> EngineName:
    """The engine for a model file, by its header and by what is installed.

    Raises ConfigurationError, in one sentence, for a file that is missing, not
    readable, empty, no model, headerless without a `model_type`, or one that
    only llama.cpp runs where that is not installed.
    """
    magic = _read_magic(path)
    if magic == GGUF_MAGIC:
        if has_llama_cpp():
            return "llama_cpp"
        return _without_llama_cpp(path)
    if magic in GGML_MAGICS:
        if model_type is None:
            raise ConfigurationError(
                f"{path} is a GGML file, which does not say its architecture:"
                " name it with --model-type (llama, gpt2, gptj, gpt_neox, mpt, starcoder, …)"
            )
        return "ctransformers"
    raise ConfigurationError(f"{path} is neither a GGUF nor a GGML file")


def has_llama_cpp() -> bool:
    """Whether the optional engine is installed; finds out without importing it."""
    return importlib.util.find_spec("llama_cpp") is not None


def _without_llama_cpp(path: Path) -> EngineName:
    """ctransformers, if it can run the GGUF. Raises ConfigurationError."""
    header = read_gguf_header(path)
    kind = (header.architecture, header.tokenizer)
    if kind in CTRANSFORMERS_GGUF and header.tensor_types <= CTRANSFORMERS_TENSORS:
        return "ctransformers"
    raise ConfigurationError(
        f"{path} ({' with the tokenizer '.join(name[:80] for name in kind)}) needs llama.cpp:"
        f" install it with {INSTALL_LLAMA_CPP}"
    )


def load_engine(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None] = lambda _: None
) -> Engine:
    """Load the model with its engine; in the worker only. Raises ConfigurationError.

    `on_progress` is told now and then which share of the model is there, in [0, 1].
    """
    module = importlib.import_module(ENGINES[settings.engine].module)
    return cast(Engine, module.load(settings, threads, on_progress))


def _read_magic(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigurationError(f"{path} is no regular file")  # a pipe would block us
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{path} cannot be read: {reason}") from None
    if not magic:
        raise ConfigurationError(f"{path} is empty")
    return magic
