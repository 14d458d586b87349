"""What a worker's place has seen: it outlives the processes that come and go there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from shared.steps import StepTally
from shared.values import Usage

State = Literal["loading", "ready", "replacing", "given_up"]
"""Of a place: its process loads the model, serves, has died and is to be replaced, or is not."""

USUAL_CAUSES = ("sigkill", "sigsegv", "sigabrt", "exit_1", "no_progress", "load_timeout")
"""Of deaths. They are counted from 0: nobody sees a counter grow that begins with 1."""


@dataclass(slots=True)
class WorkerCounters:
    """Since the model was loaded. They only grow."""

    steps: StepTally = field(default_factory=StepTally)
    prompt_tokens: int = 0
    """Of requests that are over, as the next."""
    cached_tokens: int = 0
    """Of those, the ones that were not processed again."""
    generated_tokens: int = 0
    deaths: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(USUAL_CAUSES, 0)))
    """By their causes, a word each."""

    def ended(self, usage: Usage) -> None:
        """A request is over."""
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A place, and what has become of it."""

    index: int
    state: State
    pid: int | None
    """None: no process is there."""
    slots: int
    """0 unless it is ready."""
    active: int
    """Requests that it has."""
    counters: WorkerCounters
