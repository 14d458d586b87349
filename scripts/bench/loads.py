"""Requests that are sent together, and what became of them.

run_streams     one request by each of many clients, at once or in turn
run_in_rows     several clients, each with several requests, one after the other
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from scripts.load.client import Client
from scripts.load.errors import MeasurementError
from scripts.load.exchange import Exchange
from scripts.load.interrupt import new_runner
from scripts.load.record import Record, State
from scripts.load.request import Request
from scripts.load.target import Target

SILENCE_S = 120.0
"""A stream without a byte for this time is an error."""


@dataclass(frozen=True)
class Load:
    """Requests whose answers are complete. Times are readings of time.monotonic, in seconds."""

    records: Sequence[Record]
    started: float
    """When the first request was sent."""
    cpu_s: float = 0.0
    """CPU time that the clients took, in seconds."""

    @property
    def arrivals(self) -> list[Sequence[float]]:
        """When each token of each request was read."""
        return [record.arrivals for record in self.records]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.arrivals))

    @property
    def chunks(self) -> int:
        """HTTP chunks with tokens; a chunk is what the server sent at once."""
        return sum(record.chunks - 1 for record in self.records)  # the last one is empty

    @property
    def seconds(self) -> float:
        """From the sending of the first request to the arrival of the last token."""
        return max(times[-1] for times in self.arrivals) - self.started

    @property
    def rate(self) -> float:
        """Tokens per second of all requests, from the first request to the last token."""
        return self.tokens / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens per second of the first request, after its first token.

        Tokens that were read together with the first do not count: their times are unknown. If
        all were, this is the rate since the request was sent.
        """
        times = self.arrivals[0]
        later = sum(when > times[0] for when in times)
        return later / (times[-1] - times[0]) if later else len(times) / self.seconds


def run_streams(
    target: Target, requests: Sequence[Request], *, in_turn: bool = False, gather_s: float = 0.0
) -> Load:
    """Send all requests at once, each on a connection that is open before, and read the answers.

    `in_turn`: each request is sent when the one before has its first token, so that the server
    numbers them in their order here. `gather_s`: time in seconds for which bytes gather in the
    sockets before they are read, to save CPU time where the time of a token does not matter.
    Raises MeasurementError unless all answers are complete.
    """
    with new_runner() as runner:
        return runner.run(_run_streams(target, requests, in_turn, gather_s))


async def _run_streams(
    target: Target, requests: Sequence[Request], in_turn: bool, gather_s: float
) -> Load:
    async with Client(target, SILENCE_S) as client, AsyncExitStack() as stack:
        exchanges = [
            await stack.enter_async_context(client.connect(request)) for request in requests
        ]
        started, cpu_started = time.monotonic(), time.process_time()
        for exchange in exchanges:
            exchange.send()
            if in_turn:
                await exchange.until_tokens(1)
        while gather_s and not all(exchange.over.done() for exchange in exchanges):
            time.sleep(gather_s)  # noqa: ASYNC251 - nothing is to be read meanwhile
            await asyncio.sleep(0)
        for exchange in exchanges:
            await exchange.over
        cpu_s = time.process_time() - cpu_started
    return Load(completed(client.records), started, cpu_s)


def run_in_rows(target: Target, rows: Sequence[Sequence[Request]]) -> Load:
    """Run one client for each row: it sends its next request when the last answer is complete.

    Raises MeasurementError unless all answers are complete.
    """
    with new_runner() as runner:
        return runner.run(_run_in_rows(target, rows))


async def _run_in_rows(target: Target, rows: Sequence[Sequence[Request]]) -> Load:
    async with Client(target, SILENCE_S) as client:
        started = time.monotonic()
        await asyncio.gather(*(_run_row(client, row) for row in rows))
    return Load(client.records, started)


async def _run_row(client: Client, row: Sequence[Request]) -> None:
    for request in row:
        completed([await client.ask(request)])


async def start(client: Client, stack: AsyncExitStack, request: Request) -> Exchange:
    """Send the request now; its connection is closed with the stack."""
    exchange = await stack.enter_async_context(client.connect(request))
    exchange.send()
    return exchange


def completed(records: Sequence[Record]) -> Sequence[Record]:
    """The records. Raises MeasurementError unless each answer is complete and as long as asked."""
    for record in records:
        if record.failure is not None:
            raise MeasurementError(f"a stream failed: {record.failure.kind}: {record.failure}")
        if record.state is not State.COMPLETED or len(record.arrivals) != record.asked:
            raise MeasurementError(
                f"a stream had {len(record.arrivals)} tokens, not {record.asked}"
            )
    return records


def longest_pause(times: Sequence[float], start: float, end: float) -> float:
    """The longest time between two tokens, in seconds, of those that overlap with [start, end].

    Without a token since `start`, all of that time.
    """
    pairs = itertools.pairwise(times)
    pauses = [later - earlier for earlier, later in pairs if earlier < end and later > start]
    return max(pauses, default=end - start)
