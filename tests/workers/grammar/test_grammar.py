"""Answers that obey grammars and schemas, and grammars that are refused."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineFailed, InvalidRequest
from shared.sampling import LogitBias, SamplingParams
from tests.helpers.support import model_settings
from workers.engines.base import Engine, Feed
from workers.engines.table import load_engine
from workers.grammar import json_text
from workers.grammar.gbnf import GrammarError, parse_gbnf
from workers.grammar.gbnf_cost import check_cost, check_ways
from workers.grammar.json_pattern import PatternError, pattern_to_gbnf
from workers.grammar.json_schema import SchemaError, schema_to_gbnf

TOKENS = 400
ENDINGS = '"}]'
PLAIN = SamplingParams(num_predict=TOKENS, temp=1.0, top_k=0, top_p=1.0, repeat_penalty=1.0, seed=1)


@pytest.fixture(scope="module")
def engine(llama_gguf: Path) -> Engine:
    return load_engine(model_settings("llama_cpp", llama_gguf, context=512, slots=1), threads=1)


@pytest.fixture(scope="module")
def params(engine: Engine) -> SamplingParams:
    """Biases for ends: a random model would write hundreds of letters before the next quote."""
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
        engine.truncate(0, 0)
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
def test_a_random_model_always_obeys_a_schema(
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


def test_a_schema_of_just_an_object_allows_any_object(
    engine: Engine, params: SamplingParams
) -> None:
    texts = set()
    for seed in range(20):
        asked = replace(schema_params(params, {"type": "object"}), seed=seed)
        quotes = tuple(b for b in params.logit_bias if b'"' in engine.piece(b.token))
        asked = replace(asked, logit_bias=quotes)
        text, is_ended = answer(engine, asked)
        if is_ended:
            assert isinstance(json.loads(text), dict)
            texts.add(text)
    assert {"{}"} < texts


def test_an_answer_obeys_a_grammar_and_ends_only_where_it_is_complete(
    engine: Engine,
) -> None:
    grammar = 'root ::= ("yes" | "no") (", " ("yes" | "no")){2}  # three in all'
    for seed in range(30):
        text, is_ended = answer(engine, replace(PLAIN, grammar=grammar, seed=seed))
        assert is_ended
        assert re.fullmatch(r"(yes|no)(, (yes|no)){2}", text)


def test_a_grammar_that_is_complete_ends_also_where_ends_are_ignored(engine: Engine) -> None:
    text, is_ended = answer(engine, replace(PLAIN, grammar='root ::= "é語🙂"', ignore_eos=True))
    assert (text, is_ended) == ("é語🙂", True)


def test_the_likeliest_allowed_token_is_chosen_where_the_likeliest_is_asked_for(
    engine: Engine,
) -> None:
    greedy = replace(PLAIN, temp=0.0)
    prompt = engine.tokenize("Say something.")
    engine.decode([Feed(0, prompt, 0, True)])
    ranked = engine.logprobs(0, 0, engine.info.vocabulary).top
    expected = next(c.id for c in ranked if re.fullmatch(rb"[0-9]", c.piece))
    assert engine.sample(0, engine.sampler(replace(greedy, grammar="root ::= [0-9]"), prompt)) == (
        expected
    )
    free = engine.sample(0, engine.sampler(greedy, prompt))
    assert engine.sample(0, engine.sampler(replace(greedy, grammar="root ::= .*"), prompt)) == free
    engine.truncate(0, 0)


def test_penalties_and_biases_count_under_a_grammar(engine: Engine) -> None:
    penalised = replace(PLAIN, temp=0.0, repeat_penalty=1000.0, repeat_last_n=64)
    text, _ = answer(engine, replace(penalised, grammar="root ::= [0-9]{10}"))
    assert len(set(text)) >= 8  # some digits are two tokens
    digits = {text: token for token in range(512) if (text := engine.piece(token)).isdigit()}
    never = tuple(LogitBias(token, -math.inf) for text, token in digits.items() if text != b"7")
    sevens, _ = answer(engine, replace(PLAIN, logit_bias=never, grammar="root ::= [0-9]{5}"))
    assert sevens == "77777"


def test_where_nothing_is_allowed_the_request_fails(engine: Engine) -> None:
    never = tuple(
        LogitBias(token, -math.inf) for token in range(512) if engine.piece(token).isdigit()
    )
    with pytest.raises(EngineFailed, match="logit_bias"):
        answer(engine, replace(PLAIN, logit_bias=never, grammar="root ::= [0-9]"))
    with pytest.raises(EngineFailed, match="none of the model's tokens"):
        answer(engine, replace(PLAIN, grammar='root ::= "a" "\\x00"'))


def test_a_grammar_that_takes_too_long_fails_its_own_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engines.llama_cpp.grammar.LONGEST_S", 0.0)
    with pytest.raises(EngineFailed, match="too ambiguous"):
        answer(engine, replace(PLAIN, grammar="root ::= [a-z]+"))


def test_a_grammar_never_allows_a_control_token_as_text(engine: Engine) -> None:
    """llama.cpp takes its name for its text, but an answer would not show it."""
    eager = replace(PLAIN, logit_bias=(LogitBias(1, 100.0),), grammar="root ::= [a-z<>]{8}")
    for seed in range(5):
        assert len(answer(engine, replace(eager, seed=seed))[0]) == 8


def test_log_probabilities_come_with_a_grammar_too(engine: Engine) -> None:
    prompt = engine.tokenize("Say something.")
    sampler = engine.sampler(replace(PLAIN, grammar="root ::= [0-9]", logprobs=2), prompt)
    engine.decode([Feed(0, prompt, 0, True)])
    token = engine.sample(0, sampler)
    assert engine.logprobs(0, token, 2).logprob < 0
    engine.truncate(0, 0)


# Grammars that are invalid or not supported.

HOSTILE = {
    "root": "::= was expected",
    'a ::= "x"': "the rule root is not defined",
    "root ::= x": "the rule x is not defined",
    'root ::= "a': "missing",
    'root ::= ("a"': r"\) was expected",
    'root ::= "\\q"': "escape",
    "root ::= []": "empty",
    "root ::= *": "nothing to repeat",
    'root ::= "a" }': "end of the rule",
    'root ::= "a"{5,3}': "below its minimum",
    'root ::= "a"{2001}': "2000 repetitions",
    'root ::= "a"{0,3000}': "2000 repetitions",
    f'root ::= "{"a" * 60_000}"{{2000}}': "100000 elements",
    'root ::= "a"{99999999999999999999}': "end of the rule",
    f"root ::= {'(' * 5000}": "parentheses",
    'root ::= root "x" | "y"': "left recursion",
    'root ::= a root "x" | "y"\na ::= b\nb ::= "" | "z"': "left recursion",
    'root ::= a\na ::= b\nb ::= a | "x"': "left recursion",
    "root ::= a? a? a?\na ::= b? b? b?\nb ::= " + '"x"? ' * 3000: "ways to begin",
    "root ::= [a-z] root{0,20} root{0,20}": "ambiguous",
    'root ::= ((a{0,20}){0,20}){0,20}\na ::= "x" | "y"': "ambiguous",
    "root ::= <[5]>": "tokens",
    "root ::= !<think>": "tokens",
    'root ::= "\0"': "zero bytes",
    'root ::= "\ud800"': "surrogates",
    'root ::= "a" {2} {2000} {2000}': "2000|elements|cannot read",
}


@pytest.mark.parametrize("grammar", HOSTILE, ids=range(len(HOSTILE)))
def test_a_grammar_that_cannot_be_used_is_a_bad_request(engine: Engine, grammar: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^grammar: .*({HOSTILE[grammar]})"):
        engine.sampler(replace(PLAIN, grammar=grammar), [1])


def test_common_grammars_are_accepted(engine: Engine) -> None:
    from llama_cpp import llama_grammar

    shipped = [name for name in dir(llama_grammar) if name.endswith("_GBNF")]
    assert len(shipped) > 5
    for name in shipped:
        engine.sampler(replace(PLAIN, grammar=getattr(llama_grammar, name)), [1])


RANDOM_GRAMMARS = """
import random, sys
from dataclasses import replace
from pathlib import Path
from shared.errors import EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from tests.helpers.support import model_settings
from workers.engines.base import Feed
from workers.engines.table import load_engine

