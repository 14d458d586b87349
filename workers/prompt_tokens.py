"""A prompt's tokens, whichever way the prompt was given."""

from __future__ import annotations

from shared.errors import InvalidRequest
from shared.prompt import Prompt
from workers.engine import Engine


def tokens_of(prompt: Prompt, engine: Engine, *, is_start: bool) -> list[int]:
    """`is_start`: nothing stands before it. Raises what Engine.tokenize does, and InvalidRequest
    for tokens that the vocabulary does not have."""
    if prompt.tokens is not None:
        return _checked(prompt.tokens, engine.info.vocabulary)
    first, *others = prompt.parts
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
