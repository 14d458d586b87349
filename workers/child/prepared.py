"""Requests that are ready to run: their prompts are tokens, and their samplers are built."""

from __future__ import annotations

from dataclasses import dataclass

from shared.messages import Generate
from workers.engines.base import Sampler
from workers.prompts.cache import SavedPrompt


@dataclass(frozen=True, slots=True)
class PreparedGenerate:
    """A Generate that fits into the context and whose sampling parameters are valid."""

    request: Generate
    tokens: list[int]
    """The prompt's tokens, behind those of the root (`--restore-prompt`) if it continues it."""
    sampler: Sampler
    saved: SavedPrompt | None = None
    """The client's saved prompt, if it had to be read from its file."""

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id


@dataclass(frozen=True, slots=True)
class PreparedEmbed:
    """An Embed whose tokens fit into the context."""

    id: int
    tokens: list[int]
