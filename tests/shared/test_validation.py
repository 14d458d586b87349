"""The checks of request fields: what each accepts, and the messages of its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.validation import number, text, texts


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_without_any_limit_is_finite(value: float) -> None:
    assert number("x", 1e308) == 1e308
    with pytest.raises(InvalidRequest, match="x must be a number"):
        number("x", value)


@given(st.text(st.characters(), max_size=10))
@settings(max_examples=100)
def test_a_text_is_taken_when_utf_8_and_c_strings_can_hold_it(value: str) -> None:
    is_fit = value != "" and "\0" not in value
    is_fit = is_fit and not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
    if is_fit:
        assert text("prompt", value) == value
    else:
        with pytest.raises(InvalidRequest, match="prompt must "):
            text("prompt", value)


@pytest.mark.parametrize("value", [None, 1, True, b"bytes", ["text"], {}], ids=repr)
def test_what_is_no_text_is_refused_with_the_fields_name(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt must be a string"):
        text("prompt", value)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.integers(0, 4))
def test_texts_are_taken_as_they_are_when_they_are_few_and_short_enough(
    strings: list[str], count: int
) -> None:
    if len(strings) <= count and all(len(string) <= 2 for string in strings):
        assert texts("stop", strings, count, 2) == tuple(strings)
    else:
        with pytest.raises(InvalidRequest, match=f"stop.* at most ({count}|2)"):
            texts("stop", strings, count, 2)
