"""The same requests for two servers: our POST /stream, and llama-server's completions."""

from __future__ import annotations

import random

from scripts.load.dialects import STREAMING
from scripts.load.request import Request
from scripts.load.target import Target
from scripts.modelling.shapes import SHAPES
from scripts.modelling.vocabulary import SPACE, make_vocabulary

SAMPLING = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.3,
    "repeat_last_n": 64,
}
"""Both servers have these fields, under the same names."""
LLAMA_FIELDS = {"min_p": 0, "cache_prompt": False}
"""Fields of llama-server whose defaults differ from ours."""


class RandomRequests:
    """Random requests, the same for the same seed.

    No two prompts begin alike, so no cache of prompts can help. Each word is one token of every
    model that make_model writes, whatever its size: all words are in the smallest vocabulary.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        pieces = [piece.decode() for piece in make_vocabulary(SHAPES["tiny"].vocabulary).pieces]
        self._words = [piece[1:] for piece in pieces if piece[0] == SPACE and piece[1:].isalpha()]

    def draw(self, words: int, tokens: int) -> Request:
        """A request with a prompt of `words` words, for an answer of `tokens` tokens."""
        prompt = " ".join(self._random.choices(self._words, k=words))
        return Request(prompt, tokens, seed=self._random.getrandbits(31))


def our_target(url: str) -> Target:
    """tokenflume's POST /stream, in the format that costs its client the least: plain text."""
    return Target(url, STREAMING["stream-plain"], fields=SAMPLING)


def llama_target(url: str) -> Target:
    """llama-server's POST /v1/completions.

    Each token must be an event, and the server must count its tokens. A server that holds back
    half a character has fewer events than tokens, which is an error here: the models that are
    measured write whole characters.
    """
    fields = {**SAMPLING, **LLAMA_FIELDS}
    return Target(url, STREAMING["openai"], fields=fields, events="exact", needs_usage=True)