engine = load_engine(model_settings("llama_cpp", Path(sys.argv[1]), slots=1), threads=1)
plain = SamplingParams(temp=1.0, repeat_penalty=1.0, top_k=0)
draw = random.Random(int(sys.argv[2]))
TEXTS = ['"a"', '"b c"', "[ab]", "[^a]", ".", '"é"', '""', "[a-z]", '[^"]', '"!"', "[]", "<s>"]
TIMES = [""] * 8 + ["*", "+", "?", "{2}", "{0,3}", "{2,}", "{0,20}", "{300}", "{3,1}"]

def item(depth):
    kind = draw.random()
    if kind < 0.5 or depth > 3:
        return draw.choice(TEXTS[:10] if draw.random() < 0.97 else TEXTS)
    return draw.choice(names) if kind < 0.6 else "(" + choice(depth + 1) + ")"

def sequence(depth):
    return " ".join(item(depth) + draw.choice(TIMES) for _ in range(draw.choice([0, 1, 1, 2, 3])))

def choice(depth):
    return " | ".join(sequence(depth) for _ in range(draw.choice([1, 1, 2, 3])))

taken = refused = 0
prompt = engine.tokenize("hello")
for seed in range(int(sys.argv[3])):
    names = ["root", "a", "b", "c"][: draw.randrange(1, 5)]
    grammar = "\\n".join(f"{name} ::= {choice(0)}" for name in names)
    try:
        sampler = engine.sampler(replace(plain, grammar=grammar, seed=seed), prompt)
        taken += 1
        engine.decode([Feed(0, prompt, 0, True)])
        for position in range(len(prompt), len(prompt) + 12):
            token = engine.sample(0, sampler)
            if engine.is_end(token):
                break
            engine.decode([Feed(0, [token], position, True)])
    except InvalidRequest:
        refused += 1
    except EngineFailed:
        pass
    engine.truncate(0, 0)
