"""Requests that wait for a slot: one of each client in turn, so that nobody's many hold up others'
few."""

from __future__ import annotations

from collections import deque

from workers.pool.stream import RequestStream


class WaitingLine:
    """A queue with a lane for each client. First come first served within a lane."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[RequestStream]] = {}  # whose turn it is comes first
        self._length = 0
        self.characters = 0
        """Of the prompts of all that wait."""

    def __len__(self) -> int:
        return self._length

    def add(self, stream: RequestStream) -> None:
        """Behind the others of its client."""
        self._lanes.setdefault(stream.client, deque()).append(stream)
        self._count(stream, 1)

    def take(self) -> RequestStream:
        """The next one; its client's lane is the last now. Only when there is one."""
        client, lane = next(iter(self._lanes.items()))
        stream = lane.popleft()
        del self._lanes[client]
        if lane:
            self._lanes[client] = lane
        self._count(stream, -1)
        return stream

    def remove(self, stream: RequestStream) -> bool:
        """Whether it was there."""
        lane = self._lanes.get(stream.client, deque())
        if stream not in lane:
            return False
        lane.remove(stream)
        if not lane:
            del self._lanes[stream.client]
        self._count(stream, -1)
        return True

    def take_all(self) -> list[RequestStream]:
        """All of them."""
        return [self.take() for _ in range(len(self))]

    def _count(self, stream: RequestStream, sign: int) -> None:
        self._length += sign
        self.characters += sign * len(stream.key)
