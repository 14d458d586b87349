"""The state of a pool and of its workers, as values; and what workers count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from shared.steps import StepTally
from shared.values import ModelInfo, Usage

State = Literal["loading", "ready", "replacing", "given_up"]
"""A worker's state: its process loads the model; it serves; its process has died and will be
replaced; no further process will be started."""

SHUTTING_DOWN = "the server is shutting down"
"""Why requests are refused while the pool drains."""
USUAL_CAUSES = ("sigkill", "sigsegv", "sigabrt", "exit_1", "no_progress", "load_timeout")
"""Causes of death that are counted from 0: Prometheus sees no increase in a counter whose first
value is 1."""


@dataclass(slots=True)
class WorkerCounters:
    """What one worker's processes have counted since the model was loaded. Counters only grow."""

    steps: StepTally = field(default_factory=StepTally)
    prompt_tokens: int = 0
    """Prompt tokens of completed requests."""
    cached_tokens: int = 0
    """Prompt tokens of completed requests that did not have to be processed again."""
    generated_tokens: int = 0
    deaths: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(USUAL_CAUSES, 0)))
    """Deaths of processes by cause, such as "sigkill"."""

    def ended(self, usage: Usage) -> None:
        """Count a completed request."""
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker: the process that runs now, and what became of the ones before."""

    index: int
    state: State
    pid: int | None
    """None: no process runs."""
    loaded: float
    """Share of the model that its process has loaded, 0 to 1."""
    slots: int
    """Requests that it can run at the same time; 0 before it is ready."""
    active: int
    """Requests that hold a slot in it."""
    silence_s: float
    """Seconds since its process was last heard; 0 while it loads the model, infinite when no
    process runs or its process is ending."""
    given_up: str
    """Why no further process will be started; empty otherwise."""
    trouble: str
    """What is wrong with it, in words; empty if nothing is."""
    counters: WorkerCounters


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment. See `WorkerPool.until_change` for the next one."""

    model: ModelInfo | None
    """The loaded model; None before a worker is ready."""
    workers: tuple[WorkerStatus, ...]
    """One for each worker, ready or not, ordered by index."""
    waiting: int
    """Requests that wait for a slot."""
    is_draining: bool

    @property
    def ready_workers(self) -> int:
        """How many workers can take requests."""
        return sum(worker.state == "ready" for worker in self.workers)

    @property
    def active(self) -> int:
        """Requests that hold a slot."""
        return sum(worker.active for worker in self.workers if worker.state == "ready")

    @property
    def loaded(self) -> float:
        """Share of the model that is loaded, 0 to 1: that of the worker that is furthest."""
        if self.model is not None:
            return 1.0
        return max((worker.loaded for worker in self.workers), default=0.0)

    @property
    def is_lost(self) -> bool:
        """All workers are given up: none is left, and none will be started."""
        return all(worker.given_up for worker in self.workers)

    @property
    def troubles(self) -> tuple[str, ...]:
        """A sentence for each worker with which something is wrong."""
        return tuple(worker.trouble for worker in self.workers if worker.trouble)

    @property
    def why_not_ready(self) -> str | None:
        """Why requests are refused, in a sentence; None when they are not."""
        if self.is_draining:
            return SHUTTING_DOWN
        if self.ready_workers:
            return None
        if self.is_lost:
            return "no worker is left; the server's log says why"
        return "no worker is ready yet"

    def makes_progress(self, silence_s: float) -> bool:
        """Whether a worker loads the model, or was heard less than `silence_s` seconds ago."""
        return any(worker.silence_s < silence_s for worker in self.workers)
