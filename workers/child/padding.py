"""Chooses the batch size of a decode step: its sequences, or more, so that tiles are full.

16 sequences may take less time than 15. Which sizes are worth it is measured when a worker has
loaded its model. The measurement may become wrong: another program was busy for a moment, or the
idle sequences that fill a step have long contexts now. So the size that was found slower is tried
again now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from workers.child.interpolation import interpolate

FIRST_TRIAL, LAST_GAP = 8, 256
"""Steps before the first trial; and the most steps between two trials. Each gap is twice the one
before it."""
RECENT = 3
"""Steps whose fastest is compared with a trial: disturbances only slow a step."""
TRUST = 1.25
"""Largest ratio that the first measurement is trusted with: it may have been disturbed."""
LEARNING_RATE = 0.5
"""Weight of the newest trial."""
BETTER = 0.97
"""A ratio of times below this is worth a change."""


class BatchPadding:
    """Learns for each number of sequences which batch size is fastest.

    `measured`: seconds of decode steps by batch size. Larger batches are not padded.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._choices = _choices(measured)

    def width(self, sequences: int) -> int:
        """Return the batch size for the next decode step of `sequences` sequences."""
        choice = self._choices.get(sequences)
        return choice.next if choice else sequences

    def observe(self, sequences: int, seconds: float) -> None:
        """Learn from a step that had the size which `width` returned."""
        if choice := self._choices.get(sequences):
            choice.observe(seconds)


class _Choice:
    """The choice between two sizes. `ratio`: the time of the other one over that of the better."""

    def __init__(self, better: int, other: int, ratio: float) -> None:
        self._better, self._other = better, other
        self._ratio = min(ratio, TRUST)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._gap = self._until_trial = FIRST_TRIAL

    @property
    def next(self) -> int:
        """The size of the next step."""
        return self._better if self._until_trial else self._other

    def observe(self, seconds: float) -> None:
        """Learn from a step of the size that was next."""
        if self._until_trial:
            self._until_trial -= 1
            self._recent.append(seconds)
            return
        self._ratio += LEARNING_RATE * (seconds / min(self._recent) - self._ratio)
        self._gap = min(2 * self._gap, LAST_GAP)
        if self._ratio < BETTER:
            self._better, self._other = self._other, self._better
            self._ratio = min(1 / self._ratio, TRUST)
            self._recent.clear()
            self._gap = FIRST_TRIAL
        self._until_trial = self._gap


def _choices(measured: Mapping[int, float]) -> dict[int, _Choice]:
    """Return for each number of sequences the choice between it and the fastest larger size."""
    sizes = sorted(measured)
    seconds = [measured[size] for size in sizes]
    choices = {}
    for own in range(1, max(sizes, default=1)):
        padded_s, padded = min((measured[size], size) for size in sizes if size > own)
        own_s = interpolate(sizes, seconds, own)
        if padded_s < own_s:
            choices[own] = _Choice(padded, own, own_s / padded_s)
        else:
            choices[own] = _Choice(own, padded, padded_s / own_s)
    return choices
