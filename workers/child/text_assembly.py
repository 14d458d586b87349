"""Turns token bytes into text that may be sent: whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from shared.values import Logprobs


class Piece(NamedTuple):
    """A token id with the text that the token completes, and its log probabilities if asked for."""

    token: int
    text: str
    logprobs: Logprobs | None = None


class TextAssembler:
    """Turns one sequence's token bytes into pieces of text.

    A token may hold half a UTF-8 character: its piece is then empty, and the
    piece of the token that completes the character has the character. Bytes
    that cannot be UTF-8 become U+FFFD. A character that the end of the
    generation cuts is left out. A token whose text may begin a stop string is
    held back until that is decided. Of several stop strings the one that is
    complete first counts, and of those the longest.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[Piece] = []
        self.stopped = False

    def push(self, token: int, data: bytes, logprobs: Logprobs | None = None) -> list[Piece]:
        """Return the pieces that may be sent now, in order.

        When a stop string is complete, `stopped` becomes true, and the text
        before the stop string has been returned.
        """
        piece = Piece(token, self._decoder.decode(data), logprobs)
        if not self._stop:
            return [piece]
        self._held.append(piece)
        text = "".join(piece.text for piece in self._held)
        cut = self._find_stop(text)
        if cut is not None:
            self.stopped = True
            return self._release_text(cut)
        return self._release_whole(len(text) - self._possible_stop(text))

    def flush(self) -> list[Piece]:
        """Return what was held back: the generation is finished without a stop string."""
        return self._release(len(self._held))

    def _find_stop(self, text: str) -> int | None:
        """Return where the stop string begins that is complete first, wherever tokens end."""
        found = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        return min(found)[1] if found else None

    def _possible_stop(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

    def _release(self, count: int) -> list[Piece]:
        released = self._held[:count]
        del self._held[:count]
        return released

    def _release_whole(self, length: int) -> list[Piece]:
        """Release the tokens that lie completely in the first `length` characters."""
        count = end = 0
        for piece in self._held:
            end += len(piece.text)
            if end > length:
                break
            count += 1
        return self._release(count)

    def _release_text(self, length: int) -> list[Piece]:
        """Release exactly the first `length` characters; drop what follows."""
        released = []
        for piece in self._held:
            if length <= 0:
                break
            released.append(piece._replace(text=piece.text[:length]))
            length -= len(piece.text)
        self._held.clear()
        return released
