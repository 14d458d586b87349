"""The tasks that a request gives to workers."""

from __future__ import annotations

from dataclasses import dataclass

from shared.prompt import Prompt
from shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Generation:
    """Continue the prompt."""

    prompt: Prompt
    sampling: SamplingParams
    prompt_id: int = 0
    """The client's id for the prompt, to save its state under; 0: it is not saved."""
    shows_control: bool = False
    """Control tokens that the model writes appear in the text by their names."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Turn the prompt into a vector."""

    prompt: Prompt


Task = Generation | Embedding
