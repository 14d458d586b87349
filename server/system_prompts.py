"""System prompts by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SystemPrompts:
    """Texts by name, and what holds where a request does not say."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def resolve(self, system: str | None) -> str | None:
        """The text of that name, else the text itself."""
        chosen = self.default if system is None else system
        return None if chosen is None else self.texts.get(chosen, chosen)
