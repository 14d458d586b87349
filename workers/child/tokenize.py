"""A prompt's tokens, whether the prompt is a text, a text with cuts, or tokens."""

from __future__ import annotations

from shared.errors import InvalidRequest
from shared.messages import Tokenize, Tokenized
from shared.prompt import Prompt
from workers.engines.base import Engine

MAX_ANSWER = 6 * 2**20
"""Largest size of an answer's tokens and pieces in bytes: a frame holds 8 MiB."""
TOKEN_BYTES = 8
"""Bytes that a token's id and its piece's length take in a frame, at most."""


def answer(question: Tokenize, engine: Engine) -> Tokenized:
    """Return the prompt's tokens, with their bytes or their names. Raises ServingError."""
    tokens = tuple(tokens_of(question.prompt, engine, is_start=question.is_start))
    pieces = tuple(engine.piece(token, shows_control=True) for token in tokens)
    if sum(map(len, pieces)) + TOKEN_BYTES * len(tokens) > MAX_ANSWER:
        raise InvalidRequest(f"prompt has too many tokens to list: {len(tokens)}")
    return Tokenized(question.id, tokens, pieces)


def tokens_of(prompt: Prompt, engine: Engine, *, is_start: bool) -> list[int]:
    """Return the prompt's tokens. `is_start`: nothing stands before it.

    Raises what Engine.tokenize raises, and InvalidRequest for tokens beyond the vocabulary.
    """
    if prompt.tokens is not None:
        return _checked(prompt.tokens, engine.info.vocabulary)
    first, *others = [part for part in prompt.parts if part] or [""]
    tokens = engine.tokenize(first, is_start=is_start)
    for part in others:
        tokens += engine.tokenize(part, is_start=False, continues=True)
    return tokens


def _checked(tokens: tuple[int, ...], vocabulary: int) -> list[int]:
    unknown = [token for token in tokens if not 0 <= token < vocabulary]
    if unknown:
        raise InvalidRequest(
            f"prompt: token {unknown[0]} is not in the vocabulary, which ends at {vocabulary - 1}"
        )
    if not tokens:
        raise InvalidRequest("prompt has no tokens")
    return list(tokens)
