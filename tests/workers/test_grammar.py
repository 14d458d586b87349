"""Answers that obey grammars and schemas, and grammars that nobody should run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.sampling import LogitBias, SamplingParams
from support import model_settings
from workers.engine import Engine, Feed, load_engine

TOKENS = 400
ENDINGS = '"}]'
PLAIN = SamplingParams(num_predict=TOKENS, temp=1.0, top_k=0, top_p=1.0, repeat_penalty=1.0, seed=1)


@pytest.fixture(scope="module")
def engine(llama_gguf: Path) -> Engine:
    return load_engine(model_settings("llama_cpp", llama_gguf, context=512, slots=1), threads=1)


@pytest.fixture(scope="module")
def params(engine: Engine) -> SamplingParams:
    """A random model writes hundreds of letters before it thinks of a quote: this helps it."""
    biases = [
        LogitBias(token, 6.0)
        for token in range(engine.info.vocabulary)
        if engine.piece(token).decode(errors="replace").strip() in set(ENDINGS)
    ]
    return replace(PLAIN, logit_bias=tuple(biases))


def answer(engine: Engine, params: SamplingParams) -> tuple[str, bool]:
    """The text, and whether the model has ended it."""
    prompt = engine.tokenize("Say something.")
    sampler = engine.sampler(params, prompt)
    engine.decode([Feed(0, prompt, 0, True)])
    tokens: list[int] = []
    is_ended = False
    try:
        while len(tokens) < params.num_predict:
            token = engine.sample(0, sampler)
            is_ended = engine.is_end(token)
            if is_ended:
                break
            tokens.append(token)
            engine.decode([Feed(0, [token], len(prompt) + len(tokens) - 1, True)])
    finally:
        engine.keep(0, 0)
    return b"".join(map(engine.piece, tokens)).decode(errors="replace"), is_ended


def schema_params(params: SamplingParams, schema: object) -> SamplingParams:
    return replace(params, json_schema=json.dumps(schema))


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
     "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"],
     "additionalProperties": False},
    {"type": "object", "properties": {"a": {"const": [1, "é\"\\"]}, "b": {"enum": ["x", 2, None]},
     "c": {"type": "boolean"}}, "required": ["b"]},
    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
     "minItems": 1, "maxItems": 3},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
     "value": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
     "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
     "required": ["value", "next"], "additionalProperties": False}}},
    {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[a-z]{2}-\\d{3}$"},
     "when": {"type": "string", "format": "date-time"}}, "required": ["id", "when"]},
    {"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "null"}},
     "required": ["kind", "x"]}, {"type": "object", "properties": {"kind": {"const": "b"}},
     "required": ["kind"]}]},
    {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"],
     "additionalProperties": {"type": "boolean"}},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
     {"properties": {"a": {"minimum": 7, "maximum": 31}}}]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_a_random_model_obeys_a_schema_every_time(
    engine: Engine, params: SamplingParams, schema: dict[str, Any]
) -> None:
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    ended = 0
    for seed in range(25):
        text, is_ended = answer(engine, replace(schema_params(params, schema), seed=seed))
        if is_ended:
            ended += 1
            validator.validate(json.loads(text))
    assert ended >= 20
