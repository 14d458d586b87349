"""The values that messages carry: what a model is, token counts, times, log probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled"]
StepKind = Literal["prefill", "decode", "embed"]
"""What a step of an engine is for: prompts, next tokens, or a vector."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's file says of itself. Empty and 0 where it does not."""

    name: str = ""
    parameters: int = 0
    """Weights."""
    size: int = 0
    """Bytes of the file."""
    quantization: str = ""
    """Of most of its weights, such as "Q4_K_M"."""
    trained_context: int = 0
    """Tokens that sequences had in training, at the most."""
    chat_template: str = ""
    """A Jinja template, from messages to a prompt."""
    bos: str = ""
    """The name of the token that begins a sequence, such as "<s>"."""
    eos: str = ""
    """The name of the token that ends a turn."""
    control: tuple[str, ...] = ()
    """The names of all tokens that a text may not be mistaken for, such as "<|im_start|>"."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker has loaded."""

    engine: str
    architecture: str
    context: int
    """Tokens of prompt and generation together that one sequence may have."""
    vocabulary: int
    slots: int
    """Sequences that run at the same time in one worker."""
    batch: int
    """Prompt tokens fed at a time when a request does not say."""
    sampling: tuple[str, ...]
    """Names of the SamplingParams fields that the engine honours."""
    saves_states: bool = False
    """A processed prompt can be saved and loaded; else it can only be gone on from."""
    embedding: int = 0
    """Numbers of an embedding; 0: the engine makes none."""
    card: ModelCard = ModelCard()


class Candidate(NamedTuple):
    """One of the likeliest tokens of a place."""

    id: int
    piece: bytes
    """May begin or end within a character."""
    logprob: float


class Logprobs(NamedTuple):
    """How likely a chosen token was, before sampling changed the distribution.

    Natural logarithms of probabilities, ≤ 0; -inf for a token that was impossible.
    """

    logprob: float
    """Of the chosen token."""
    top: tuple[Candidate, ...]
    """The likeliest tokens, as many as were asked for, likeliest first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from a request's slot to its first token, and from there to its end."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """A histogram's values."""

    buckets: tuple[int, ...]
    """How many there are in each bucket; the last one has no bound."""
    total: float
    """Their sum."""
