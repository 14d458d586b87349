"""Text from token bytes: whole characters, a piece a token, and no part of a stop string."""

from __future__ import annotations

import codecs
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.child.text_assembly import Piece, TextAssembler

TEXTS = st.text(max_size=20) | st.text(st.sampled_from("aé語🙂\u0301\ufffd\n"), max_size=12)
CUTS = st.lists(st.integers(0, 100), max_size=15)

# Few letters, so that stop strings are met, are almost met, and overlap.
LETTERS = st.sampled_from("abé")
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)
LETTER_TEXTS = st.text(LETTERS, max_size=24)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, of which some may be empty."""
    edges = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def decoded(data: bytes) -> str:
    """The text of the bytes; half a character at their end has none."""
    return codecs.utf_8_decode(data, "replace", False)[0]


def texts_so_far(tokens: list[bytes]) -> list[str]:
    """For each token, the text up to and with it."""
    return [decoded(data) for data in itertools.accumulate(tokens)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def push_all(assembler: TextAssembler, tokens: list[bytes]) -> list[list[Piece]]:
    """What each push returned; none after a stop string."""
    returned = []
    for number, data in enumerate(tokens):
        returned.append(assembler.push(number, data))
        if assembler.stopped:
            break
    return returned


def whole(tokens: list[bytes], stop: tuple[str, ...] = ()) -> list[Piece]:
    """All pieces of a generation that ends after these tokens."""
    assembler = TextAssembler(stop)
    pieces = list(itertools.chain(*push_all(assembler, tokens)))
    return pieces if assembler.stopped else pieces + assembler.flush()


# ---------------------------------------------------------------- characters


@given(TEXTS, CUTS)
@settings(max_examples=100)
def test_the_text_is_whole_however_its_bytes_are_cut_into_tokens(
    text: str, cuts: list[int]
) -> None:
    assert text_of(whole(cut(text.encode(), cuts))) == text


@given(TEXTS, CUTS)
@settings(max_examples=100)
def test_every_token_has_one_piece_at_once_with_the_text_that_it_completes(
    text: str, cuts: list[int]
) -> None:
    tokens = cut(text.encode(), cuts)
    known = ["", *texts_so_far(tokens)]

    returned = push_all(TextAssembler(), tokens)

    assert returned == [
        [Piece(number, after.removeprefix(before))]
        for number, (before, after) in enumerate(itertools.pairwise(known))
    ]


def test_a_character_comes_with_the_token_that_completes_it() -> None:
    first, second, third, fourth = "🙂".encode()[:1], "🙂".encode()[1:3], "🙂".encode()[3:], b"!"
    assembler = TextAssembler()

    assert assembler.push(7, first) == [Piece(7, "")]
    assert assembler.push(8, second) == [Piece(8, "")]
    assert assembler.push(9, third + b"a") == [Piece(9, "🙂a")]
    assert assembler.push(7, fourth) == [Piece(7, "!")]


@given(st.lists(st.binary(max_size=6), max_size=8))
@settings(max_examples=150)
def test_bytes_of_any_kind_become_text_that_can_be_sent(tokens: list[bytes]) -> None:
    pieces = whole(tokens)

    assert text_of(pieces) == decoded(b"".join(tokens))
    assert text_of(pieces).encode().decode() == text_of(pieces)
    assert [piece.token for piece in pieces] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        ([b"a\xffb"], ["a\ufffdb"]),
        ([b"\xff", b"\xfe"], ["\ufffd", "\ufffd"]),
        ([b"\xa9"], ["\ufffd"]),  # the second half of a character
        ([b"\xc3", b"A"], ["", "\ufffdA"]),  # the first half, and then not the second
        ([b"\xe8\xaa", b"\xc3", b"\xa9"], ["", "\ufffd", "é"]),
        ([b"\xed\xa0\x80"], ["\ufffd" * 3]),  # a surrogate
        ([b"\xc0\xaf"], ["\ufffd" * 2]),  # an overlong form
        ([b"\xf0\x9f", b"", b"\x99\x82"], ["", "", "🙂"]),
    ],
    ids=range(8),
)
def test_bytes_that_can_never_be_a_character_become_u_fffd(
    tokens: list[bytes], texts: list[str]
) -> None:
    assert [piece.text for piece in whole(tokens)] == texts


@pytest.mark.parametrize("stop", [(), ("b",), ("ab",)])
def test_half_a_character_at_the_end_has_no_text(stop: tuple[str, ...]) -> None:
    pieces = whole([b"a", "é".encode()[:1]], stop)

    assert pieces == [Piece(0, "a"), Piece(1, "")]


# ---------------------------------------------------------------- stop strings


def text_before_stop(tokens: list[bytes], stop: tuple[str, ...]) -> tuple[str, bool]:
    """What is promised: the text before the stop string that is complete first, the longest of
    those; whether there is one. How the text is cut into tokens does not matter."""
    text = decoded(b"".join(tokens))
    ends = [
        (text.index(string) + len(string), text.index(string)) for string in stop if string in text
    ]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(LETTER_TEXTS, CUTS, STOPS)
@settings(max_examples=200)
def test_all_text_before_the_first_stop_string_is_given_and_nothing_after(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    tokens = cut(text.encode(), cuts)
    expected, is_stopped = text_before_stop(tokens, stop)
    assembler = TextAssembler(stop)

    pieces = list(itertools.chain(*push_all(assembler, tokens)))

    assert assembler.stopped == is_stopped
    if is_stopped:
        assert text_of(pieces) == expected
        assert assembler.flush() == []
    else:
        assert expected == text
        assert expected.startswith(text_of(pieces))
        assert text_of(pieces + assembler.flush()) == expected


@given(LETTER_TEXTS, CUTS, STOPS)
@settings(max_examples=150)
def test_a_token_is_held_back_exactly_as_long_as_its_text_may_begin_a_stop_string(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    tokens = cut(text.encode(), cuts)
    known = texts_so_far(tokens)
    assembler = TextAssembler(stop)
    given_out: list[Piece] = []

    for number, so_far in enumerate(known):
        given_out += assembler.push(number, tokens[number])
        if assembler.stopped:
            break
        beginnings = {string[:size] for string in stop for size in range(len(string))}
        longest = max(len(beginning) for beginning in beginnings if so_far.endswith(beginning))
        certain = [end for end in known[: number + 1] if len(end) <= len(so_far) - longest]
        assert len(given_out) == len(certain)
        assert text_of(given_out) == (certain[-1] if certain else "")


@given(LETTER_TEXTS, CUTS, STOPS)
@settings(max_examples=100)
def test_pieces_keep_the_order_and_the_text_of_their_tokens(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    tokens = cut(text.encode(), cuts)
    without_stop = whole(tokens)

    pieces = whole(tokens, stop)

    assert len(pieces) == len(without_stop) or text_before_stop(tokens, stop)[1]
    assert pieces[:-1] == without_stop[: len(pieces)][:-1]
    if pieces:  # the last one may be cut by a stop string
        last = without_stop[len(pieces) - 1]
        assert pieces[-1].token == last.token
        assert last.text.startswith(pieces[-1].text)


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "is_stopped"),
    [
        (["Hello", " END", " more"], ("END",), "Hello ", True),
        (["Hello", " E", "N", "D"], ("END",), "Hello ", True),
        (["xENDy"], ("END",), "x", True),
        (["END"], ("END",), "", True),
        (["Hello", " EN"], ("END",), "Hello EN", False),
        (["E", "E", "N", "D"], ("END",), "E", True),
        (["a", "a", "a", "b"], ("aab",), "a", True),
        (["one\n", "\ntwo"], ("\n\n",), "one", True),
        (["x", "USER:", "y"], ("END", "USER:"), "x", True),
        (["one END two USER:"], ("USER:", "END"), "one ", True),
        (["né", "e"], ("ée",), "n", True),
        (["end"], ("END",), "end", False),
        (["a", "b", "c", "d"], ("abcd", "c"), "ab", True),
        (["abcd"], ("abcd", "c"), "ab", True),
        (["abc"], ("c", "bc"), "a", True),
    ],
    ids=range(15),
)
def test_examples_of_stop_strings(
    tokens: list[str], stop: tuple[str, ...], text: str, is_stopped: bool
) -> None:
    assembler = TextAssembler(stop)

    pieces = list(itertools.chain(*push_all(assembler, [token.encode() for token in tokens])))
    pieces += assembler.flush()

    assert text_of(pieces) == text
    assert assembler.stopped == is_stopped


def test_a_token_is_given_out_as_soon_as_it_cannot_begin_a_stop_string_any_more() -> None:
    assembler = TextAssembler(("END",))

    assert assembler.push(1, b" the") == [Piece(1, " the")]
    assert assembler.push(2, b" E") == []
    assert assembler.push(3, b"N") == []
    assert assembler.push(4, b"G") == [Piece(2, " E"), Piece(3, "N"), Piece(4, "G")]


def test_only_the_tokens_that_may_be_of_a_stop_string_are_held_back() -> None:
    assembler = TextAssembler(("ENDING",))
    for number, data in enumerate([b"E", b"N", b"D"]):
        assert assembler.push(number, data) == []

    assert assembler.push(3, b"E") == [Piece(0, "E"), Piece(1, "N"), Piece(2, "D")]
    assert assembler.flush() == [Piece(3, "E")]


def test_of_a_token_with_a_stop_string_in_it_only_the_text_before_is_given() -> None:
    assembler = TextAssembler(("END",))
    assembler.push(1, b"E")

    assert assembler.push(2, b"xyzEND") == [Piece(1, "E"), Piece(2, "xyz")]
    assert assembler.stopped
    assert assembler.flush() == []


def test_a_stop_string_may_be_cut_within_a_character() -> None:
    assembler = TextAssembler(("é!",))
    first, second = "é".encode()[:1], "é".encode()[1:]

    assert assembler.push(1, b"a" + first) == [Piece(1, "a")]
    assert assembler.push(2, second) == []
    assert assembler.push(3, b"!") == []
    assert assembler.stopped


def test_without_a_stop_string_nothing_is_ever_held_back_or_stopped() -> None:
    assembler = TextAssembler()

    assert all(assembler.push(number, b"END") for number in range(3))
    assert not assembler.stopped
    assert assembler.flush() == []


def test_flush_gives_what_was_held_back_once() -> None:
    assembler = TextAssembler(("END",))
    assembler.push(1, b"E")
    assembler.push(2, b"N")

    assert assembler.flush() == [Piece(1, "E"), Piece(2, "N")]
    assert assembler.flush() == []
    assert not assembler.stopped


def test_the_longest_stop_strings_that_are_allowed_are_found_token_by_token() -> None:
    stop = tuple("a" * 1023 + letter for letter in "bcdefghijklmnopq")
    text = "a" * 3000 + "q"

    pieces = whole([letter.encode() for letter in text], stop)

    assert text_of(pieces) == "a" * (3000 - 1023)
