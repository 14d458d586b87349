"""What the loop takes between two steps: messages, and requests that are prepared."""

from __future__ import annotations

import queue

from shared.messages import Message
from workers.child.prepared import PreparedEmbed, PreparedGenerate

Arrival = Message | PreparedGenerate | PreparedEmbed


class Inbox:
    """A queue. Any thread may put something in; only the loop takes."""

    def __init__(self) -> None:
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._error: Exception | None = None

    def put(self, arrival: Arrival) -> None:
        """Add what arrived."""
        self._arrivals.put(arrival)

    def fail(self, error: Exception) -> None:
        """Let `take` raise the error, once all that came before is taken, and from then on."""
        self._error = self._error or error
        self._arrivals.put(None)  # wakes the loop

    def take(self, timeout_s: float) -> list[Arrival]:
        """Return all that arrived; if there is nothing, wait up to `timeout_s` seconds.

        Raises the error that `fail` was given.
        """
        taken: list[Arrival] = []
        while not self._arrivals.empty() or (timeout_s > 0 and not taken and not self._error):
            try:
                arrival = self._arrivals.get(timeout=timeout_s)
            except queue.Empty:
                break
            if arrival is not None:
                taken.append(arrival)
        if self._error is not None and not taken:
            raise self._error
        return taken
