"""The sampling parameters of a request: their ranges, defaults and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from shared.errors import InvalidRequest
from shared.validation import (
    BOOLEAN,
    TEXT,
    Check,
    integer,
    integers,
    number,
    numbers,
    or_none,
    text,
    texts_of,
)

MAX_CACHE_ID = 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_DRY_BREAKERS = 16
MAX_DRY_BREAKER_LENGTH = 64
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 100
MAX_GRAMMAR = 2**16
"""Most characters of a grammar or a schema."""
MAX_SEED = 2**64 - 1
NEVER = -math.inf
"""The bias of a token that is never chosen; `false` in a request."""


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Added to the logit of one token."""

    token: int
    bias: float
    """In [-100, 100], or NEVER."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's sampling parameters, in the units of the request's fields.

    The defaults are those of the native endpoint; `from_fields` replaces some of them by a client's
    values. An engine need not support all fields: see `beyond`.
    """

    num_predict: int = 32
    """Tokens to generate at the most, ≥ 1."""
    n_batch: int | None = None
    """Prompt tokens processed at a time, ≥ 1; None: the engine's choice. Never changes the text."""
    top_k: int = 40
    """Keep the k likeliest tokens, ≥ 0; 0: all of them."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together have this probability, in (0, 1]."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the likeliest one's probability, in [0, 1]; 0: off."""
    typical_p: float = 1.0
    """Keep the most typical tokens that together have this probability, in (0, 1]; 1: off."""
    top_n_sigma: float = 0.0
    """Keep logits within n standard deviations of the greatest, in [-1, 1000]; ≤ 0: off."""
    xtc_probability: float = 0.0
    """Probability that XTC removes the likeliest tokens of a step, in [0, 1]; 0: off."""
    xtc_threshold: float = 0.1
    """XTC removes tokens above this probability, except the least likely of them; in [0, 1]."""
    temp: float = 0.80
    """Divides the logits, ≥ 0; 0: always the likeliest token."""
    repeat_penalty: float = 1.30
    """Divides (or multiplies, below zero) the logits of recent tokens, > 0; 1: off."""
    repeat_last_n: int = 64
    """How many of the last tokens count as recent, ≥ 0; 0: none."""
    frequency_penalty: float = 0.0
    """Subtracted from a logit for each recent occurrence of its token, in [-2, 2]; 0: off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each recent token, in [-2, 2]; 0: off."""
    dry_multiplier: float = 0.0
    """DRY: strength of the penalty of tokens that continue a repetition, in [0, 1000]; 0: off."""
    dry_base: float = 1.75
    """DRY: the penalty grows by this factor with each token repeated, in [1, 1000]."""
    dry_allowed_length: int = 2
    """DRY: tokens that may be repeated without a penalty, ≥ 0."""
    dry_penalty_last_n: int = -1
    """DRY: how many of the last tokens are searched, ≥ -1; -1: the whole context, 0: off."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """DRY: texts at which a repetition ends; at most 16, each of at most 64 characters."""
    mirostat: int = 0
    """Version of Mirostat to use instead of top_k, top_p and similar filters: 1 or 2; 0: off."""
    mirostat_tau: float = 5.0
    """Mirostat: target surprise per token, in bits, in (0, 100]."""
    mirostat_eta: float = 0.1
    """Mirostat: learning rate, in (0, 1]."""
    logit_bias: tuple[LogitBias, ...] = ()
    """Biases added to logits, at most 1024, each token at most once."""
    logprobs: int | None = None
    """Report each token's log probability, and those of the n likeliest, 0 to 100; None: off."""
    seed: int | None = None
    """Seed of this request's random generator; None: a random seed."""
    ignore_eos: bool = False
    """Never choose the end-of-sequence token."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, and are not part of it."""
    grammar: str = ""
    """A grammar in GBNF, llama.cpp's notation, whose rule `root` the answer obeys; empty: none."""
    json_schema: str = ""
    """A JSON Schema as a JSON text, which the answer obeys; empty: none. Not with `grammar`."""

    def from_fields(self, given: Mapping[str, Any]) -> SamplingParams:
        """A copy of these parameters with a client's fields.

        `temperature` is another name of `temp`. Raises InvalidRequest, with the field and its
        range, for a wrong type, a value out of range, or a name that is not a sampling field.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if "temp" in given and "temperature" in given:
            raise InvalidRequest("temp and temperature are one field: send one of them")
        for name, value in given.items():
            field = "temp" if name == "temperature" else name
            if field not in values:
                raise InvalidRequest(f"unknown field: {name!r:.80}")
            values[field] = CHECKS[field](name, value)
        if values["grammar"] and values["json_schema"]:
            raise InvalidRequest("grammar and json_schema exclude each other: send one of them")
        return SamplingParams(**values)

    def beyond(self, supported: Collection[str]) -> list[str]:
        """The fields that differ from their default and are not in `supported`, in their order."""
        return [
            field.name
            for field in fields(self)
            if field.name not in supported and getattr(self, field.name) != field.default
        ]


def _logit_bias(name: str, value: Any) -> tuple[LogitBias, ...]:
    """Parse an object whose names are token ids, or a list of pairs."""
    pairs = [[_token(key), bias] for key, bias in value.items()] if type(value) is dict else value
    is_pairs = isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )
    if not is_pairs or len(pairs) > MAX_LOGIT_BIASES:
        raise InvalidRequest(
            f"{name} must be an object of token ids and biases, or a list of such pairs,"
            f" of at most {MAX_LOGIT_BIASES}"
        )
    biases = tuple(_one_bias(name, token, bias) for token, bias in pairs)
    if len({bias.token for bias in biases}) < len(biases):
        raise InvalidRequest(f"{name} has a token id twice")
    return biases


def _token(key: str) -> int | str:
    """The text as a token id; unchanged if it is not a number, so that `_one_bias` refuses it."""
    return int(key) if key.isascii() and key.isdecimal() and len(key) <= 10 else key


def _one_bias(name: str, token: Any, bias: Any) -> LogitBias:
    token = integer(f"{name}: a token id", token, 0)
    if bias is False:
        return LogitBias(token, NEVER)
    try:
        return LogitBias(token, number(f"{name}: a bias", bias, low=-100, high=100))
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.message}, or false for never") from None


def _text_at_most(name: str, value: Any, length: int) -> str:
    if len(text(name, value)) > length:
        raise InvalidRequest(f"{name} must have at most {length} characters")
    return str(value)


def _schema(name: str, value: Any) -> str:
    """Parse a schema, given as an object or as the JSON text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{name} must be a JSON Schema: an object") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON Schema: an object")
    return _text_at_most(name, json.dumps(value), MAX_GRAMMAR)


