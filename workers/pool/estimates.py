"""Estimates learned from completed requests: tokens of a prompt, seconds until a slot is free."""

from __future__ import annotations

import math
from dataclasses import replace

from shared.messages import Finished
from shared.values import Usage

TOKENS_PER_CHARACTER = 0.3
"""The estimate before the first request: English text with usual vocabularies."""
LONGEST_WAIT_S = 600
"""Upper bound of an estimated wait."""
LEARNING_RATE = 0.1
"""Weight of the newest value in an Average."""


def without_prefix(finished: Finished, prefix_tokens: int) -> Finished:
    """The same, but `prefix_tokens` that stood before the client's prompt are not counted."""
    usage = finished.usage
    own = Usage(
        prompt_tokens=max(0, usage.prompt_tokens - prefix_tokens),
        cached_tokens=max(0, usage.cached_tokens - prefix_tokens),
        completion_tokens=usage.completion_tokens,
    )
    return replace(finished, usage=own)


class Average:
    """An exponential moving average; 0 before the first value."""

    def __init__(self) -> None:
        self.value = 0.0
        self._rate = 1.0

    def add(self, value: float) -> None:
        self.value += self._rate * (value - self.value)
        self._rate = LEARNING_RATE


class Pace:
    """Moving averages of how long requests take and how many tokens a character has."""

    def __init__(self) -> None:
        self._request_s = Average()
        self._tokens = Average()
        self._tokens.add(TOKENS_PER_CHARACTER)

    def learn(self, characters: int, finished: Finished) -> None:
        """Take a completed request into account, whose prompt has this many characters."""
        timings, tokens = finished.timings, finished.usage.prompt_tokens
        if tokens:
            self._request_s.add(timings.prefill_s + timings.decode_s)
        if tokens and characters:
            self._tokens.add(tokens / characters)

    def tokens(self, characters: int) -> int:
        """Estimated tokens of a prompt of this many characters."""
        return math.ceil(characters * self._tokens.value)

    def wait_s(self, requests: int, slots: int) -> int:
        """Estimated seconds until `slots` have served `requests`: 1 to LONGEST_WAIT_S."""
        seconds = self._request_s.value * requests / max(1, slots)
        return max(1, min(LONGEST_WAIT_S, math.ceil(seconds)))
