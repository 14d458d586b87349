"""The messages between the front and a worker: a closed set, one frozen noun each.

Down, on a worker's request queue:  Generate, Embed, Tokenize, Cancel, DropPrompt, Shutdown.
Up, on its token queue:             Loading, Ready, LoadFailed, Tokens, Embedded, Tokenized,
                                    Finished, Failed, PromptSaved, PromptDropped, Steps,
                                    Heartbeat.

A request's life is one Generate, any number of Tokens, then exactly one Finished or Failed; or one
Embed, then Embedded and Finished, or Failed. Cancel asks for a Finished with reason "cancelled".
A Tokenize is answered by one Tokenized or Failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Counts, FinishReason, Logprobs, ModelInfo, StepKind, Timings, Usage


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt`. `id` is unique in the front's lifetime."""

    id: int
    prompt: Prompt
    sampling: SamplingParams
    prompt_id: int = 0
    """The client's name for the prompt, under which its state is saved; 0: it is not."""
    shows_control: bool = False
    """The answer's control tokens are in its text, by their names; else they have no text."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Turn `prompt` into a vector. `id` is unique in the front's lifetime, as all ids are."""

    id: int
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Say the tokens of `prompt`, and their bytes. Takes no slot."""

    id: int
    prompt: Prompt
    is_start: bool
    """As a sequence begins: with a BOS where the model wants one."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for request `id` any more."""

    id: int


@dataclass(frozen=True, slots=True)
class DropPrompt:
    """Forget what was saved under `prompt_id`."""

    prompt_id: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End now. The front has seen to it that nothing worth finishing is left."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A worker's model is being loaded: this share of it is there, in [0, 1]."""

    progress: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker's model is loaded, and it can serve. `load_s`: how long that took, in seconds."""

    protocol: int
    info: ModelInfo
    load_s: float
    prefix_tokens: int = 0
    """Tokens of --restore-prompt, which stand before each prompt that is not whole."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A worker's only message: its model cannot be loaded, and trying again will not help."""

    message: str


class Token(NamedTuple):
    """One generated token. A tuple, because the front makes tens of thousands a second."""

    request: int
    id: int
    position: int
    """0 for a request's first generated token."""
    text: str
    """Whole characters; empty where the token ends within one: the next ones complete it."""
    logprobs: Logprobs | None = None
    """None where the request did not ask for them."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens of one engine step, of all sequences."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vector of an Embed: little-endian float32 numbers, of length 1 together."""

    id: int
    vector: bytes


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The answer to a Tokenize."""

    id: int
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]
    """The bytes of each; control tokens by their names."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is over, as it should be or because it was cancelled."""

    id: int
    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The request is over, with an error: see shared.errors for the codes."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PromptSaved:
    """The state of a prompt of so many tokens is in the worker's memory, under `prompt_id`."""

    prompt_id: int
    tokens: int
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class PromptDropped:
    """What was saved under `prompt_id` is no more in the worker's memory."""

    prompt_id: int


@dataclass(frozen=True, slots=True)
class Steps:
    """The engine's steps of one kind since the last such message: shared.steps has the bounds."""

    kind: StepKind
    seconds: Counts
    """What they took."""
    tokens: Counts
    """What they were fed."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's loop went round. Sent by the loop itself, so a stuck engine sends none."""


Message = (
    Generate
    | Embed
    | Tokenize
    | Cancel
    | DropPrompt
    | Shutdown
    | Loading
    | Ready
    | LoadFailed
    | Tokens
    | Embedded
    | Tokenized
    | Finished
    | Failed
    | PromptSaved
    | PromptDropped
    | Steps
    | Heartbeat
)
