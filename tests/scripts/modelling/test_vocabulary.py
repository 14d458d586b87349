"""Vocabularies of random models."""

from __future__ import annotations

import itertools

import gguf
import pytest

from scripts.modelling.vocabulary import (
    FIRST_CHARACTER,
    SMALLEST_VOCABULARY,
    make_vocabulary,
    split,
)


def test_every_piece_of_a_vocabulary_can_come_out_of_the_tokenizer() -> None:
    vocabulary = make_vocabulary(3000)
    assert len(set(vocabulary.pieces)) == len(vocabulary.pieces) == 3000
    pieces = [piece.decode() for piece in vocabulary.pieces[FIRST_CHARACTER:]]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    assert [split(piece, ranks) for piece in pieces] == [[piece] for piece in pieces]
    scores = vocabulary.scores[FIRST_CHARACTER:]
    assert all(better > worse for better, worse in itertools.pairwise(scores))


@pytest.mark.parametrize("size", [SMALLEST_VOCABULARY, 300, 1000])
def test_a_vocabulary_has_the_size_asked_for_and_all_bytes(size: int) -> None:
    vocabulary = make_vocabulary(size)
    assert len(vocabulary.pieces) == len(vocabulary.scores) == len(vocabulary.types) == size
    assert vocabulary.types.count(gguf.TokenType.BYTE) == 256
