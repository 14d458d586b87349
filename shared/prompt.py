"""A prompt: a text, or token ids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either a text, in which control tokens may be written by their names, or token ids."""

    text: str = ""
    cuts: tuple[int, ...] = ()
    """Offsets in `text`, ascending: the parts between them are tokenized separately, so a control
    token's name across a cut is plain text. A chat template cuts where a message's text begins and
    where it ends."""
    tokens: tuple[int, ...] | None = None
    """Token ids instead of a text; None: the text counts."""
    is_whole: bool = False
    """Whether nothing is put before it, as for chats, which have their own beginning. Otherwise it
    continues the prompt of --restore-prompt, if the server has one."""

    @property
    def parts(self) -> list[str]:
        """The text, split at the cuts."""
        ends = (0, *self.cuts, len(self.text))
        return [self.text[start:end] for start, end in itertools.pairwise(ends)]

    @property
    def key(self) -> str:
        """A text for routing: prompts with a common prefix have keys with a common prefix."""
        return self.text if self.tokens is None else "".join(f"{token} " for token in self.tokens)
