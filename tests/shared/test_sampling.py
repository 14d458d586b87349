"""Sampling parameters: what each field accepts, what it refuses, and with which message."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.sampling import LogitBias, SamplingParams

DEFAULTS = SamplingParams()
NAMES = [field.name for field in fields(SamplingParams)]
MOST = 2**31 - 1

INTEGER_FIELDS = {
    "num_predict": (1, MOST),
    "n_batch": (1, MOST),
    "top_k": (0, MOST),
    "repeat_last_n": (0, MOST),
    "dry_allowed_length": (0, MOST),
    "dry_penalty_last_n": (-1, MOST),
    "mirostat": (0, 2),
    "logprobs": (0, 100),
    "seed": (0, 2**64 - 1),
}
# Least and greatest value that are taken, and how the range is said.
NUMBER_FIELDS = {
    "top_p": (5e-324, 1.0, ["> 0", "≤ 1"]),
    "temp": (0.0, 1000.0, ["≥ 0", "≤ 1000"]),
    "repeat_penalty": (5e-324, 1000.0, ["> 0", "≤ 1000"]),
    "min_p": (0.0, 1.0, ["≥ 0", "≤ 1"]),
    "typical_p": (5e-324, 1.0, ["> 0", "≤ 1"]),
    "top_n_sigma": (-1.0, 1000.0, ["≥ -1", "≤ 1000"]),
    "xtc_probability": (0.0, 1.0, ["≥ 0", "≤ 1"]),
    "xtc_threshold": (0.0, 1.0, ["≥ 0", "≤ 1"]),
    "dry_multiplier": (0.0, 1000.0, ["≥ 0", "≤ 1000"]),
    "dry_base": (1.0, 1000.0, ["≥ 1", "≤ 1000"]),
    "mirostat_tau": (5e-324, 100.0, ["> 0", "≤ 100"]),
    "mirostat_eta": (5e-324, 1.0, ["> 0", "≤ 1"]),
    "frequency_penalty": (-2.0, 2.0, ["≥ -2", "≤ 2"]),
    "presence_penalty": (-2.0, 2.0, ["≥ -2", "≤ 2"]),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([0, 1, 2**31, 2**64, 10**400, -(10**400), "\ud800", "\0", ""]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def refusal(given_fields: dict[str, Any]) -> str:
    """The message with which the fields are refused."""
    with pytest.raises(InvalidRequest) as caught:
        DEFAULTS.from_fields(given_fields)
    return caught.value.message


def params_or_error(given_fields: dict[str, Any]) -> SamplingParams | InvalidRequest:
    try:
        return DEFAULTS.from_fields(given_fields)
    except InvalidRequest as error:
        return error


def test_without_fields_the_defaults_stay() -> None:
    defaults = SamplingParams(temp=0.1, top_k=7, stop=("x",))

    assert defaults.from_fields({}) == defaults


def test_the_defaults_are_those_of_the_native_endpoint() -> None:
    assert (
        SamplingParams(
            num_predict=32,
            n_batch=None,
            top_k=40,
            top_p=0.95,
            temp=0.80,
            repeat_penalty=1.30,
            repeat_last_n=64,
            seed=None,
            ignore_eos=False,
            stop=(),
        )
        == DEFAULTS
    )


def test_no_other_way_of_choosing_is_on_by_default() -> None:
    assert (
        SamplingParams(
            min_p=0.0,
            typical_p=1.0,
            top_n_sigma=0.0,
            xtc_probability=0.0,
            xtc_threshold=0.1,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            dry_multiplier=0.0,
            dry_base=1.75,
            dry_allowed_length=2,
            dry_penalty_last_n=-1,
            dry_sequence_breakers=("\n", ":", '"', "*"),
            mirostat=0,
            mirostat_tau=5.0,
            mirostat_eta=0.1,
            logit_bias=(),
            logprobs=None,
        )
        == DEFAULTS
    )


def test_given_fields_replace_their_defaults_and_no_others() -> None:
    defaults = SamplingParams(temp=0.1, top_k=7)

    params = defaults.from_fields({"temp": 0.5, "num_predict": 3})

    assert params == SamplingParams(temp=0.5, top_k=7, num_predict=3)
    assert defaults == SamplingParams(temp=0.1, top_k=7)


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("name", INTEGER_FIELDS)
def test_an_integer_is_taken_at_both_ends_of_its_range(name: str) -> None:
    for end in INTEGER_FIELDS[name]:
        assert getattr(DEFAULTS.from_fields({name: end}), name) == end


@pytest.mark.parametrize("name", INTEGER_FIELDS)
def test_an_integer_beyond_an_end_is_refused_with_its_name_and_range(name: str) -> None:
    low, high = INTEGER_FIELDS[name]

    for beyond in (low - 1, high + 1, -(10**400), 10**400):
        sentence = refusal({name: beyond})
        assert name in sentence
        assert f"from {low} to {high}" in sentence


@pytest.mark.parametrize("name", INTEGER_FIELDS)
@pytest.mark.parametrize(
    "value", [True, False, 1.0, 1.5, "1", "", [1], {}, math.nan, math.inf], ids=repr
)
def test_what_is_no_integer_is_refused_with_the_fields_name(name: str, value: Any) -> None:
    assert refusal({name: value}).startswith(f"{name} must be an integer")


@pytest.mark.parametrize("name", ["num_predict", "top_k", "repeat_last_n"])
def test_null_is_no_integer(name: str) -> None:
    assert refusal({name: None}).startswith(f"{name} must be an integer")


@pytest.mark.parametrize("name", ["seed", "n_batch", "logprobs"])
def test_null_gives_up_the_servers_default_where_none_is_a_value(name: str) -> None:
    given = SamplingParams(seed=5, n_batch=5, logprobs=5).from_fields({name: None})
    assert getattr(given, name) is None


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", NUMBER_FIELDS)
def test_a_number_is_taken_at_both_ends_of_its_range(name: str) -> None:
    low, high, _ = NUMBER_FIELDS[name]

    for end in (low, high):
        assert getattr(DEFAULTS.from_fields({name: end}), name) == end


@pytest.mark.parametrize("name", NUMBER_FIELDS)
def test_an_integer_is_a_number_and_becomes_a_float(name: str) -> None:
    value = getattr(DEFAULTS.from_fields({name: 1}), name)

    assert (type(value), value) == (float, 1.0)


@pytest.mark.parametrize("name", NUMBER_FIELDS)
def test_a_number_beyond_an_end_is_refused_with_its_name_and_range(name: str) -> None:
    low, high, said = NUMBER_FIELDS[name]
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)

    for beyond in (below, above, -1001, -math.inf, math.inf, math.nan, 10**400, -(10**400)):
        sentence = refusal({name: beyond})
        assert name in sentence
        assert all(part in sentence for part in said), sentence


@pytest.mark.parametrize("name", NUMBER_FIELDS)
@pytest.mark.parametrize("value", [True, False, "0.5", "", None, [0.5], {}], ids=repr)
def test_what_is_no_number_is_refused_with_the_fields_name(name: str, value: Any) -> None:
    assert refusal({name: value}).startswith(f"{name} must be a number")


# ---------------------------------------------------------------- temperature, ignore_eos


def test_temperature_is_another_name_of_temp() -> None:
    assert DEFAULTS.from_fields({"temperature": 0.25}) == DEFAULTS.from_fields({"temp": 0.25})


@pytest.mark.parametrize("order", [("temp", "temperature"), ("temperature", "temp")])
def test_both_names_at_once_are_refused_even_when_they_agree(order: tuple[str, str]) -> None:
    sentence = refusal(dict.fromkeys(order, 0.5))

    assert "temp " in sentence
    assert "temperature" in sentence


@pytest.mark.parametrize("value", [-1, 1001, True, "hot", None], ids=repr)
def test_a_bad_temperature_is_refused_by_the_name_that_the_client_used(value: Any) -> None:
    assert refusal({"temperature": value}).startswith("temperature must be a number ≥ 0")


@pytest.mark.parametrize("value", [True, False])
def test_ignore_eos_is_true_or_false(value: bool) -> None:
    assert DEFAULTS.from_fields({"ignore_eos": value}).ignore_eos is value


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "", None, [], {}], ids=repr)
def test_what_only_looks_true_or_false_is_refused(value: Any) -> None:
    assert refusal({"ignore_eos": value}) == "ignore_eos must be true or false"


# ---------------------------------------------------------------- stop


@pytest.mark.parametrize(
    ("value", "stop"),
    [
        ("end", ("end",)),
        (["a", "b"], ("a", "b")),
        (("a", "b"), ("a", "b")),
        ([], ()),
        (["\n"], ("\n",)),
        (["語🙂"], ("語🙂",)),
        (["x" * 1024], ("x" * 1024,)),
        (["x"] * 16, ("x",) * 16),
    ],
    ids=range(8),
)
def test_stop_is_a_string_or_a_list_of_them(value: Any, stop: tuple[str, ...]) -> None:
    assert DEFAULTS.from_fields({"stop": value}).stop == stop


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["x"] * 17, "at most 16"),
        (5, "at most 16"),
        (None, "at most 16"),
        (True, "at most 16"),
        ({"a": 1}, "at most 16"),
        ("", "not empty"),
        (["a", ""], "not empty"),
        (["a", None], "must be a string"),
        ([["a"]], "must be a string"),
        (["a", 5], "must be a string"),
        ([b"a"], "must be a string"),
        ("x" * 1025, "at most 1024"),
        (["a", "x" * 1025], "at most 1024"),
        (["a\0b"], "U+0000"),
        (["\ud83d"], "surrogate"),
    ],
    ids=range(15),
)
def test_any_other_stop_is_refused_with_its_name_and_the_reason(value: Any, said: str) -> None:
    sentence = refusal({"stop": value})

    assert sentence.startswith("stop")
    assert said in sentence


@pytest.mark.parametrize("value", ["x", ["x"] * 16, ["y" * 64], []], ids=range(4))
def test_dry_breakers_are_a_string_or_a_list_of_them(value: Any) -> None:
    expected = (value,) if isinstance(value, str) else tuple(value)
    assert DEFAULTS.from_fields({"dry_sequence_breakers": value}).dry_sequence_breakers == expected


@pytest.mark.parametrize("value", [["x"] * 17, ["y" * 65], [""], [1], None, 5], ids=range(6))
def test_any_other_dry_breakers_are_refused_with_the_fields_name(value: Any) -> None:
    assert refusal({"dry_sequence_breakers": value}).startswith("dry_sequence_breakers")


# ---------------------------------------------------------------- logit_bias


@pytest.mark.parametrize(
    ("value", "biases"),
    [
        ({"5": -1, "7": 2.5}, (LogitBias(5, -1.0), LogitBias(7, 2.5))),
        ([[5, -100], [7, 100]], (LogitBias(5, -100.0), LogitBias(7, 100.0))),
        ({"0": False}, (LogitBias(0, -math.inf),)),
        ([[i, 0] for i in range(1024)], tuple(LogitBias(i, 0.0) for i in range(1024))),
        ({}, ()),
        ([], ()),
    ],
    ids=range(6),
)
def test_logit_bias_is_an_object_or_a_list_of_pairs(
    value: Any, biases: tuple[LogitBias, ...]
) -> None:
    assert DEFAULTS.from_fields({"logit_bias": value}).logit_bias == biases


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[i, 0] for i in range(1025)], "at most 1024"),
        (5, "object of token ids"),
        (None, "object of token ids"),
        ([5], "such pairs"),
        ([[1, 2, 3]], "such pairs"),
        ({"x": 1}, "a token id must be an integer"),
        ({"-1": 1}, "a token id must be an integer"),
        ([[-1, 1]], "from 0"),
        ([[1.0, 1]], "a token id must be an integer"),
        ({"1": 101}, "≥ -100 and ≤ 100, or false for never"),
        ({"1": True}, "a bias must be a number"),
        ({"1": "x"}, "a bias must be a number"),
        ([[1, 1], [1, 2]], "twice"),
        ({"1": 1, "01": 2}, "twice"),
    ],
    ids=range(14),
)
def test_any_other_logit_bias_is_refused_with_its_name_and_the_reason(
    value: Any, said: str
) -> None:
    sentence = refusal({"logit_bias": value})

    assert sentence.startswith("logit_bias")
    assert said in sentence


# ---------------------------------------------------------------- what an engine honours


def test_the_defaults_ask_nothing_of_an_engine() -> None:
    assert DEFAULTS.beyond(()) == []


def test_what_differs_from_its_default_is_asked_for_unless_it_is_supported() -> None:
    params = DEFAULTS.from_fields({"min_p": 0.1, "seed": 1, "logprobs": 0, "mirostat": 0})

    assert params.beyond(()) == ["min_p", "logprobs", "seed"]
    assert params.beyond(("seed", "logprobs")) == ["min_p"]
    assert params.beyond(NAMES) == []


# ---------------------------------------------------------------- names, and everything


@pytest.mark.parametrize(
    "name", ["max_tokens", "", "Temp", " temp", "temp\0", "\ud800", "__init__"]
)
def test_an_unknown_name_is_refused_and_named(name: str) -> None:
    sentence = refusal({"temp": 0.5, name: 1})

    assert sentence == f"unknown field: {name!r}"
    assert sentence.encode()  # fit to be sent


def test_the_sentence_is_short_however_long_the_unknown_name_is() -> None:
    assert len(refusal({"x" * 1_000_000: 1})) < 200


@given(
    st.dictionaries(
        st.sampled_from([*NAMES, "temperature"]) | st.text(max_size=5), JSON, max_size=3
    )
)
@settings(max_examples=80)
def test_whatever_a_client_sends_is_in_range_or_refused_with_a_sentence(
    sent: dict[str, Any],
) -> None:
    params = params_or_error(sent)
    if isinstance(params, InvalidRequest):
        assert params.message.encode()
        return

    assert set(sent) <= {*NAMES, "temperature"}
    for name, (low, high) in INTEGER_FIELDS.items():
        value = getattr(params, name)
        assert value == getattr(DEFAULTS, name) or (type(value) is int and low <= value <= high)
    assert len({bias.token for bias in params.logit_bias}) == len(params.logit_bias) <= 1024
    for name, (least, greatest, _) in NUMBER_FIELDS.items():
        value = getattr(params, name)
        assert type(value) is float
        assert least <= value <= greatest
    assert type(params.ignore_eos) is bool
    assert len(params.stop) <= 16
    assert all(stop.encode() and len(stop) <= 1024 and "\0" not in stop for stop in params.stop)
