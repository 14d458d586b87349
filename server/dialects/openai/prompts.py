"""Reads prompts: a text, tokens, or a list of either."""

from __future__ import annotations

from typing import Any

from server.generation.served_model import ServedModel
from shared.errors import InvalidRequest
from shared.prompt import Prompt
from shared.validation import TEXT, Check, Schema, integer, integers, text

MAX_PROMPTS = 2048


def read_prompts(name: str, value: Any) -> tuple[Prompt, ...]:
    """One or several prompts. Raises InvalidRequest, which names the field."""
    if isinstance(value, str):
        return (Prompt(text(name, value)),)
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{name} must be a string, a list of tokens, or a list of either")
    if type(value[0]) is int:
        return (_tokens(name, value),)
    if len(value) > MAX_PROMPTS:
        raise InvalidRequest(f"{name} must have at most {MAX_PROMPTS} prompts")
    return tuple(_one(f"{name}[{place}]", one) for place, one in enumerate(value))


def check_vocabulary(name: str, prompt: Prompt, served: ServedModel) -> None:
    """Raises InvalidRequest for tokens that are not in the model's vocabulary."""
    vocabulary = served.info.vocabulary
    if any(token >= vocabulary for token in prompt.tokens or ()):
        raise InvalidRequest(f"{name}: the model's token ids are 0 to {vocabulary - 1}", field=name)


def _one(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return Prompt(text(name, value))
    if isinstance(value, list):
        return _tokens(name, value)
    raise InvalidRequest(f"{name} must be a string or a list of tokens")


def _tokens(name: str, value: list[Any]) -> Prompt:
    if not value:
        raise InvalidRequest(f"{name} must have at least one token")
    return Prompt(tokens=tuple(integer(f"{name}: a token", token, 0) for token in value))


_TOKENS: Schema = {"type": "array", "items": integers(0).schema, "minItems": 1}
_PROMPT: Schema = {"anyOf": [TEXT.schema, _TOKENS]}
PROMPTS: Check[tuple[Prompt, ...]] = Check(
    {
        "anyOf": [
            *_PROMPT["anyOf"],
            {"type": "array", "items": _PROMPT, "minItems": 1, "maxItems": MAX_PROMPTS},
        ]
    },
    read_prompts,
).saying("A text, a list of token ids, or a list of either.")
