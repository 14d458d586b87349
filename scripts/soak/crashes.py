"""Crashes of workers, and which requests they explain.

A crash explains requests that end between the fault and the moment when all workers are ready
again. Only requests that held a slot may end so: at most as many as a worker has slots. A request
that waits for a slot must be served by another worker, or by the replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.soak.cases import Case
from scripts.soak.judge import Outcome

GRACE_S = 1.5
"""A client may see the end of its request by this time later than the crash is over."""


@dataclass(slots=True)
class Crash:
    """A worker that was ended. Times are readings of time.monotonic, in seconds."""

    fault: str
    """How it was ended."""
    begun: float
    ended: float | None = None
    """When all workers were ready again; None: not yet."""

    def explains(self, moment: float) -> bool:
        return self.begun <= moment and (self.ended is None or moment <= self.ended + GRACE_S)

    def overlaps(self, other: Crash) -> bool:
        """Whether there is a moment that both explain. A crash overlaps with itself."""
        starts_before = self.ended is None or other.begun <= self.ended + GRACE_S
        return starts_before and (other.ended is None or self.begun <= other.ended + GRACE_S)


@dataclass(frozen=True, slots=True)
class Broken:
    """A request that something other than itself ended, by its outcome."""

    case: Case
    outcome: Outcome
    begun: float
    ended: float

    @property
    def name(self) -> str:
        return f"{self.case.kind}, {self.case.dialect}"


def unexplained(
    broken: Sequence[Broken],
    crashes: Sequence[Crash],
    failures: Sequence[tuple[float, float]],
    slots: int,
) -> list[str]:
    """Requests without an explanation, and crashes that ended more requests than `slots`.

    `failures`: begin and end of each request that made a step of the engine fail.
    """
    found = []
    ended_by: Counter[int] = Counter()
    for one in broken:
        if one.outcome in (Outcome.SHARED, Outcome.CRASH_CUT):
            if any(begun <= one.ended <= ended + GRACE_S for begun, ended in failures):
                continue
            if one.outcome is Outcome.SHARED:
                found.append(f"{one.name}: it failed, and no request asked for a failure")
                continue
        indices = [index for index, crash in enumerate(crashes) if crash.explains(one.ended)]
        if not indices:
            found.append(f"{one.name}: {one.outcome}, but no worker crashed at that time")
        elif one.case.holds_slot and one.outcome is not Outcome.NOT_READY:
            ended_by[indices[-1]] += 1
    for index, ended in sorted(ended_by.items()):
        crash = crashes[index]
        allowed = slots * sum(map(crash.overlaps, crashes))
        if ended > allowed:
            found.append(
                f"{crash.fault} ended {ended} requests, but only {allowed} held a slot:"
                " waiting requests were lost"
            )
    return found