print(taken, refused)
"""


def test_random_grammars_are_run_or_refused_and_never_crash(llama_gguf: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", RANDOM_GRAMMARS, llama_gguf, "7", "400"],
        env=environment, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    taken, refused = map(int, child.stdout.split())
    assert taken > 30
    assert refused > 50


@given(st.text('root:=|()"[]^*+?{},0123ab\n\\\\x#. -', max_size=60))
def test_any_text_is_a_grammar_or_is_refused_with_a_reason(text: str) -> None:
    for grammar in (text, f"root ::= {text}"):
        try:
            check_cost(parse_gbnf(grammar))
        except GrammarError as error:
            assert str(error)


# Schemas.


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "required"),
        ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"type": "number", "minimum": 0.5}, "whole"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "string", "minLength": 2001}, "minLength"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "together"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "pattern": "((a{0,20}){0,20}){0,20}"}, "pattern"),
        ({"type": "string", "format": "color"}, "format"),
        ({"type": "text"}, "type"),
        ({"type": [{}]}, "type"),
        ({"type": []}, "type"),
        ({"$ref": "https://example.org/schema"}, r"\$ref"),
        ({"$ref": "#/$defs/none"}, "nothing"),
        ({"$ref": "#"}, "left recursion"),
        ({"allOf": [{"$ref": "#"}]}, "refers to itself"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"anyOf": []}, "anyOf"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "allOf"),
        ({"enum": ["a"], "type": "integer"}, "enum"),
        ({"enum": ["a"], "pattern": "a"}, "pattern"),
        ({"properties": [1]}, "properties"),
        ({"properties": {"a": 5}}, "object"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "false"),
        ({"type": "integer", "minimum": 10**40}, "minimum"),
        ({"type": "integer", "minimum": "1"}, "minimum"),
    ],
)
def test_a_schema_that_cannot_be_expressed_is_a_bad_request(
    engine: Engine, schema: dict[str, Any], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^json_schema: .*{word}"):
        engine.sampler(schema_params(PLAIN, schema), [1])


def test_a_schema_that_is_nested_too_deeply_is_a_bad_request(engine: Engine) -> None:
    schema = '{"items":' * 6000 + "{}" + "}" * 6000
    with pytest.raises(InvalidRequest, match=r"^json_schema: .*nested"):
        engine.sampler(replace(PLAIN, json_schema=schema), [1])


def as_expression(rule: str) -> re.Pattern[str]:
    """The regular expression of a rule without other rules."""
    parts = re.findall(r'"(?:\\.|[^"\\])*"|\[[^\]]*\]|[^"\[ ]+', rule)
    return re.compile("".join(re.escape(json.loads(p)) if p[0] == '"' else p for p in parts))


bounds = st.none() | st.integers(-3000, 3000) | st.sampled_from([-(10**12), 10**12])


@given(bounds, bounds, st.data())
def test_a_range_of_whole_numbers_has_all_of_them_and_no_others(
    low: int | None, high: int | None, data: st.DataObject
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    expression = as_expression(json_text.integers(low, high))
    near = [bound + step for bound in (low, high) if bound is not None for step in (-1, 0, 1)]
    number = data.draw(st.integers(-5000, 5000) | st.sampled_from([*near, 0]))
    is_inside = (low is None or low <= number) and (high is None or number <= high)
    assert bool(expression.fullmatch(str(number))) == is_inside
    assert not expression.fullmatch(f"0{number}")


@given(bounds, bounds, st.booleans(), st.booleans(), st.floats(-5000, 5000), st.data())
def test_a_range_of_numbers_has_no_others(
    low: int | None, high: int | None, above: bool, below: bool, number: float, data: st.DataObject
) -> None:
    if low is not None and high is not None and low >= high:
        low, high = high, low + 1
    near = [float(bound) for bound in (low, high) if bound is not None]
    number = data.draw(st.sampled_from([round(number, 3), *near])) + 0.0
    rule = json_text.numbers(low, high, above_low=above, below_high=below)
    is_inside = (low is None or (low < number if above else low <= number)) and (
        high is None or (number < high if below else number <= high)
    )
    assert bool(as_expression(rule).fullmatch(f"{number:.3f}")) == is_inside


@given(st.text('ab01\\\\.^$*+?()[]{},|-dwsSWDn"é', max_size=12))
def test_any_pattern_is_a_grammar_or_is_refused_with_a_reason(pattern: str) -> None:
    try:
        body = pattern_to_gbnf(pattern)
    except PatternError as error:
        assert str(error)
        return
    try:
        check_ways(parse_gbnf(f"root ::= {body}"))
    except GrammarError as error:
        assert "repeat" in str(error)


PATTERNS = [
    r"^[a-z]+$", r"^a|b$", r"^\d{2}(-\w)?$", r'["\\x]{2}', r"^[^,]{1,3}$", r"^(foo|ba[rz])+$",
    r"\.\s?$", r"^[ -~]{0,4}$", r"^.{2}$", r"^\S+@\S+$", r"^(?:a*?b){2}\u00e9$",
    r"^[\]\-\^]$", r"^\n\t$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_random_model_writes_what_a_pattern_matches(
    engine: Engine, params: SamplingParams, pattern: str
) -> None:
    schema = {"type": "string", "pattern": pattern}
    ended = 0
    for seed in range(6):
        text, is_ended = answer(engine, replace(schema_params(params, schema), seed=seed))
        ended += is_ended
        if is_ended:
            assert re.search(pattern, json.loads(text))
    assert ended


def test_a_large_schema_is_accepted() -> None:
    properties = {f"p{i}": {"type": ["string", "null"], "maxLength": 50} for i in range(120)}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    check_ways(parse_gbnf(schema_to_gbnf(json.dumps(schema))))
    schema["additionalProperties"] = {"enum": [f"value {i}" for i in range(500)]}
    check_ways(parse_gbnf(schema_to_gbnf(json.dumps(schema))))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["string", "#", "object", "a"]),
        lambda part: st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "required", "items", "enum", "const", "anyOf", "oneOf",
                 "allOf", "$ref", "minimum", "maxLength", "pattern", "format", "prefixItems",
                 "additionalProperties", "minItems", "maxItems", "a", "uniqueItems"]
            ),
            part,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_value_is_a_schema_or_is_refused_with_a_reason(schema: Any) -> None:
    try:
        text = schema_to_gbnf(json.dumps(schema))
    except SchemaError as error:
        assert str(error)
        return
    try:
        check_ways(parse_gbnf(text))
    except GrammarError as error:
        assert "left recursion" in str(error)
