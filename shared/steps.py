"""Histograms of an engine's steps: the worker fills and sends them, the front adds them up."""

from __future__ import annotations

from shared.histogram import Histogram
from shared.messages import Steps
from shared.values import Counts, StepKind

SECONDS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30,
)  # fmt: skip
"""Bounds of a step's duration: from a small model's token to a long chunk on a slow CPU."""
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048)
"""Bounds of the tokens that a step processes. In a decode step that is one for each sequence."""


class StepTally:
    """Histograms of duration and of tokens, for each kind of step."""

    def __init__(self) -> None:
        self.seconds: dict[StepKind, Histogram] = {}
        self.tokens: dict[StepKind, Histogram] = {}

    def observe(self, kind: StepKind, tokens: int, seconds: float) -> None:
        """Count a step."""
        if kind not in self.seconds:
            self._begin(kind)
        self.seconds[kind].observe(seconds)
        self.tokens[kind].observe(tokens)

    def take(self) -> list[Steps]:
        """Return what was counted, one message for each kind of step, and start from zero."""
        taken = [
            Steps(kind, _counts(seconds), _counts(self.tokens[kind]))
            for kind, seconds in self.seconds.items()
        ]
        self.seconds, self.tokens = {}, {}
        return taken

    def add(self, steps: Steps) -> None:
        """Add the steps of a message. Raises ValueError if its buckets differ in number."""
        if steps.kind not in self.seconds:
            self._begin(steps.kind)
        self.seconds[steps.kind].add(steps.seconds.buckets, steps.seconds.total)
        self.tokens[steps.kind].add(steps.tokens.buckets, steps.tokens.total)

    def _begin(self, kind: StepKind) -> None:
        self.seconds[kind], self.tokens[kind] = Histogram(SECONDS), Histogram(TOKENS)


def _counts(histogram: Histogram) -> Counts:
    return Counts(tuple(histogram.counts), histogram.total)
