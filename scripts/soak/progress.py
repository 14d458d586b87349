"""A line about a soak that runs, on standard error: again and again, or over itself."""

from __future__ import annotations

import asyncio
import sys
import time

from scripts.report.progress import BAR_S, CLEAR, LINES_S, draw_bar
from scripts.soak.judge import Outcome
from scripts.soak.run import Account


async def show_progress(account: Account, seconds: float) -> None:
    """Until it is cancelled. `seconds`: how long all of it takes."""
    is_terminal = sys.stderr.isatty()
    begun = time.monotonic()
    try:
        while True:
            await asyncio.sleep(BAR_S if is_terminal else LINES_S)
            passed = time.monotonic() - begun
            state = progress(account, passed)
            if is_terminal:
                bar = draw_bar(passed / seconds)
                print(f"{CLEAR}{bar}  {state}", end="", file=sys.stderr, flush=True)
            else:
                print(f"soak: {state}", file=sys.stderr, flush=True)
    finally:
        if is_terminal:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def progress(account: Account, passed_s: float) -> str:
    """What there is until now."""
    return (
        f"{passed_s:.0f} s  {account.requests:,} requests, {account.count(Outcome.WHOLE):,} whole,"
        f" {len(account.broken):,} ended by others, {len(account.lost):,} lost"
    )
