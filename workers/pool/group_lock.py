"""A fair lock for groups: members of one group hold it together, those of others wait.

Models that share their cores use it: requests of one model run at the same time, requests of
another model wait until the cores are free. Whoever comes while others wait queues behind them,
also if it is of the group that holds the lock, so no group waits forever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import QueueFull, ServingError
from workers.pool.change import Change


class GroupLock:
    """At most `limit` members wait. `change` is notified when the waiting ones change."""

    def __init__(self, limit: int, change: Change | None = None) -> None:
        self._limit = limit
        self._change = change or Change()
        self._group = ""  # the group that holds the lock, or held it last
        self._holders = 0
        self._queue: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many members wait, of all groups."""
        return len(self._queue)

    def waiting_of(self, group: str) -> int:
        """How many members of this group wait."""
        return sum(waiting == group for waiting, _ in self._queue)

    def close(self, error: ServingError) -> None:
        """Raise the error in all who wait."""
        for _, turn in self._queue:
            if not turn.done():
                turn.set_exception(error)
        self._queue.clear()
        self._change.notify_all()

    @asynccontextmanager
    async def held_by(self, group: str) -> AsyncIterator[None]:
        """Hold the lock, together with others of the group. Raises QueueFull."""
        await self._acquire(group)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, group: str) -> None:
        if len(self._queue) >= self._limit and not self._is_free_for(group):
            raise QueueFull(f"the queue is full: {len(self._queue)} requests wait for their models")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (group, turn)
        self._queue.append(entry)
        self._wake_first()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it got the lock, but was cancelled before it ran
                self._holders -= 1
            elif entry in self._queue:
                self._queue.remove(entry)
            self._wake_first()
            raise

    def _release(self) -> None:
        self._holders -= 1
        self._wake_first()

    def _is_free_for(self, group: str) -> bool:
        return not self._queue and (not self._holders or group == self._group)

    def _wake_first(self) -> None:
        """Give the lock to all at the head of the queue that may hold it together."""
        self._change.notify_all()
        while self._queue:
            group, turn = self._queue[0]
            if self._holders and group != self._group:
                return
            self._queue.popleft()
            if not turn.done():  # else its task was cancelled, and will run next
                self._group = group
                self._holders += 1
                turn.set_result(None)
