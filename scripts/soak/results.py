"""What a soak collects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.soak.crashes import Broken, Crash
from scripts.soak.growth import Trend, trend
from scripts.soak.judge import Outcome
from scripts.soak.monitor import QUANTITIES, Sample


@dataclass(slots=True)
class Results:
    """The results of a soak, or of its part until now."""

    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    """Number of requests of each kind with each outcome."""
    dialects: Counter[str] = field(default_factory=Counter)
    """Number of completed answers in each dialect."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer or a clear error, one sentence each."""
    faults: list[str] = field(default_factory=list)
    """Other faults of the server, one sentence each."""
    broken: list[Broken] = field(default_factory=list)
    """Requests that something other than themselves ended."""
    failures: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each request that made a step of the engine fail."""
    crashes: Sequence[Crash] = ()
    hang_ups: int = 0
    """Number of SIGHUPs."""
    samples: Sequence[Sample] = ()
    tokens: int = 0
    """Events that were received."""
    seconds: float = 0.0
    outlived: int = 0
    """Completed answers of requests that were waiting during a crash."""
    is_complete: bool = True
    """False: the soak was interrupted."""

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    @property
    def trends(self) -> list[Trend]:
        return [trend(quantity, self.samples) for quantity in QUANTITIES] if self.samples else []

    @property
    def growing(self) -> list[Trend]:
        return [each for each in self.trends if each.grows]

    @property
    def is_clean(self) -> bool:
        return bool(self.requests) and not (self.lost or self.faults or self.growing)

    def count(self, outcome: Outcome) -> int:
        """Number of requests with this outcome."""
        return sum(number for (_, each), number in self.outcomes.items() if each is outcome)
