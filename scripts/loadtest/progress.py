"""Progress of a load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic

from scripts.load.client import Client
from scripts.load.record import State
from scripts.loadtest.run import Span
from scripts.report.progress import Progress


def progress_of(client: Client, label: str, span: Span) -> Callable[[], Progress]:
    """Reads the progress of the client's load, which starts now."""
    begun = last_at = monotonic()
    last_tokens = 0

    def read() -> Progress:
        nonlocal last_at, last_tokens
        now, tokens = monotonic(), client.tokens
        rate = (tokens - last_tokens) / (now - last_at)
        last_at, last_tokens = now, tokens
        text = f"{position(client, span, now - begun)}  {rate:,.0f} tokens/s"
        return Progress(share_done(client, span, now - begun), text, label)

    return read


def share_done(client: Client, span: Span, passed_s: float) -> float:
    """From 0 to 1: by time or by the number of requests, whichever is further."""
    by_time = passed_s / span.seconds if span.seconds else 0.0
    by_count = finished(client) / span.requests if span.requests else 0.0
    return max(by_time, by_count)


def position(client: Client, span: Span, passed_s: float) -> str:
    """The phase of the load, and how many requests ended in each way."""
    if passed_s < span.ramp_s:
        phase = "ramp-up"
    elif passed_s < span.counted_from_s:
        phase = "warm-up"
    elif span.seconds is not None and passed_s > span.seconds:
        phase = "last requests"
    else:
        phase = f"{passed_s - span.counted_from_s:.0f} s"
    states = Counter(record.state for record in client.records)
    cancelled = f", {states[State.CANCELLED]} cancelled" if states[State.CANCELLED] else ""
    return (
        f"{phase}  {client.open} open, {states[State.COMPLETED]} completed{cancelled},"
        f" {states[State.FAILED]} failed"
    )


def finished(client: Client) -> int:
    """Requests that count and are over."""
    return sum(record.counts and record.state is not State.OPEN for record in client.records)
