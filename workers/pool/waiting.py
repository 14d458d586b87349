"""The queue of requests that wait for a slot: fair between clients (round robin).

So a client with many requests does not delay another client's few.
"""

from __future__ import annotations

from collections import deque

from workers.pool.stream import RequestStream


class WaitingLine:
    """A queue for each client, served in turn. First come, first served within a client's."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[RequestStream]] = {}  # by client; the next to serve first
        self._length = 0
        self.characters = 0
        """Characters of all waiting prompts together."""

    def __len__(self) -> int:
        return self._length

    def add(self, stream: RequestStream) -> None:
        """Append a request to its client's queue."""
        self._queues.setdefault(stream.client, deque()).append(stream)
        self._count(stream, 1)

    def take(self) -> RequestStream:
        """Remove the next request; its client is served last from now on. Must not be empty."""
        client, queue = next(iter(self._queues.items()))
        stream = queue.popleft()
        del self._queues[client]
        if queue:
            self._queues[client] = queue
        self._count(stream, -1)
        return stream

    def remove(self, stream: RequestStream) -> bool:
        """Remove this request; return whether it was waiting."""
        queue = self._queues.get(stream.client, deque())
        if stream not in queue:
            return False
        queue.remove(stream)
        if not queue:
            del self._queues[stream.client]
        self._count(stream, -1)
        return True

    def take_all(self) -> list[RequestStream]:
        """Remove all requests, in the order in which they would have been served."""
        return [self.take() for _ in range(len(self))]

    def _count(self, stream: RequestStream, sign: int) -> None:
        self._length += sign
        self.characters += sign * len(stream.key)
