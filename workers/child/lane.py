"""A thread that prepares requests one after the other, first come first served."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import QueueFull
from shared.messages import Tokenize
from workers.child.preparer import Request

SYSTEM_DEFAULT = 0
"""As a stack size: what the system gives to threads, usually 8 MiB."""

logger = logging.getLogger("tokenflume.worker")


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """The resources of a lane."""

    questions: int
    """Tokenize requests that may wait, ≥ 1."""
    stack_bytes: int
    """Size of the thread's stack, of which the kernel only provides the pages that are touched.
    A thread that the system refuses, as by a limit of address space, gets the default size."""
    idle_s: float | None = None
    """Seconds without a request after which the thread ends; None: it stays."""


class Lane:
    """Calls `prepare` for each request, in a thread that is started when it is needed.

    Questions (Tokenize) wait until no Generate and no Embed waits. The worker's slots bound those,
    so questions are delayed, but not forever. `prepare` must not raise.
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
        """Add a request. Raises QueueFull when as many questions wait as may, and MemoryError."""
        is_question = isinstance(request, Tokenize)
        with self._change:
            if is_question and len(self._questions) >= self._limits.questions:
                raise QueueFull(f"{len(self._questions)} texts wait to be tokenized")
            (self._questions if is_question else self._requests).append(request)
            self._change.notify()
            if not self._has_thread:
                self._start_thread()

    def busy_s(self) -> float:
        """Return for how many seconds a request has been prepared; 0 if none is prepared."""
        began_at = self._began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def close(self) -> None:
        """Drop the requests that wait, and let the thread end, without waiting for it."""
        with self._change:
            self._is_closed = True
            self._requests.clear()
            self._questions.clear()
            self._change.notify()

    def _start_thread(self) -> None:
        """Raises MemoryError when the system refuses a thread: that is nearly always the reason."""
        try:
            self._start_with_stack(self._limits.stack_bytes)
        except RuntimeError:
            self._start_with_default_stack()
            logger.warning(
                "a stack of %d MiB was refused: the tokenizer may crash with very long words",
                self._limits.stack_bytes // 2**20,
            )
        self._has_thread = True

    def _start_with_default_stack(self) -> None:
        try:
            self._start_with_stack(SYSTEM_DEFAULT)
        except RuntimeError as error:
            raise MemoryError(str(error)) from None

    def _start_with_stack(self, stack_bytes: int) -> None:
        before = threading.stack_size(stack_bytes)
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        finally:
            threading.stack_size(before)

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
