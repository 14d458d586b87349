"""Progress on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

BAR_S = 0.25
"""Time between two updates of the bar."""
LINES_S = 5.0
"""Time between two lines."""
BAR_WIDTH = 24
CLEAR = "\r\x1b[K"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is."""

    share: float
    """From 0 to 1; more where it takes longer than planned."""
    text: str
    label: str = ""
    """What is being measured."""


@contextlib.asynccontextmanager
async def progress_shown(program: str, read: Callable[[], Progress]) -> AsyncIterator[None]:
    """Show what `read` returns, again and again, inside the context."""
    showing = asyncio.create_task(_show(program, read))
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _show(program: str, read: Callable[[], Progress]) -> None:
    is_terminal = sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(BAR_S if is_terminal else LINES_S)
            line = bar_line(read()) if is_terminal else plain_line(program, read())
            print(line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
    finally:
        if is_terminal:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def bar_line(progress: Progress) -> str:
    """The line of a terminal, which replaces the one before."""
    full = round(min(progress.share, 1.0) * BAR_WIDTH)
    bar = "█" * full + "░" * (BAR_WIDTH - full)
    return CLEAR + "  ".join(filter(None, [progress.label, bar, progress.text]))


def plain_line(program: str, progress: Progress) -> str:
    """A line of a log."""
    return ": ".join(filter(None, [program, progress.label, progress.text]))
