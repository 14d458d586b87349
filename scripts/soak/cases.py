"""The requests of a soak: what is sent, what the answer must be, and what else may happen.

The text of an answer of the echo engine is known. Of a model's answer it is known when it is
complete.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.load.dialects import STREAMING, UNSTREAMED, Dialect
from scripts.load.request import Request
from scripts.load.words import WORDS
from scripts.soak.server_state import ServerFacts

ODD_WORDS = ("größer", "日本語", "🦊🦊", "a\\b", "\n", "«»", "Ω", '"', "{}")
"""Words with characters of several bytes, and with characters that formats escape."""
DIALECTS: Mapping[str, Dialect] = {**STREAMING, **UNSTREAMED}
CHATS = {
    "token-stream", "openai-chat", "openai-chat-unstreamed", "ollama", "ollama-unstreamed",
    "ollama-chat", "ollama-chat-unstreamed",
}  # fmt: skip
"""Dialects whose prompt goes through a chat template."""
TEXTS = tuple(name for name in DIALECTS if name not in ("embeddings", "ollama-embed", "tokenize"))
"""Dialects whose answers are texts."""
TIMED = tuple(name for name in TEXTS if not name.startswith("ollama"))
"""Dialects with the field timeout_s."""
WITHOUT_ERRORS = ("stream-plain", "token-stream")
"""Dialects whose streams cannot report an error: they are cut."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what may happen to it besides its answer and a crash of its worker."""

    kind: str
    dialect: str
    request: Request
    prompt_tokens: int | None = None
    """Number of prompt tokens that its usage must have; None: unknown."""
    may_expire: bool = False
    """Its timeout may end it."""
    fails: bool = False
    """Its prompt makes the engine fail."""
    crashes: bool = False
    """Its prompt makes the worker crash."""

    @property
    def holds_slot(self) -> bool:
        return self.dialect != "tokenize"


@dataclass(slots=True)
class Draw:
    """Makes one random case for a server."""

    server: ServerFacts
    number: int
    """Number of the request, which is in its prompt."""
    chance: random.Random
    kind: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def words(self, low: int, high: int) -> str:
        """A text of `low` to `high` words that no other request has."""
        chance = self.chance
        words = chance.choices(WORDS, k=chance.randint(low, high))
        for _ in range(len(words) // 8):
            words.insert(chance.randrange(len(words)), chance.choice(ODD_WORDS))
        return f"{self.number} {' '.join(words)} end"

    def text(self, dialect: str, prompt: str, tokens: int, **reading: Any) -> Case:
        """A request for a text. `reading`: fields of Request for how the client reads it."""
        rendered = prompt
        if dialect in CHATS:
            rendered = self.server.before + prompt + self.server.after
        length = len(rendered.encode())
        repeats = bool(DIALECTS[dialect].endless)
        if dialect in CHATS and tokens > length and repeats:
            tokens = length  # a repetition could contain a stop string of the chat template
        fields = {"model": self.chance.choice(self.server.models), **self.fields}
        seed = self.chance.getrandbits(31)
        request = Request(prompt, tokens, seed, fields=fields, **reading)
        if not self.server.is_echo:
            return Case(self.kind, dialect, request)
        expected = echoed(rendered, tokens, repeats=repeats)
        request = replace(request, expected_text=expected)
        return Case(self.kind, dialect, request, prompt_tokens=length)

    def prompt_only(self, dialect: str) -> Case:
        """A request whose answer is not a text."""
        prompt = self.words(2, 60)
        fields = {"model": self.chance.choice(self.server.models)}
        text = prompt if self.server.is_echo else None
        request = Request(prompt, 1, 0, fields=fields, expected_text=text)
        return Case(self.kind, dialect, request)


def echoed(prompt: str, tokens: int, *, repeats: bool) -> str:
    """The answer of the echo engine. A character that its end cuts is left out."""
    data = prompt.encode()
    if repeats:
        data *= -(-tokens // len(data))
    return data[:tokens].decode(errors="ignore")
