"""The same request in the words of two servers: our POST /stream, and OpenAI's completions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.bench.loads import Stream
from scripts.load.answers import Answer, EventAnswer, LineAnswer
from scripts.load.dialects import ENDLESS, completion_fields, stream_fields
from scripts.loadtest.plan import Ask
from scripts.modelling.make_model import SHAPES, SPACE, make_vocabulary

SAMPLING = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.3,
    "repeat_last_n": 64,
}
"""Of both servers, and by the same names."""


class Asks:
    """Random requests, the same for the same seed.

    No two prompts begin alike, so no cache of prompts can help. Each word is one token to the
    models that make_model.py makes, of whatever size: it is in the smallest vocabulary.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        pieces = [piece.decode() for piece in make_vocabulary(SHAPES["tiny"].vocabulary).pieces]
        self._words = [piece[1:] for piece in pieces if piece[0] == SPACE and piece[1:].isalpha()]

    def draw(self, words: int, tokens: int) -> Ask:
        """A request of so many words for so many tokens."""
        prompt = " ".join(self._random.choices(self._words, k=words))
        return Ask(prompt, tokens, seed=self._random.getrandbits(31))


@dataclass(frozen=True)
class Dialect:
    """Where and how a kind of server is asked, and how it answers."""

    path: str
    fields: Callable[[Ask], dict[str, Any]]
    answer: Callable[[], Answer]


@dataclass(frozen=True)
class Target:
    """A server to ask."""

    port: int
    dialect: Dialect

    def open(self, ask: Ask) -> Stream:
        """A stream on a connection of its own, not yet sent."""
        dialect = self.dialect
        return Stream(self.port, dialect.path, dialect.fields(ask), dialect.answer(), ask.tokens)


def native_fields(ask: Ask) -> dict[str, Any]:
    return {**SAMPLING, **stream_fields(ask), **ENDLESS}


def openai_fields(ask: Ask) -> dict[str, Any]:
    """OpenAI's fields, and those of llama-server where OpenAI has none or another default."""
    return {
        **SAMPLING,
        **completion_fields(ask),
        **ENDLESS,
        "min_p": 0,
        "cache_prompt": False,
    }


STREAM = Dialect("/stream", native_fields, LineAnswer)
OPENAI = Dialect("/v1/completions", openai_fields, EventAnswer)
