"""Prompts as texts with cuts and as tokens, and questions about them."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequest
from shared.messages import Failed, Tokenize, Tokenized
from shared.prompt import Prompt
from shared.wire import encode_frame
from workers.child.preparer import Preparer
from workers.child.tokenize import MAX_ANSWER, TOKEN_BYTES, tokens_of
from workers.engines.echo import CONTROL, CONTROL_NAME, EchoEngine, EchoOptions

ENGINE = EchoEngine(EchoOptions(slots=1), context=2_000_000, batch=64)


def ask(prompt: Prompt) -> Tokenized | Failed:
    answer = Preparer(ENGINE).prepare(Tokenize(9, prompt, is_start=True))
    assert isinstance(answer, Tokenized | Failed)
    return answer


def test_a_control_tokens_name_is_one_token_and_text_across_a_cut() -> None:
    text = f"a{CONTROL_NAME}b"
    assert tokens_of(Prompt(text), ENGINE, is_start=True) == [97, CONTROL, 98]
    cut = tokens_of(Prompt(text, cuts=(3,)), ENGINE, is_start=True)
    assert bytes(cut).decode() == text


def test_a_cut_at_the_beginning_leaves_nothing_behind() -> None:
    assert tokens_of(Prompt("ab", cuts=(0, 0, 1, 2)), ENGINE, is_start=True) == [97, 98]
    with pytest.raises(InvalidRequest, match="no tokens"):
        tokens_of(Prompt("", cuts=(0,)), ENGINE, is_start=True)


def test_tokens_are_taken_as_they_are_if_the_vocabulary_has_them() -> None:
    assert tokens_of(Prompt(tokens=(5, 257)), ENGINE, is_start=True) == [5, 257]
    for bad in ((258,), (-1,), ()):
        with pytest.raises(InvalidRequest):
            tokens_of(Prompt(tokens=bad), ENGINE, is_start=True)


def test_a_question_is_answered_with_bytes_and_names() -> None:
    assert ask(Prompt(f"é{CONTROL_NAME}")) == Tokenized(
        9, (0xC3, 0xA9, CONTROL), (b"\xc3", b"\xa9", CONTROL_NAME.encode())
    )
    assert ask(Prompt(tokens=(97, 256))) == Tokenized(9, (97, 256), (b"a", b""))


def test_a_question_without_an_answer_has_a_reason() -> None:
    assert ask(Prompt(tokens=(300,))) == Failed(
        9, "invalid_request", "prompt: token 300 is not in the vocabulary, which ends at 257"
    )


def test_an_answer_always_fits_into_a_frame() -> None:
    size = len(CONTROL_NAME) + TOKEN_BYTES
    most = MAX_ANSWER // size
    fitting = ask(Prompt(tokens=(CONTROL,) * most))
    assert isinstance(fitting, Tokenized)
    assert encode_frame([fitting])
    beyond = ask(Prompt(tokens=(CONTROL,) * (most + 1)))
    assert isinstance(beyond, Failed)
    assert "too many tokens" in beyond.message
