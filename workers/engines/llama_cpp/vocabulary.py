"""A model's vocabulary: texts to tokens and back, and the names of its control tokens."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import llama_cpp as lib

from shared.errors import ContextTooShort, InvalidRequest
from workers.engines.continued_text import continued

NO_TOKEN = -1
"""No token's id: a special token that the file does not name, or the end of a complete answer of a
model without an end token."""
SPARE_ROOM = 16
"""Room in tokens for a BOS, an EOS and the separator before a continued text."""

logger = logging.getLogger("tokenflume.llama_cpp")


class Vocabulary:
    """The vocabulary that the module's docstring describes. It is thread-safe."""

    def __init__(self, model: Any, context: int) -> None:
        """`context`: the most tokens of a sequence."""
        self.vocab = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.vocab)
        self._context = context
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        self.control = {
            token: self._name(token)
            for token in range(self.size)
            if lib.llama_vocab_get_attr(self.vocab, token) & hidden
        }
        """The names of the tokens without a text."""
        self.bos = self._believed(model, "bos", lib.llama_vocab_bos(self.vocab))
        """NO_TOKEN: the model has none."""
        self.eos = self._believed(model, "eos", lib.llama_vocab_eos(self.vocab))
        """NO_TOKEN: the model has none."""
        native_ends = frozenset(
            token for token in range(self.size) if lib.llama_vocab_is_eog(self.vocab, token)
        )
        self.false_ends = (
            native_ends & {lib.llama_vocab_eos(self.vocab)} if self.eos == NO_TOKEN else frozenset()
        )
        """The ordinary token that llama.cpp takes for an end because the file names none."""
        self.ends = native_ends - self.false_ends
        """The tokens that end a generation."""
        self._added = self._special_tokens()
        if not self.ends:
            logger.warning(
                "the model has no token that ends an answer: each answer goes on until its token"
                " limit, a stop string or the end of the context"
            )
        self._pieces: list[bytes | None] = [None] * self.size
        """The bytes of each token, once they were needed."""
        self._adds_space = self._text(self._tokenize(b"a", is_start=False)).startswith(b" ")

    def name(self, token: int) -> str:
        """A control token's name; "" for other tokens."""
        return self.control.get(token, b"").decode(errors="replace")

    def tokenize(self, text: str, *, is_start: bool, continues: bool) -> list[int]:
        """See Engine.tokenize."""
        data = text.encode()
        if continues:
            if self._adds_space:
                tokens = continued(lambda part: self._tokenize(part, is_start=False), data)
            else:
                tokens = self._tokenize(data, is_start=False)
        else:
            tokens = self._begin(data) if is_start else self._tokenize(data, is_start=False)
            if not tokens:
                raise InvalidRequest("the prompt has no tokens in this model's vocabulary")
        if len(tokens) > self._context:
            raise self._too_long(len(tokens))
        return tokens

    def piece(self, token: int, *, shows_control: bool) -> bytes:
        """See Engine.piece."""
        if shows_control and token in self.control:
            return self.control[token]
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._render(token)
        return piece

    def _begin(self, data: bytes) -> list[int]:
        """Tokens with a BOS if the model wants one, unless the text begins with it."""
        bos = self.control.get(self.bos)
        if bos and data.startswith(bos):
            tokens = self._tokenize(data, is_start=False)
            if tokens[:1] == [self.bos]:
                return tokens
        if self._added is None:
            return self._tokenize(data, is_start=True)
        before, after = self._added
        return [*before, *self._tokenize(data, is_start=False), *after]

    def _believed(self, model: Any, name: str, token: int) -> int:
        """The token if the file names it, or if it is a control token; else NO_TOKEN.

        Where a file names none, llama.cpp takes a number that other models use: 11 in byte-level
        BPE, which is a comma.
        """
        is_named = metadata(model, f"tokenizer.ggml.{name}_token_id") == str(token)
        return token if is_named or token in self.control else NO_TOKEN

    def _special_tokens(self) -> tuple[list[int], list[int]] | None:
        """The tokens before and after a text, if llama.cpp would add one that is not believed.

        None: llama.cpp adds the right ones.
        """
        wants_bos = bool(lib.llama_vocab_get_add_bos(self.vocab))
        wants_eos = bool(lib.llama_vocab_get_add_eos(self.vocab))
        before = [self.bos] if wants_bos else []
        after = [self.eos] if wants_eos else []
        if NO_TOKEN not in (*before, *after):
            return None
        return [t for t in before if t != NO_TOKEN], [t for t in after if t != NO_TOKEN]

    def _tokenize(self, data: bytes, *, is_start: bool) -> list[int]:
        # A text with more tokens than the context is refused, so its tokens need no room.
        room = min(len(data), self._context) + SPARE_ROOM
        tokens = (ctypes.c_int32 * room)()
        count: int = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, is_start, True)
        if count < 0:
            raise self._too_long(-count)
        return tokens[:count]

    def _too_long(self, count: int) -> ContextTooShort:
        return ContextTooShort(f"the prompt has {count} tokens; the context holds {self._context}")

    def _text(self, tokens: list[int]) -> bytes:
        return b"".join(map(self._render, tokens))

    def _name(self, token: int) -> bytes:
        name: bytes | None = lib.llama_vocab_get_text(self.vocab, token)
        return name or b""

    def _render(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]


def metadata(model: Any, key: str) -> str:
    """A value of the model's GGUF metadata as text; "unknown" if the key is missing."""
    buffer = ctypes.create_string_buffer(256)
    size = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if size >= 0 else "unknown"
