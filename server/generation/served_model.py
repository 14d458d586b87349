"""A loaded model, with what the front adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat import ChatFormat
from server.chat.system_prompts import SystemPrompts
from server.generation.task import Generation
from shared.sampling import SamplingParams
from shared.values import ModelInfo


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a dialect may know of the model that a request names, once it is loaded."""

    name: str
    info: ModelInfo
    defaults: SamplingParams
    """The sampling where a request does not set it."""
    chat: ChatFormat
    system: SystemPrompts

    def with_system(
        self, messages: Sequence[Mapping[str, Any]], system: str | None = None
    ) -> list[Mapping[str, Any]]:
        """The chat, with a system prompt in front if it has none.

        `messages`: as server.chat.conversation checks them. `system`: the prompt's name or its
        text; None: the server's default; "": no system prompt.
        """
        has_one = any(message["role"] == "system" for message in messages)
        found = None if has_one else self.system.resolve(system)
        return [{"role": "system", "content": found}, *messages] if found else list(messages)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], sampling: SamplingParams, **template: Any
    ) -> Generation:
        """The task of writing the next message of a chat. `template`: as ChatFormat.render.

        Raises InvalidRequest for messages that the model's template does not take.
        """
        prompt = self.chat.render(messages, **template)
        return Generation(prompt, replace(sampling, stop=(*sampling.stop, *self.chat.stop)))
