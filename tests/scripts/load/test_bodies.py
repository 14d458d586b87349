"""Reading answers: what is complete is counted, anything else is a failure of its kind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.load.bodies.body import Body, Expected
from scripts.load.dialects import STREAMING, UNSTREAMED
from scripts.load.errors import CUT, ERROR_EVENT, WRONG, StreamFailure
from tests.scripts.load.answers import (
    GOOD,
    NATIVE,
    TEXTS,
    completion,
    events,
    generated,
    generated_end,
    lines,
    native,
    native_end,
    usage,
)

DIALECTS = {**STREAMING, **UNSTREAMED}


def read(dialect: str, data: bytes, cuts: Sequence[int] = (), **expected: Any) -> Body:
    """The answer, in parts that begin at the cuts, to its end."""
    body = DIALECTS[dialect].body(Expected(**{"tokens": 3, **expected}))
    for start, end in itertools.pairwise([0, *sorted(cuts), len(data)]):
        body.feed(data[start:end])
    body.end()
    return body


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_good_answer_is_complete_wherever_reads_cut_it(dialect: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(GOOD[dialect]))))
    assert read(dialect, GOOD[dialect], cuts).tokens == 3


BAD: list[tuple[str, bytes, str, str]] = [
    ("stream", lines(*NATIVE), CUT, "without its last line after 3 tokens"),
    ("stream", lines(*NATIVE, native_end(3))[:-1], CUT, "within a line"),
    ("stream", lines(native(0), native(0), native(1), native_end(3)), WRONG, "has the index 0"),
    ("stream", lines(native(1), native(0), native(2), native_end(3)), WRONG, "has the index 1"),
    ("stream", lines(native(0), native(2), native_end(2)), WRONG, "has the index 2"),
    ("stream", lines(*NATIVE, native_end(4)), WRONG, "3 tokens arrived, but usage says 4"),
    ("stream", lines(*NATIVE[:2], native_end(2)), WRONG, "2 tokens instead of 3"),
    ("stream", lines(*NATIVE, native_end(3, "cancelled")), WRONG, "finish_reason is 'cancelled'"),
    ("stream", lines(*NATIVE, native_end(3), native(3)), WRONG, "a line after the last one"),
    ("stream", lines(native(0), {"error": {"message": "no more"}}), ERROR_EVENT, "no more"),
    ("stream", lines({"text": "a"}), WRONG, "not of this format"),
    ("stream", b"token\n", WRONG, "not JSON"),
    ("stream", b"[1]\n", WRONG, "not an object"),
    ("stream-plain", b"a\nb\n", WRONG, "2 tokens instead of 3"),
    ("stream-plain", b"a\nb\nc\nd\n", WRONG, "4 tokens instead of 3"),
    ("stream-plain", b"a\nb\nc", CUT, "within a line"),
    ("token-stream", b"", CUT, "without a text"),
    ("openai", events(*TEXTS, completion("", "length"), usage(3)), CUT, r"without \[DONE\]"),
    ("openai", events(*TEXTS, usage(3), None), WRONG, "no finish reason"),
    ("openai", events(*TEXTS, completion("", "length"), usage(2), None), WRONG, "usage says 2 tok"),
    ("openai", events(*TEXTS, completion("d", "length"), None), WRONG, "4 tokens instead of 3"),
    (
        "openai",
        events(completion("a"), completion("b", answer="y"), None),
        WRONG,
        "of another answer",
    ),
    (
        "openai",
        events(completion("a", "length"), completion("b"), None),
        WRONG,
        "after the finish reason",
    ),
    ("openai", events(completion("a"), {"error": {"message": "no more"}}), ERROR_EVENT, "no more"),
    (
        "openai",
        events(*TEXTS, completion("", "stop"), None, completion("d")),
        WRONG,
        "after .DONE.",
    ),
    ("openai-chat", events(completion("a")), WRONG, "not of this format"),
    ("ollama", lines(generated("a")), CUT, "without its last line"),
    ("ollama", lines(generated("a"), {"error": "no more"}), ERROR_EVENT, "no more"),
    ("ollama", lines(*map(generated, "abc"), generated_end(2)), WRONG, "usage says 2 tokens"),
    ("ollama-chat", lines(generated("a")), WRONG, "not of this format"),
]


@pytest.mark.parametrize(("dialect", "data", "kind", "complaint"), BAD)
def test_anything_else_is_a_failure_of_its_kind(
    dialect: str, data: bytes, kind: str, complaint: str
) -> None:
    with pytest.raises(StreamFailure, match=complaint) as caught:
        read(dialect, data)
    assert caught.value.kind == kind


def test_events_that_are_missing_are_counted_by_the_rule_that_was_asked_for() -> None:
    merged = events(completion("a" * 9), completion("", "length"), usage(9), None)
    split = events(*[completion("äöü")] * 3, completion("", "length"), usage(9), None)
    assert read("openai", merged, tokens=9, events="merged").tokens == 1
    assert read("openai", split, tokens=9).tokens == 3, "each character may be of two tokens"
    for data, rule in ((merged, "usual"), (merged, "exact"), (split, "exact")):
        with pytest.raises(StreamFailure, match="events arrived, but usage says 9 tokens"):
            read("openai", data, tokens=9, events=rule)


def test_an_answer_without_a_usage_is_a_failure_where_one_is_needed() -> None:
    silent = events(*TEXTS, completion("", "length"), None)
    assert read("openai", silent).usage is None
    with pytest.raises(StreamFailure, match="3 tokens arrived without a usage"):
        read("openai", silent, needs_usage=True)


def test_cached_tokens_are_read_where_the_server_reports_them() -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 3}
    details = {**counts, "prompt_tokens_details": {"cached_tokens": 2}}
    timings = {"cache_n": 4, "prompt_n": 1}  # llama-server's
    for last, cached in (
        ({"usage": counts}, None),
        ({"usage": details}, 2),
        ({"usage": counts, "timings": timings}, 4),
    ):
        end = {"id": "x", "choices": [], **last}
        found = read("openai", events(*TEXTS, completion("", "length"), end, None)).usage
        assert found is not None
        assert (found.prompt, found.cached, found.completion) == (5, cached, 3)


@pytest.mark.parametrize(
    ("dialect", "text"),
    [("stream", "aaa"), ("stream-plain", "a\nä"), ("openai", "abä"), ("ollama-chat", "abc")],
)
def test_the_text_is_kept_if_that_is_asked_for(dialect: str, text: str) -> None:
    assert read(dialect, GOOD[dialect], keeps_text=True).text == text
    assert read(dialect, GOOD[dialect]).text == ""


@pytest.mark.parametrize(
    ("dialect", "answer", "is_good"),
    [
        ("openai-unstreamed", b'{"choices":[{"text":"ab","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}',
         True),
        ("openai-unstreamed", b'{"choices":[{"text":"a","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}',
         False),
        ("openai-unstreamed", b'{"choices":[{"text":"ab","finish_reason":"length"}],"usage":'
         b'{"prompt_tokens":2,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":0}}}',
         False),
        ("tokenize", b'{"tokens":[97,98]}', True),
        ("tokenize", b'{"tokens":[97]}', False),
        ("tokenize", b'{"tokens":', False),
        ("embeddings", b'{"data":[{"embedding":[%s]}]}' % b",".join(
            [b"0"] * 33 + [b"0.70710678"] * 2 + [b"0"] * 29), True),
        ("embeddings", b'{"data":[{"embedding":[%s]}]}' % b",".join(
            [b"1"] + [b"0"] * 63), False),
        ("stream-plain", b"a\nb\n", True),
        ("stream-plain", b"a\nc\n", False),
        ("token-stream", b"ab", True),
        ("token-stream", b"a", False),
        ("token-stream", b"ba", False),
    ],
)  # fmt: skip
def test_an_answer_is_compared_with_its_expected_text(
    dialect: str, answer: bytes, is_good: bool
) -> None:
    try:
        read(dialect, answer, tokens=2, text="ab")
        found = True
    except StreamFailure:
        found = False
    assert found is is_good
