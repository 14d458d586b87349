"""The messages between the front and a worker: a closed set of frozen dataclasses.

Down, on a worker's request queue:  Generate, Embed, Tokenize, Cancel, DropPrompt, Shutdown.
Up, on its token queue:             Loading, Ready, LoadFailed, Tokens, Embedded, Tokenized,
                                    Finished, Failed, PromptSaved, PromptDropped, Steps,
                                    Heartbeat.

A worker sends any number of Loading, then one Ready or LoadFailed. A Generate is answered by any
number of Tokens, then exactly one Finished or Failed; an Embed by Embedded and Finished, or by
Failed; a Tokenize by one Tokenized or Failed. Cancel asks for a Finished with reason "cancelled".
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
    """Id under which the prompt's state is saved, chosen by the client; 0: it is not saved."""
    shows_control: bool = False
    """Whether the answer's text contains the names of control tokens; else they have no text."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Embed `prompt`: compute its vector. `id` is unique in the front's lifetime."""

    id: int
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Tell the tokens of `prompt` and their bytes. Needs no slot."""

    id: int
    prompt: Prompt
    is_start: bool
    """Whether it begins a sequence: a BOS is put first if the model wants one."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End request `id`: nobody waits for it any more."""

    id: int


@dataclass(frozen=True, slots=True)
class DropPrompt:
    """Delete the prompt that is saved under `prompt_id`."""

    prompt_id: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End now. The front sends it when no request runs any more."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A worker loads its model."""

    progress: float
    """Share that is loaded, 0 to 1."""


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
    """The worker's model cannot be loaded, and trying again would not help. The worker ends."""

    message: str


class Token(NamedTuple):
    """One generated token. A tuple, because the front decodes tens of thousands a second."""

    request: int
    id: int
    position: int
    """Number of the token in its answer, from 0."""
    text: str
    """Whole characters; empty if the token ends within a character, which later tokens complete."""
    logprobs: Logprobs | None = None
    """None unless the request asked for log probabilities."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens of one engine step, of all sequences."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vector of an Embed: little-endian float32 numbers, normalized to length 1."""

    id: int
    vector: bytes


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The answer to a Tokenize."""

    id: int
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]
    """The bytes of each token; the name of a control token."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has ended without an error."""

    id: int
    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has ended with an error: see shared.errors for the codes."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PromptSaved:
    """A prompt's state is now in the worker's memory, under `prompt_id`."""

    prompt_id: int
    tokens: int
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class PromptDropped:
    """The prompt saved under `prompt_id` is no longer in the worker's memory."""

    prompt_id: int


@dataclass(frozen=True, slots=True)
class Steps:
    """The engine's steps of one kind since the last message of that kind, as histograms.

    shared.steps has their bounds.
    """

    kind: StepKind
    seconds: Counts
    """Duration of the steps."""
    tokens: Counts
    """Tokens that the steps processed."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's loop runs. The loop itself sends it, so a stuck engine sends none."""


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
