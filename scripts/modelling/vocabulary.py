"""Vocabularies of random models, of any size."""

from __future__ import annotations

import random
from collections.abc import Sequence

import gguf

from scripts.modelling.llama_gguf import Vocabulary

SPACE = "\u2581"
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
CHARACTERS = SPACE + LETTERS + ",.'-!?\u201c\u201d\u2019\u2014" + LETTERS.upper() + "0123456789"
"""Each is one piece. A small vocabulary has only the first of them."""
SPECIAL = ("<unk>", "<s>", "</s>")
FIRST_BYTE = len(SPECIAL)
FIRST_CHARACTER = FIRST_BYTE + 256
SMALLEST_VOCABULARY = FIRST_CHARACTER + 1
LARGEST_VOCABULARY = 1 << 18
LONGEST_PIECE = 10
"""Characters of a piece at most."""
WORD_STARTS = 0.4
"""Share of the joins whose left part is the space."""


def make_vocabulary(size: int) -> Vocabulary:
    """A SentencePiece-style vocabulary of `size` tokens; the same for the same size.

    Three special tokens and 256 bytes come first, so that any UTF-8 text has tokens;
    then single characters, then pieces of 2 to 10 characters.
    """
    characters = _all_characters()[: size - FIRST_CHARACTER]
    pieces = characters + _grow(characters, size - FIRST_CHARACTER - len(characters))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return Vocabulary(
        pieces=[piece.encode() for piece in (*SPECIAL, *bytes_, *pieces)],
        scores=[0.0] * FIRST_CHARACTER + [-float(rank) for rank in range(len(pieces))],
        types=[
            gguf.TokenType.UNKNOWN,
            *[gguf.TokenType.CONTROL] * 2,
            *[gguf.TokenType.BYTE] * 256,
            *[gguf.TokenType.NORMAL] * len(pieces),
        ],
    )


def _all_characters() -> list[str]:
    printable = map(chr, range(0x21, 0x7F))
    return list(dict.fromkeys([*CHARACTERS, *printable]))


def _grow(characters: Sequence[str], count: int) -> list[str]:
    """Make `count` pieces, each by joining two earlier ones, as BPE training does.

    The tokenizer prefers earlier joins. A piece within which it would make an earlier join
    across the seam could never be its result, and is left out.
    """
    draw = random.Random(0).random
    joinable = [c for c in characters if c == SPACE or c in LETTERS]
    ranks = {piece: rank for rank, piece in enumerate(characters)}
    grown: list[str] = []
    while len(grown) < count:
        # Squared: as in a language, most pieces are made of short and frequent ones.
        left, right = (joinable[int(len(joinable) * draw() ** 2)] for _ in range(2))
        if draw() < WORD_STARTS:
            left = SPACE
        piece = left + right
        if SPACE in right or len(piece) > LONGEST_PIECE or piece in ranks:
            continue
        if len(split(piece, ranks)) == 2:
            ranks[piece] = len(ranks)
            grown.append(piece)
            joinable.append(piece)
    return grown


def split(text: str, ranks: dict[str, int]) -> list[str]:
    """Split `text` as SentencePiece's BPE does: join pairs, the one of the lowest rank first."""
    parts = list(text)
    while True:
        joins = [
            (rank, i)
            for i in range(len(parts) - 1)
            if (rank := ranks.get(parts[i] + parts[i + 1])) is not None
        ]
        if not joins:
            return parts
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
