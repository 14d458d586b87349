"""The group lock: one group holds it at a time, nobody waits forever, who leaves is forgotten."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from shared.errors import NotReady, QueueFull
from tests.helpers.support import run, until
from workers.pool.group_lock import GroupLock


class Visitor:
    """A task that takes the lock for its group, and holds it until told to go."""

    def __init__(self, lock: GroupLock, group: str) -> None:
        self.is_in = False
        self._may_go = asyncio.Event()
        self._lock = lock
        self._group = group
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._lock.held_by(self._group):
            self.is_in = True
            try:
                await self._may_go.wait()
            finally:
                self.is_in = False

    async def go(self) -> None:
        self._may_go.set()
        await self.task

    async def give_up(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def settle() -> None:
    """Let every task run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def visit(story: Callable[[Callable[[str], Visitor]], Awaitable[None]], limit: int = 100) -> None:
    async def go() -> None:
        lock = GroupLock(limit)
        await story(lambda group: Visitor(lock, group))

    run(go())


def test_many_of_one_group_are_in_together() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        visitors = [visitor("a") for _ in range(5)]
        await settle()
        assert all(v.is_in for v in visitors)
        for v in visitors:
            await v.go()

    visit(story)


def test_another_group_waits_until_the_last_has_left() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, second, other = visitor("a"), visitor("a"), visitor("b")
        await settle()
        assert not other.is_in
        await first.go()
        await settle()
        assert not other.is_in
        await second.go()
        await until(lambda: other.is_in)
        await other.go()

    visit(story)


def test_who_comes_after_a_waiting_group_waits_behind_it() -> None:
    """Otherwise a busy model would block the others forever."""

    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, other, late = visitor("a"), visitor("b"), visitor("a")
        await settle()
        assert (other.is_in, late.is_in) == (False, False)
        await first.go()
        await settle()
        assert (other.is_in, late.is_in) == (True, False)
        await other.go()
        await settle()
        assert late.is_in
        await late.go()

    visit(story)


def test_who_gives_up_waiting_does_not_hold_up_those_behind() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, other, late = visitor("a"), visitor("b"), visitor("a")
        await settle()
        await other.give_up()
        await settle()
        assert late.is_in  # nobody stands between them any more
        await first.go()
        await late.go()

    visit(story)


def test_who_is_cancelled_at_the_moment_of_getting_the_lock_leaves_the_lock_to_others() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, unlucky, late = visitor("a"), visitor("b"), visitor("c")
        await settle()
        first.task.cancel()
        await asyncio.sleep(0)  # `first` leaves; `unlucky` gets the lock, but has not run
        unlucky.task.cancel()
        await until(lambda: late.is_in)
        await late.go()

    visit(story)


def test_no_more_wait_than_may() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, waiting, too_many = visitor("a"), visitor("b"), visitor("b")
        await settle()
        with pytest.raises(QueueFull, match="1 requests wait for their models"):
            await too_many.task
        await first.go()
        await settle()
        assert waiting.is_in
        await waiting.go()

    visit(story, limit=1)


def test_where_none_may_wait_a_free_lock_is_still_taken() -> None:
    async def story(visitor: Callable[[str], Visitor]) -> None:
        first, also, other = visitor("a"), visitor("a"), visitor("b")
        await settle()
        assert (first.is_in, also.is_in) == (True, True)
        with pytest.raises(QueueFull):
            await other.task
        await first.go()
        await also.go()

    visit(story, limit=0)


def test_closing_tells_all_who_wait() -> None:
    async def go() -> None:
        lock = GroupLock(10)
        first, waiting = Visitor(lock, "a"), Visitor(lock, "b")
        await settle()
        lock.close(NotReady("the server is shutting down"))
        with pytest.raises(NotReady, match="shutting down"):
            await waiting.task
        assert first.is_in
        await first.go()

    run(go())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_only_one_group_is_in_and_all_come_to_their_end(seed: int) -> None:
    async def go() -> None:
        rng, lock = random.Random(seed), GroupLock(1000)
        visitors: list[Visitor] = []
        groups: list[str] = []
        for _ in range(300):
            match rng.randrange(4):
                case 0 | 1:
                    groups.append(rng.choice("abc"))
                    visitors.append(Visitor(lock, groups[-1]))
                case 2 if visitors:
                    victim = rng.choice(visitors)
                    victim.task.cancel()
                case 3 if visitors:
                    rng.choice(visitors)._may_go.set()
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            inside = {g for g, v in zip(groups, visitors, strict=True) if v.is_in}
            assert len(inside) <= 1
        for v in visitors:
            v._may_go.set()
        await asyncio.wait([v.task for v in visitors])
        assert lock.waiting == 0
        last = Visitor(lock, "d")
        await settle()
        assert last.is_in
        await last.go()

    run(go())
