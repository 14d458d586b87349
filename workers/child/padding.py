"""How many sequences a decode step is computed with: its own, or more, so that tiles are full.

16 sequences may take less time than 15. What does is measured when a worker has loaded, and may
then be wrong: another program was busy for a moment, or the idle sequences that fill a step have
long contexts now. So what was found worse is tried again now and then, beside what is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from workers.child.interpolation import interpolate

FIRST_TRIAL, LAST_GAP = 8, 256
"""Steps before the first trial; each one after it is twice as far away, up to the second."""
RECENT = 3
"""Steps of which the fastest is compared with a trial: disturbances only ever slow a step down."""
TRUST = 1.25
"""What the first measurement says is believed up to this ratio: it may have been disturbed."""
LEARNING_RATE = 0.5
"""Weight of the newest trial."""
BETTER = 0.97
"""A ratio that is worth a change."""


class Widths:
    """`measured`: seconds of decode steps by their sequences. Beyond these a step has its own."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._choices = _choices(measured)

    def width(self, sequences: int) -> int:
        """How many sequences the next decode step of so many is to be computed with."""
        choice = self._choices.get(sequences)
        return choice.next if choice else sequences

    def observe(self, sequences: int, seconds: float) -> None:
        """That step took so long."""
        if choice := self._choices.get(sequences):
            choice.observe(seconds)


class _Choice:
    """Between two widths. `ratio`: the time of the other, over that of the better one."""

    def __init__(self, better: int, other: int, ratio: float) -> None:
        self._better, self._other = better, other
        self._ratio = min(ratio, TRUST)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._gap = self._until_trial = FIRST_TRIAL

    @property
    def next(self) -> int:
        return self._better if self._until_trial else self._other

    def observe(self, seconds: float) -> None:
        """A step of the width that was the next one."""
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
    """For each number of sequences that has a wider size: it, or the fastest of these."""
    sizes = sorted(measured)
    seconds = [measured[size] for size in sizes]
    choices = {}
    for own in range(1, max(sizes, default=1)):
        least, wider = min((measured[size], size) for size in sizes if size > own)
        alone = interpolate(sizes, seconds, own)
        if least < alone:
            choices[own] = _Choice(wider, own, alone / least)
        else:
            choices[own] = _Choice(own, wider, least / alone)
    return choices
