"""The Engine protocol, the table of engines, and the choice of one for a file.

Only this module's table names the engines; each is imported in the worker that
runs it, never in the front.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from shared.errors import ConfigurationError
from shared.messages import ModelInfo
from shared.sampling import SamplingParams
from shared.settings import EngineName, ModelSettings

GGUF_MAGIC = b"GGUF"
GGML_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")
"""ggml, ggjt, ggmf and ggla, as little-endian integers on disk."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to process next in `slot`; the first of them stands at `position` of its sequence."""

    slot: int
    tokens: Sequence[int]
    position: int
    wants_logits: bool
    """A sample of this slot follows."""


class Sampler(Protocol):
    """Chooses one sequence's tokens; made by an engine, opaque to everyone else."""


class Engine(Protocol):
    """What a loaded model can do, without any policy. Used from one thread."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def max_batch(self) -> int:
        """The most tokens that one feed may hold."""

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens, with a leading BOS where the model wants one.

        Raises ContextTooShort when it can tell, without the work, that the text
        cannot fit into the context; InvalidRequest when the text has no tokens.
        """

    def piece(self, token: int) -> bytes:
        """The token's bytes: any part of UTF-8 text, also half a character."""

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A sampler for a sequence that begins with `prompt`."""

    def decode(self, feeds: Sequence[Feed]) -> None:
        """Process the feeds, at most one a slot. Raises EngineFailed, for all of them."""

    def sample(self, slot: int, sampler: Sampler) -> int:
        """The next token of the slot, whose last feed wanted logits. Raises EngineFailed."""

    def forget(self, slot: int) -> None:
        """The slot's sequence is over; another may begin at position 0."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A row of the table of engines."""

    module: str
    """Has `load(settings, threads) -> Engine`."""
    batches: bool
    """Runs many sequences in one step, so few large workers beat many small ones."""


ENGINES: dict[EngineName, EngineEntry] = {
    "ctransformers": EngineEntry("workers.engines.ctransformers", batches=False),
    "echo": EngineEntry("workers.engines.echo", batches=True),
}


def choose_engine(path: Path, model_type: str | None) -> EngineName:
    """The engine for a model file, by its first bytes.

    Raises ConfigurationError, in one sentence, for a file that is missing, not
    readable, empty, no model, or headerless without a `model_type`.
    """
    magic = _read_magic(path)
    if magic == GGUF_MAGIC:
        return "ctransformers"
    if magic in GGML_MAGICS:
        if model_type is None:
            raise ConfigurationError(
                f"{path} is a GGML file, which does not say its architecture:"
                " name it with --model-type (llama, gpt2, gptj, gpt_neox, mpt, starcoder, …)"
            )
        return "ctransformers"
    raise ConfigurationError(f"{path} is neither a GGUF nor a GGML file")


def load_engine(settings: ModelSettings, threads: int) -> Engine:
    """Load the model with its engine; in the worker only. Raises ConfigurationError."""
    module = importlib.import_module(ENGINES[settings.engine].module)
    return cast(Engine, module.load(settings, threads))


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
