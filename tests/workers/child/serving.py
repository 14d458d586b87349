"""A worker's loop in a thread of the test, on real pipes, with whatever engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from shared.messages import (
    Embedded,
    Failed,
    Finished,
    Generate,
    Heartbeat,
    Message,
    Shutdown,
    Tokenized,
    Tokens,
)
from shared.prompt import Prompt
from shared.queues import RequestReceiver, TokenSender
from shared.sampling import SamplingParams
from shared.wire import FrameParser, encode_frame
from tests.helpers.support import TIMEOUT_S
from workers.child.loading import LoadedModel
from workers.child.loop import Loop
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler
from workers.engines.base import Engine
from workers.prompts.cache import PromptCache
from workers.prompts.store import PromptStore

READ_SIZE = 1 << 16
POLL_S = 0.05
ENDLESS = SamplingParams(num_predict=10**9, ignore_eos=True)


class Served:
    """The front's end of a loop: sends requests, and keeps all that comes back."""

    def __init__(
        self, send: Callable[[bytes], object], tokens: Connection, running: Future[None]
    ) -> None:
        self.running = running
        """The loop's end."""
        self.received: list[Message] = []
        self._send = send
        self._tokens = tokens
        self._parser = FrameParser()

    def send(self, *messages: Message) -> None:
        self._send(encode_frame(messages))

    def receive(self) -> None:
        """Take what has come; wait a moment if nothing has."""
        if self._tokens.poll(POLL_S):
            self.received += self._parser.feed(os.read(self._tokens.fileno(), READ_SIZE))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.receive()

    def stream(self, request_id: int, text: str = "abc") -> None:
        """Start a stream that does not end, and wait for its first tokens."""
        self.send(Generate(request_id, Prompt(text), ENDLESS))
        self.flows(request_id)

    def flows(self, request_id: int, tokens: int = 20) -> None:
        """Wait for this many more tokens of a stream."""
        target = self.count(request_id) + tokens
        self.until(lambda: self.count(request_id) >= target)

    def beats(self, count: int = 2) -> None:
        """Wait for heartbeats: so an idle loop has taken all that was sent before."""
        target = self._heartbeats() + count
        self.until(lambda: self._heartbeats() >= target)

    def end(self, request_id: int) -> Message:
        """Wait for the request's only end, or the answer of a Tokenize."""
        self.until(lambda: bool(self.ends(request_id)))
        (end,) = self.ends(request_id)
        return end

    def ends(self, request_id: int) -> list[Message]:
        kinds = Finished | Failed | Tokenized
        return [m for m in self.received if isinstance(m, kinds) and m.id == request_id]

    def order(self) -> list[int]:
        """The ids of the requests that have ended, in order."""
        return [m.id for m in self.received if isinstance(m, Finished | Failed | Tokenized)]

    def count(self, request_id: int) -> int:
        """How many tokens, or vectors, the request has brought."""
        tokens = [t for m in self.received if isinstance(m, Tokens) for t in m.tokens]
        vectors = [m for m in self.received if isinstance(m, Embedded)]
        return sum(t.request == request_id for t in tokens) + sum(
            v.id == request_id for v in vectors
        )

    def _heartbeats(self) -> int:
        return sum(isinstance(message, Heartbeat) for message in self.received)


@contextmanager
def serving(engine: Engine, store: PromptStore | None = None) -> Iterator[Served]:
    """Run a loop on the engine; end it with Shutdown if it has not ended."""
    scheduler = Scheduler(engine, time.monotonic, None, 1.0, PromptCache(10**6))
    model = LoadedModel(engine, scheduler, Preparer(engine, (), store), store)
    requests_out, requests_in = Pipe(duplex=False)
    tokens_out, tokens_in = Pipe(duplex=False)
    loop = Loop(model, RequestReceiver(requests_out), TokenSender(tokens_in))
    running = in_thread(loop.run)
    with open(requests_in.fileno(), "wb", buffering=0, closefd=False) as requests:
        served = Served(requests.write, tokens_out, running)
        try:
            yield served
        finally:
            if not running.done():
                served.send(Shutdown())
            served.until(running.done)  # reads on, as the pipe may be full
            for end in (requests_in, tokens_in, tokens_out):
                end.close()  # the reader's thread then ends, and closes its own end
    running.result()


def in_thread(function: Callable[[], None]) -> Future[None]:
    """Run the function in a thread, which does not keep a failed test from ending."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
