"""The HTTP client: each request on a connection of its own, all of them in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence

from scripts.load.errors import CONNECTION, TIMEOUT, StreamFailure
from scripts.load.exchange import Exchange
from scripts.load.record import Record
from scripts.load.request import Request
from scripts.load.target import BadTarget, Target

SWEEP_S = 0.25
"""Time between two checks for streams that have been silent for too long."""


class Client:
    """Sends requests to a target. A context: leaving it closes what is open.

    `timeout_s`: a connection that takes longer, or a stream that is silent for longer, fails.
    """

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target = target
        self.records: list[Record] = []
        """All requests until now, in the order of their sending."""
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if target.is_encrypted else None
        self._address = ""
        self._open: set[Exchange] = set()
        self._finished_tokens = 0
        self._sweeper: asyncio.Task[None]

    async def __aenter__(self) -> Client:
        """Raises BadTarget for an unknown host."""
        target, loop = self.target, asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadTarget(f"the host {target.host} is unknown: {error.strerror}") from None
        self._address = await self._reachable([str(entry[4][0]) for entry in found])
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sweeper.cancel()
        for exchange in list(self._open):
            exchange.close()

    @property
    def open(self) -> int:
        """Requests that are running."""
        return len(self._open)

    @property
    def tokens(self) -> int:
        """Tokens of all requests until now."""
        running = sum(len(exchange.record.arrivals) for exchange in self._open)
        return self._finished_tokens + running

    async def ask(
        self, request: Request, *, stream: int = 0, begun: float = 0.0, counts: bool = True
    ) -> Record:
        """Send the request and read its answer. A failure is in the record."""
        async with self.connect(request, stream=stream, begun=begun, counts=counts) as exchange:
            exchange.send()
            await exchange.over
        return exchange.record

    @contextlib.asynccontextmanager
    async def connect(
        self, request: Request, *, stream: int = 0, begun: float = 0.0, counts: bool = True
    ) -> AsyncIterator[Exchange]:
        """A connection for the request, which is not sent yet; closed with the context.

        The arguments are those of Record. A connection that cannot be made is an exchange that
        is over.
        """
        exchange = Exchange(self.target, request, Record(stream, request.tokens, begun, counts))
        self.records.append(exchange.record)
        self._open.add(exchange)
        try:
            await self._connect(exchange)
            yield exchange
        finally:
            exchange.close()
            self._open.discard(exchange)
            self._finished_tokens += len(exchange.record.arrivals)

    async def _connect(self, exchange: Exchange) -> None:
        loop, port = asyncio.get_running_loop(), self.target.port
        name = self.target.host if self._tls else None
        try:
            async with asyncio.timeout(self._timeout_s):
                await loop.create_connection(
                    lambda: exchange, self._address, port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            exchange.fail(StreamFailure(TIMEOUT, f"no connection in {self._timeout_s:g} s"))
        except OSError as error:
            exchange.fail(StreamFailure(CONNECTION, f"no connection: {error.strerror or error}"))

    async def _reachable(self, addresses: Sequence[str]) -> str:
        """The first address that accepts a connection.

        The name localhost may have two addresses, of which a server may listen on one.
        """
        for address in addresses[:-1]:
            try:
                async with asyncio.timeout(self._timeout_s):
                    _, writer = await asyncio.open_connection(address, self.target.port)
            except (OSError, TimeoutError):
                continue
            writer.close()
            return address
        return addresses[-1]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            silent_since = time.monotonic() - self._timeout_s
            for exchange in list(self._open):
                if exchange.last_seen < silent_since:
                    exchange.fail(StreamFailure(TIMEOUT, f"silent for {self._timeout_s:g} s"))
