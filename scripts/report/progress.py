"""How far a load is: a bar on a terminal, else a line now and then. On standard error."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

from scripts.load.client import Client, State
from scripts.loadtest.run import Span

BAR_S = 0.25
LINES_S = 5.0
BAR_WIDTH = 24
CLEAR = "\r\x1b[K"


async def show_progress(client: Client, label: str, span: Span) -> None:
    """Show it until cancelled."""
    is_terminal = sys.stderr.isatty()
    begun = last_at = time.monotonic()
    last_tokens = 0
    try:
        while True:
            await asyncio.sleep(BAR_S if is_terminal else LINES_S)
            now, tokens = time.monotonic(), client.received()
            rate = (tokens - last_tokens) / (now - last_at)
            last_at, last_tokens = now, tokens
            state = f"{position(client, span, now - begun)}  {rate:,.0f} tokens/s"
            if is_terminal:
                bar = draw_bar(share_done(client, span, now - begun))
                print(f"{CLEAR}{label}  {bar}  {state}", end="", file=sys.stderr, flush=True)
            else:
                print(f"loadtest: {label}: {state}", file=sys.stderr, flush=True)
    finally:
        if is_terminal:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def draw_bar(share: float) -> str:
    """`share`: 0 … 1."""
    return "█" * (full := round(min(share, 1.0) * BAR_WIDTH)) + "░" * (BAR_WIDTH - full)


def share_done(client: Client, span: Span, passed_s: float) -> float:
    """0 … 1, by the clock or by the requests, whichever is nearer to the end."""
    by_clock = passed_s / span.seconds if span.seconds else 0.0
    by_count = counted(client) / span.requests if span.requests else 0.0
    return max(by_clock, by_count)


def position(client: Client, span: Span, passed_s: float) -> str:
    """Where it is, and what became of the requests."""
    if passed_s < span.ramp_s:
        phase = "ramp-up"
    elif passed_s < span.counted_from_s:
        phase = "warm-up"
    elif span.seconds is not None and passed_s > span.seconds:
        phase = "the last ones"
    else:
        phase = f"{passed_s - span.counted_from_s:.0f} s"
    states = Counter(record.state for record in client.records)
    left = f", {states[State.LEFT]} left" if states[State.LEFT] else ""
    return (
        f"{phase}  {client.open} open, {states[State.WHOLE]} whole{left},"
        f" {states[State.FAILED]} failed"
    )


def counted(client: Client) -> int:
    """Requests that count and are over."""
    return sum(record.counts and record.state is not State.OPEN for record in client.records)
