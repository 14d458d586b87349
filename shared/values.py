"""The values that messages carry: what a model is, token counts, times, log probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled"]
StepKind = Literal["prefill", "decode", "embed"]
"""What a step of an engine computes: prompts, next tokens, or a vector."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's file says about the model. Fields are empty or 0 if it does not say them."""

    name: str = ""
    parameters: int = 0
    """Number of weights."""
    size: int = 0
    """Bytes of the file."""
    quantization: str = ""
    """Type of most weights, such as "Q4_K_M"."""
    trained_context: int = 0
    """Longest sequence in training, in tokens."""
    chat_template: str = ""
    """A Jinja template that turns messages into a prompt."""
    bos: str = ""
    """Name of the token that begins a sequence, such as "<s>"."""
    eos: str = ""
    """Name of the token that ends a turn."""
    control: tuple[str, ...] = ()
    """Names of all control tokens, such as "<|im_start|>". Clients' texts must not become them."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker has loaded."""

    engine: str
    architecture: str
    context: int
    """Longest sequence, in tokens: prompt and answer together."""
    vocabulary: int
    slots: int
    """Sequences that one worker can run at the same time."""
    batch: int
    """Prompt tokens processed at a time, unless a request says a number."""
    sampling: tuple[str, ...]
    """Names of the SamplingParams fields that the engine honours."""
    saves_states: bool = False
    """Whether a processed prompt's state can be saved and loaded."""
    embedding: int = 0
    """Length of an embedding vector; 0: the engine makes no embeddings."""
    card: ModelCard = ModelCard()


class Candidate(NamedTuple):
    """One of the likeliest tokens at a position."""

    id: int
    piece: bytes
    """The token's bytes; they may begin or end within a character."""
    logprob: float


class Logprobs(NamedTuple):
    """Log probabilities at one position, before sampling changed the distribution.

    Natural logarithms, ≤ 0; -inf for an impossible token.
    """

    logprob: float
    """Log probability of the chosen token."""
    top: tuple[Candidate, ...]
    """The likeliest tokens, as many as the request asked for, the likeliest first."""


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
    """The values of a histogram."""

    buckets: tuple[int, ...]
    """Number of values in each bucket; the last bucket has no bound."""
    total: float
    """Sum of all values."""
