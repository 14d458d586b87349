"""Whose turn it is: groups that need the same cores use them one after the other.

Many may be in at the same time, if they are of one group. Others wait; who comes after them waits
behind them, of whatever group, so no group is kept out for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import QueueFull, ServingError
from workers.pool.change import Change


class Turns:
    """At most `limit` may wait. `change` is notified when others wait than before."""

    def __init__(self, limit: int, change: Change | None = None) -> None:
        self._change = change or Change()
        self._limit = limit
        self._group = ""
        self._inside = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_of(self, group: str) -> int:
        """Those of this group."""
        return sum(waiting == group for waiting, _ in self._waiting)

    def close(self, error: ServingError) -> None:
        """All who wait get the error."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    @asynccontextmanager
    async def of(self, group: str) -> AsyncIterator[None]:
        """Within, only this group is in. Raises QueueFull."""
        await self._enter(group)
        try:
            yield
        finally:
            self._inside -= 1
            self._let_in()

    async def _enter(self, group: str) -> None:
        if len(self._waiting) >= self._limit and not self._may_enter(group):
            raise QueueFull(f"{len(self._waiting)} requests wait for their models, as many as may")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (group, turn)
        self._waiting.append(place)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in, and cancelled before it knew
                self._inside -= 1
            elif place in self._waiting:
                self._waiting.remove(place)
            self._let_in()
            raise

    def _may_enter(self, group: str) -> bool:
        return not self._waiting and (not self._inside or group == self._group)

    def _let_in(self) -> None:
        """All at the head of the queue who may be in together."""
        self._change.notify_all()
        while self._waiting:
            group, turn = self._waiting[0]
            if self._inside and group != self._group:
                return
            self._waiting.popleft()
            if not turn.done():  # else its task is cancelled, and about to learn it
                self._group = group
                self._inside += 1
                turn.set_result(None)
