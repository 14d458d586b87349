"""What a model is to continue: a text, or the tokens of one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text in which control tokens may be written by their names, or tokens."""

    text: str = ""
    cuts: tuple[int, ...] = ()
    """Places within `text`, ascending, at which it is tokenized anew: a control token's name that
    stands across one is plain text. Where somebody else's text is put between control tokens."""
    tokens: tuple[int, ...] | None = None
    """In the place of a text."""
    is_whole: bool = False
    """Nothing is put before it, as a chat has its own beginning; else it continues from the
    server's saved prompt, if there is one (--restore-prompt)."""

    @property
    def parts(self) -> list[str]:
        """The text between the cuts."""
        places = (0, *self.cuts, len(self.text))
        return [self.text[start:end] for start, end in itertools.pairwise(places)]

    @property
    def key(self) -> str:
        """Prompts with a common beginning have keys with a common beginning; for routing."""
        return self.text if self.tokens is None else "".join(f"{token} " for token in self.tokens)
