"""The interface of all engines: one abstract class, whose optional methods refuse by default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from shared.errors import EngineFailed
from shared.sampling import SamplingParams
from shared.values import Logprobs, ModelInfo

Sampler: TypeAlias = Any
"""Chooses the tokens of one sequence. Each engine makes its own kind, opaque to everyone else."""


class Feed(NamedTuple):
    """Tokens to process next in `slot`. The first of them has `position` in its sequence.

    A tuple for speed: a step makes one for every sequence.
    """

    slot: int
    tokens: Sequence[int]
    position: int
    wants_logits: bool
    """Whether `sample` will be called for this slot after the decode."""


class Interrupted(Exception):
    """A decode was interrupted. Its feeds count as not processed, and may be fed again."""


class Engine(ABC):
    """What a loaded model can do, without any policy.

    One thread owns the engine and calls its methods one at a time. Any other thread may call
    `tokenize`, `piece`, `is_end`, `sampler` and `interrupt` at any time, also while a decode
    runs or another thread calls the same method, and may read the attributes. A sampler may be
    made in one thread and used in another.

    The methods for states, log probabilities, embeddings and interrupts are optional. Their
    defaults here are those of an engine that supports none of this.
    """

    info: ModelInfo
    """What the model is, and what the engine supports."""
    max_batch: int
    """The most tokens that the feeds of one decode may hold together."""
    state_format: str = ""
    """What a saved state must match besides the model file. Empty: states cannot be saved."""

    @abstractmethod
    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        """The text's tokens. Thread-safe.

        `is_start`: the text begins a sequence, so it gets a BOS if the model wants one and the
        text does not begin with one.
        `continues`: the text stands directly behind other text, so no space is put before it.

        Raises ContextTooShort if the text cannot fit into the context and the engine can tell so
        without much work. Raises InvalidRequest if the text has no tokens and does not continue
        another text.
        """

    @abstractmethod
    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        """The token's bytes, which may be a part of a UTF-8 character. Thread-safe.

        A control token has no bytes; with `shows_control` its name is returned.
        """

    @abstractmethod
    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation. Thread-safe."""

    @abstractmethod
    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A sampler for a sequence that begins with `prompt`. Thread-safe.

        Raises InvalidRequest for parameters that do not fit the model.
        """

    @abstractmethod
    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        """Process the feeds, at most one for each slot: single tokens, or chunks of prompts.

        `interruptible`: the decode may end early after a call of `interrupt`.
        `width`: the recommended number of single tokens in a batch. The engine may add idle slots
        to the batch to reach it, if that leaves no trace.

        Raises EngineFailed, which concerns all feeds, and Interrupted.
        """

    @abstractmethod
    def sample(self, slot: int, sampler: Sampler) -> int:
        """The next token of the slot, whose last feed wanted logits. Raises EngineFailed."""

    @abstractmethod
    def truncate(self, slot: int, length: int) -> int:
        """Cut the slot's sequence to `length` tokens or fewer. Returns its new length.

        The next feed of the slot has that position. At 0 the slot is empty.
        """

    def usable_prefix(self, held: int, length: int) -> int:
        """Usable prefix length after loading a state of `held` tokens and truncating it to
        `length`: 0, `length` or `held`. Default: any prefix is usable."""
        return min(held, length)

    def save(self, slot: int) -> bytearray:
        """The state after the slot's tokens, for any slot. Raises EngineFailed."""
        raise EngineFailed(f"the {self.info.engine} engine cannot save what it has processed")

    def load(self, slot: int, state: bytearray) -> None:
        """Replace what the slot holds by a saved state.

        Raises EngineFailed if the state does not fit. The slot is empty then.
        """
        raise EngineFailed(f"the {self.info.engine} engine cannot load what was processed before")

    def logprobs(self, slot: int, token: int, top: int) -> Logprobs:
        """The log probabilities of the token just sampled and of the `top` likeliest tokens.

        Valid until the next decode. Only engines whose `info.sampling` contains "logprobs" have
        them.
        """
        raise EngineFailed(f"the {self.info.engine} engine has no log probabilities")

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        """Process the next part of the text that is being embedded, independently of all slots.

        `position`: of the part's first token in the text. At 0 a new text begins.
        Returns the text's vector after the last part, in the format of Embedded; b"" before.
        Only engines with a positive `info.embedding` make embeddings. Raises EngineFailed.
        """
        raise EngineFailed(f"the {self.info.engine} engine makes no embeddings")

    def interrupt(self) -> None:  # noqa: B027  an optional method
        """Make interruptible decodes end early until `resume` is called. Thread-safe.

        Default: decodes always run to their end.
        """

    def resume(self) -> None:  # noqa: B027
        """Revoke an `interrupt`."""
