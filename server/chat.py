"""How a chat becomes a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.messages import ModelCard
from shared.prompt import Prompt


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A plain one, for models without a template of their own."""

    name: str = "plain"
    stop: tuple[str, ...] = ("\nUser:",)
    """Texts that end a turn."""
    takes_tools: bool = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt whose continuation is the next message."""
        lines = [f"{str(message['role']).title()}: {message['content']}" for message in messages]
        return Prompt("\n".join(lines) + ("" if continues else "\nAssistant:"), is_whole=True)


def chat_format(card: ModelCard, chosen: str | None) -> ChatFormat:
    """The model's format."""
    return ChatFormat()
