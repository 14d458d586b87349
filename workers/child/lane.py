"""A thread that prepares requests one after the other, first come first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import QueueFull
from shared.messages import Tokenize
from workers.child.preparer import Request


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """The resources of a lane."""

    questions: int
    """Tokenize requests that may wait, ≥ 1."""
    stack_bytes: int
    """Size of the thread's stack. The kernel only provides the pages that are touched."""
    idle_s: float | None = None
    """Seconds without a request after which the thread ends; None: it stays."""


class Lane:
    """Calls `prepare` for each request, in a thread that is started when it is needed.

    Questions (Tokenize) wait until no Generate and no Embed is left. Those are bounded by the
    worker's slots, so questions are delayed, but not for ever.
    `prepare` must not raise.
    """

    def __init__(self, name: str, limits: LaneLimits, prepare: Callable[[Request], None]) -> None:
        self._name = name
        self._limits = limits
        self._prepare = prepare
        self._requests: deque[Request] = deque()
        self._questions: deque[Request] = deque()
        self._change = threading.Condition()
        """Guards the queues and the two fields below."""
        self._has_thread = False
        self._is_closed = False
        self._began_at: float | None = None

    def put(self, request: Request) -> None:
        """Add a request. Raises QueueFull when as many questions wait as may."""
        is_question = isinstance(request, Tokenize)
        with self._change:
            if is_question and len(self._questions) >= self._limits.questions:
                raise QueueFull(f"{len(self._questions)} texts wait to be tokenized")
            (self._questions if is_question else self._requests).append(request)
            self._change.notify()
            if not self._has_thread:
                self._start_thread()

    def busy_s(self) -> float:
        """Return for how many seconds the current request is being prepared; 0: there is none."""
        began_at = self._began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def close(self) -> None:
        """Drop what waits, and let the thread end. Does not wait for it."""
        with self._change:
            self._is_closed = True
            self._requests.clear()
            self._questions.clear()
            self._change.notify()

    def _start_thread(self) -> None:
        """Raises RuntimeError when the system has no resources for a thread."""
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        default = threading.stack_size(self._limits.stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(default)
        self._has_thread = True

    def _work(self) -> None:
        while (request := self._next()) is not None:
            self._began_at = time.monotonic()
            self._prepare(request)
            self._began_at = None

    def _next(self) -> Request | None:
        """Wait for a request; None: the thread is to end."""
        with self._change:
            while not (self._requests or self._questions):
                if self._is_closed or not self._change.wait(self._limits.idle_s):
                    self._has_thread = False
                    return None
            return (self._requests or self._questions).popleft()
