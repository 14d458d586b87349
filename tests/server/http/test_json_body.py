"""A request's body: a JSON object without ambiguity, or a sentence that says what is wrong."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.http.json_body import MAX_NUMBER_LENGTH, parse_object
from shared.errors import InvalidRequest

QUICK_S = 5.0
"""For 100,000 fields; they take a twentieth of a second, and far longer one against another."""

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


def refusal(body: bytes) -> str:
    """The sentence with which the body is refused."""
    with pytest.raises(InvalidRequest) as caught:
        parse_object(body)
    return caught.value.message


def object_or_sentence(body: bytes) -> dict[str, Any] | str:
    try:
        return parse_object(body)
    except InvalidRequest as error:
        return error.message


@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=40)
def test_an_object_is_read_as_it_was_written(
    value: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    assert parse_object(body) == value


def test_space_around_the_object_does_not_matter() -> None:
    assert parse_object(b' \r\n\t{"a": 1}\n ') == {"a": 1}


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_whatever_the_bytes_it_is_an_object_or_an_invalid_request(body: bytes) -> None:
    result = object_or_sentence(body)

    assert type(result) is dict or result.startswith(("the body", "the field", "a number"))


@given(OBJECTS, st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=3))
@settings(max_examples=60)
def test_a_damaged_object_is_an_object_or_an_invalid_request(
    value: dict[str, Any], damages: list[tuple[int, bytes]]
) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    for place, damage in damages:
        at = place % (len(body) + 1)
        body = body[:at] + damage + body[at + 1 :]
    result = object_or_sentence(body)

    assert type(result) is dict or result.encode()


@given(OBJECTS, st.integers(0, 10_000))
@settings(max_examples=40)
def test_an_object_that_is_cut_short_is_refused(value: dict[str, Any], place: int) -> None:
    body = json.dumps(value).encode()

    assert refusal(body[: place % len(body)]).startswith("the body")


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t", "\u2003".encode()], ids=repr)
def test_an_empty_body_is_refused(body: bytes) -> None:
    assert refusal(body) == "the body is empty; it must be a JSON object"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"prompt": "x"', "line 1, column 15"),
        (b'{"prompt": ', "line 1, column 12"),
        (b'{"prompt": "x', "line 1, column 12"),
        (b'{\n"prompt": x}', "line 2, column 11"),
        (b'{"prompt": "x"} {}', "line 1, column 17"),
        (b"{'prompt': 1}", "line 1, column 2"),
        (b'{"prompt": "\n"}', "line 1, column 13"),
        (b'{"prompt": "\\x"}', "line 1, column 13"),
        (b'{"a": 01}', "line 1, column 8"),
        (b'{"a": 0x10}', "line 1, column 8"),
        (b"prompt=x", "line 1, column 1"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
    ],
    ids=repr,
)
def test_the_sentence_says_where_json_ends(body: bytes, place: str) -> None:
    sentence = refusal(body)

    assert sentence.startswith("the body is not JSON: ")
    assert sentence.endswith(f"at {place}")


@pytest.mark.parametrize(
    ("body", "byte"),
    [
        (b"\xff", 0),
        (b'{"prompt": "\xe9t\xe9"}', 12),
        (b'{"a": "\xed\xa0\x80"}', 7),
        (b'{"a\xc3', 3),
    ],
    ids=repr,
)
def test_a_body_that_is_not_utf_8_is_refused_with_the_place(body: bytes, byte: int) -> None:
    assert refusal(body) == f"the body is not UTF-8: byte {byte} is not"


def test_utf_16_is_not_guessed() -> None:
    assert "not UTF-8" in refusal('{"prompt": "x"}'.encode("utf-16"))


@pytest.mark.parametrize(
    "body", [b"[]", b'[{"prompt": "x"}]', b'"text"', b"1", b"1.5", b"true", b"null"]
)
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(body) == "the body must be a JSON object"


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("where", ['{"temp": %s}', '{"a": [{"b": %s}]}', "%s"])
def test_what_python_alone_calls_a_number_is_refused(name: str, where: str) -> None:
    assert refusal((where % name).encode()) == f"the body is not JSON: {name} is not a JSON number"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'[{"a":' * 50_000,
    ],
    ids=range(6),
)
def test_a_hundred_thousand_brackets_are_refused(body: bytes) -> None:
    assert refusal(body) == "the body is not accepted: it is nested too deeply"


def test_an_integer_of_any_accepted_length_is_read_exactly() -> None:
    digits = "9" * MAX_NUMBER_LENGTH

    assert parse_object(f'{{"seed": {digits}}}'.encode()) == {"seed": 10**MAX_NUMBER_LENGTH - 1}


@pytest.mark.parametrize("length", [MAX_NUMBER_LENGTH + 1, 4300, 5000, 500_000])
def test_a_longer_integer_is_refused(length: int) -> None:
    assert (
        refusal(b'{"seed": ' + b"9" * length + b"}") == f"a number of {length} digits is too long"
    )
    assert "too long" in refusal(b'{"a": [-' + b"9" * length + b"]}")


def test_a_number_too_great_for_a_float_is_left_to_its_fields_range() -> None:
    assert parse_object(b'{"temp": 1e999, "top_p": -1e999}') == {
        "temp": math.inf,
        "top_p": -math.inf,
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"temp": 1, "temp": 2}',
        b'{"temp": 1, "temp": 1}',
        b'{"temp": 1, "x": 0, "t\\u0065mp": 2}',
        b'{"a": {"temp": 1, "temp": 2}}',
        b'{"a": [{"temp": 1, "temp": 2}]}',
        b'{"temp": 1, "temp": 2, "temp": 3, "x": 1}',
    ],
    ids=repr,
)
def test_a_field_that_is_there_twice_is_refused_by_its_name(body: bytes) -> None:
    assert refusal(body) == "the field 'temp' appears twice"


def test_the_same_field_may_be_in_two_objects() -> None:
    assert parse_object(b'{"a": {"a": 1}, "b": {"a": 2}}') == {"a": {"a": 1}, "b": {"a": 2}}


def test_a_field_of_a_lone_surrogate_that_is_there_twice_gives_a_sentence_that_can_be_sent() -> (
    None
):
    assert refusal(b'{"\\ud800": 1, "\\ud800": 2}').encode()


def test_the_sentence_is_short_however_long_the_field_is() -> None:
    name = b"x" * 500_000

    assert len(refusal(b'{"%s": 1, "%s": 2}' % (name, name))) < 200


def test_a_hundred_thousand_fields_are_read_quickly() -> None:
    value = {f"field{number}": number for number in range(100_000)}
    body = json.dumps(value).encode()
    started = time.perf_counter()

    assert parse_object(body) == value

    assert time.perf_counter() - started < QUICK_S


@pytest.mark.parametrize("twice", [0, 50_000, 99_999])
def test_one_field_among_a_hundred_thousand_that_is_there_twice_is_found_quickly(
    twice: int,
) -> None:
    names = [*range(100_000), twice]
    body = ("{" + ",".join(f'"field{name}":0' for name in names) + "}").encode()
    started = time.perf_counter()

    assert refusal(body) == f"the field 'field{twice}' appears twice"

    assert time.perf_counter() - started < QUICK_S


def test_a_hundred_thousand_fields_that_are_all_there_twice_are_refused_quickly() -> None:
    body = ("{" + ",".join(f'"field{name // 2}":0' for name in range(200_000)) + "}").encode()
    started = time.perf_counter()

    assert "appears twice" in refusal(body)

    assert time.perf_counter() - started < QUICK_S
