"""SIGINT and SIGTERM end a measurement early; its results until then are reported."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Interrupt:
    """Whether a signal has ended the measurement."""

    number: int = 0
    """The signal's number; 0: none was received."""
    event: asyncio.Event = field(default_factory=asyncio.Event)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first signal sets the event. A second one ends the program as usual."""
    loop, interrupt = asyncio.get_running_loop(), Interrupt()

    def remove() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def end(number: int) -> None:
        interrupt.number = number
        interrupt.event.set()
        remove()

    for number in SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        yield interrupt
    finally:
        remove()


async def unless_stopped(work: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Run `work` to its end, or cancel it when `stop` is set.

    Returns whether it came to its end. Raises what it raises.
    """
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(work),
        asyncio.create_task(stop.wait()),
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    is_complete = tasks[0].done()
    for task in tasks:
        task.cancel()
    outcome, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome
    return is_complete


def new_runner() -> asyncio.Runner:
    """Runs coroutines on uvloop, which reads sockets at a lower cost than asyncio's own loop."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
