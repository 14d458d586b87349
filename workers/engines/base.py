"""The Engine protocol, the table of engines, and the choice of one for a file.

Only this module's table names the engines; each is imported in the worker that
runs it, never in the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shared.sampling import SamplingParams
from shared.values import Logprobs, ModelInfo


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
    """What a loaded model can do, without any policy.

    One thread calls it, except for `info`, `tokenize`, `piece` and `sampler`, which several threads
    may call at once while another one decodes, and `interrupt`.
    """

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

    def truncate(self, slot: int, length: int) -> int:
        """Cut the slot's sequence to `length` tokens, or fewer; return how many it has now.

        What follows is fed at that position. 0: the slot is empty, and has no sequence.
        """

    def usable_prefix(self, held: int, length: int) -> int:
        """Usable prefix length after loading a state of `held` tokens and truncating it to
        `length`: 0, `length` or `held`."""

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
        """Until `resume`, let decodes that may be interrupted return early, where it can."""

    def resume(self) -> None:
        """Take back an `interrupt`."""