_BIAS = {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100}, {"const": False}]}
_TOKEN = integers(0).schema
_LOGIT_BIAS: Check[tuple[LogitBias, ...]] = Check(
    {
        "anyOf": [
            {
                "type": "object",
                "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
                "additionalProperties": _BIAS,
                "maxProperties": MAX_LOGIT_BIASES,
            },
            {
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [_TOKEN, _BIAS],
                    "minItems": 2,
                    "maxItems": 2,
                },
                "maxItems": MAX_LOGIT_BIASES,
            },
        ]
    },
    _logit_bias,
)

CHECKS: Mapping[str, Check[Any]] = {
    "num_predict": integers(1),
    "n_batch": or_none(integers(1)),
    "top_k": integers(0),
    "top_p": numbers(above=0, high=1),
    "min_p": numbers(low=0, high=1),
    "typical_p": numbers(above=0, high=1),
    "top_n_sigma": numbers(low=-1, high=1000),
    "xtc_probability": numbers(low=0, high=1),
    "xtc_threshold": numbers(low=0, high=1),
    "temp": numbers(low=0, high=1000),
    "repeat_penalty": numbers(above=0, high=1000),
    "repeat_last_n": integers(0),
    "frequency_penalty": numbers(low=-2, high=2),
    "presence_penalty": numbers(low=-2, high=2),
    "dry_multiplier": numbers(low=0, high=1000),
    "dry_base": numbers(low=1, high=1000),
    "dry_allowed_length": integers(0),
    "dry_penalty_last_n": integers(-1),
    "dry_sequence_breakers": texts_of(MAX_DRY_BREAKERS, MAX_DRY_BREAKER_LENGTH),
    "mirostat": integers(0, 2),
    "mirostat_tau": numbers(above=0, high=100),
    "mirostat_eta": numbers(above=0, high=1),
    "logit_bias": _LOGIT_BIAS,
    "logprobs": or_none(integers(0, MAX_LOGPROBS)),
    "seed": or_none(integers(0, MAX_SEED)),
    "ignore_eos": BOOLEAN,
    "stop": texts_of(MAX_STOP_STRINGS, MAX_STOP_LENGTH),
    "grammar": Check(
        {**TEXT.schema, "maxLength": MAX_GRAMMAR},
        lambda name, value: _text_at_most(name, value, MAX_GRAMMAR),
    ),
    "json_schema": Check({"anyOf": [{"type": "object"}, TEXT.schema]}, _schema),
}
"""By the fields' names."""
