"""What bench.py measures with: the servers that it starts, and the clients that load them.

    bench.py ── ServerProcess ──▶ python -m server
             ── run_streams ────▶ POST /stream, all clients in one thread on non-blocking sockets
             ── DirectLoop ─────▶ ctransformers' own generation loop, in a process of its own

Run as a program, `bench_client.py FILE OPTION…` is `python -m server OPTION…` whose workers also
write down, in FILE, when they had each token; see `stamped_worker`.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import multiprocessing
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from unittest import mock

import psutil

# What is measured is this checkout, not what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import workers.handle
import workers.worker
from server.cli import run
from shared.messages import Message, Tokens
from shared.queues import TokenSender
from shared.settings import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
OK = 200
LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
READ_SIZE = 64 * 1024
HEAD_SIZE = 1000
LAST_CHUNK = b"\r\n0\r\n\r\n"
START_S = 120.0
"""For a server to listen and to load its model."""
STOP_S = 15.0
"""For a server without streams to end after SIGTERM."""
SILENCE_S = 120.0
"""Without a byte on any stream something is broken."""


class BenchError(Exception):
    """A stream was cut, a count is wrong, or a process failed: there is no figure."""


# ---------------------------------------------------------------- the servers


class ServerProcess:
    """`python -m server` with the given options on a free port; ready inside the context.

    With `stamps` its workers write down when they had each token; the file is there after
    the context.
    """

    def __init__(self, *options: str, stamps: Path | None = None) -> None:
        program = ["-m", "server"] if stamps is None else [__file__, str(stamps)]
        self._command = [sys.executable, *program, *options, "--host", HOST, "-P", "0"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: subprocess.Popen[bytes]
        self.port = 0

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TOKENFLUME_")}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time so far, in seconds: of the front process, and of its workers together."""
        try:
            front = psutil.Process(self._process.pid)
            times = [process.cpu_times() for process in (front, *front.children(recursive=True))]
        except psutil.Error as error:
            raise BenchError(f"the server has died: {error}") from None
        front_s, *others_s = [spent.user + spent.system for spent in times]
        return front_s, sum(others_s)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._read_log().decode(errors="replace")
                raise BenchError(f"the server did not get ready; it said:\n{log}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        found = LISTENING.search(self._read_log())
        if found is None:
            return False
        self.port = int(found[1])
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_S)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == OK
        except OSError:
            return False
        finally:
            connection.close()

    def _read_log(self) -> bytes:
        # The server writes through the same open file: pread does not move where it writes.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


# ---------------------------------------------------------------- the clients


class LineCounter:
    """Counts the lines of a plain text answer as it comes off the socket, chunk framing and all.

    HTTP's own lines end in \\r\\n; a token's line ends in \\n alone, and holds no \\r, which is
    escaped. So tokens are the \\n that follow no \\r, wherever reads cut the bytes.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.http_lines = 0
        self._after_return = False

    def feed(self, data: bytes) -> None:
        http_lines = data.count(b"\r\n") + (self._after_return and data.startswith(b"\n"))
        self.http_lines += http_lines
        self.tokens += data.count(b"\n") - http_lines
        if data:
            self._after_return = data.endswith(b"\r")


class Stream:
    """One POST /stream on a connection of its own: `tokens` lines of plain text are to come."""

    def __init__(self, port: int, fields: Mapping[str, Any], tokens: int) -> None:
        body = json.dumps({**fields, "num_predict": tokens, "ignore_eos": True}).encode()
        self._request = (
            f"POST /stream HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode() + body
        self._asked = tokens
        self._counter = LineCounter()
        self._head = self._tail = b""
        self._reads: list[tuple[float, int]] = []  # when, and how many tokens there were then
        self.socket = socket.create_connection((HOST, port))
        self.socket.settimeout(SILENCE_S)

    @property
    def received(self) -> int:
        """Tokens that have come."""
        return self._counter.tokens

    @property
    def chunks(self) -> int:
        """HTTP chunks with tokens in a whole answer; a chunk is what the server sent at once."""
        head, _, _ = self._head.partition(b"\r\n\r\n")
        head_lines = head.count(b"\r\n") + 2
        return (self._counter.http_lines - head_lines) // 2 - 1  # the last one is empty

    def send(self) -> None:
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what has come. False at the end; raises BenchError if that is not a whole answer."""
        data = self.socket.recv(READ_SIZE)
        now = time.monotonic()
        if not data:
            self._check()
            return False
        self._counter.feed(data)
        self._reads.append((now, self.received))
        if len(self._head) < HEAD_SIZE:
            self._head += data[:HEAD_SIZE]
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        return True

    def arrivals(self) -> list[float]:
        """When each token was read, in time.monotonic's seconds."""
        times: list[float] = []
        for when, count in self._reads:
            times += [when] * (count - len(times))
        return times

    def _check(self) -> None:
        if not self._head.startswith(b"HTTP/1.1 200 "):
            answer = self._head.decode(errors="replace") or "nothing"
            raise BenchError(f"the server refused a stream; it answered {answer}")
        if self._tail != LAST_CHUNK:
            raise BenchError(f"a stream was cut after {self.received} of {self._asked} tokens")
        if self.received != self._asked:
            raise BenchError(f"a stream had {self.received} tokens instead of {self._asked}")


class Load:
    """What `run_streams` saw."""

    def __init__(self, streams: list[Stream], started: float, cpu_s: float) -> None:
        self.streams = streams
        self.tokens = sum(stream.received for stream in streams)
        self.chunks = sum(stream.chunks for stream in streams)
        self.cpu_s = cpu_s
        """CPU time that the clients took, in seconds."""
        self.arrivals = [stream.arrivals() for stream in streams]
        """When each token of each stream was read, in time.monotonic's seconds."""
        self._started = started

    @property
    def seconds(self) -> float:
        """From the first request's sending to the last token's arrival."""
        return max(times[-1] for times in self.arrivals) - self._started

    @property
    def decode_rate(self) -> float:
        """Tokens per second of the first stream after its first token.

        Tokens read together with the first do not count: nobody knows when they came. If all
        were, it is the rate from the request on.
        """
        times = self.arrivals[0]
        later = sum(when > times[0] for when in times)
        return later / (times[-1] - times[0]) if later else len(times) / self.seconds


def run_streams(
    port: int,
    fields: Mapping[str, Any],
    *,
    streams: int,
    tokens: int,
    gather_s: float = 0.0,
    in_turn: bool = False,
) -> Load:
    """Run `streams` requests at once, each of `tokens` tokens, and see them to their ends.

    `gather_s`: seconds to leave what comes in the sockets before reading it: saves CPU time
    where it does not matter when a token was read. `in_turn`: each request is sent when the one
    before has its first token, so that the server numbers them in their order here.
    Raises BenchError for anything but whole answers.
    """
    clients: list[Stream] = []
    try:
        clients.extend(Stream(port, fields, tokens) for _ in range(streams))
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
            started, cpu_started = time.monotonic(), time.process_time()
            _run(selector, clients, gather_s, in_turn)
        return Load(clients, started, time.process_time() - cpu_started)
    except OSError as error:
        raise BenchError(f"a stream was cut: {error}") from error
    finally:
        for client in clients:
            client.socket.close()


def _run(
    selector: selectors.BaseSelector, clients: list[Stream], gather_s: float, in_turn: bool
) -> None:
    unsent = iter(clients)
    latest = next(unsent)
    latest.send()
    while selector.get_map():
        while (not in_turn or latest.received) and (following := next(unsent, None)) is not None:
            latest = following
            latest.send()
        time.sleep(gather_s)
        ready = selector.select(SILENCE_S)
        if not ready:
            raise BenchError(f"no stream had a byte for {SILENCE_S:g} s")
        for key, _ in ready:
            if not key.data.receive():
                selector.unregister(key.fileobj)


# ---------------------------------------------------------------- the engine without a server


class DirectLoop:
    """A ctransformers model in a process of its own, generating with the library's own loop."""

    def __init__(self, model: Path, cpus: Sequence[int], context: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, self._remote = spawn.Pipe()
        arguments = (self._remote, model, tuple(cpus), context)
        self._process = spawn.Process(target=serve_direct_loop, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._remote.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()  # which ends the child's loop
        self._process.join(STOP_S)
        self._process.kill()
        self._process.join()

    def decode_rate(self, fields: Mapping[str, Any], tokens: int) -> float:
        """Tokens per second from the first generated token to the last of `tokens`."""
        try:
            self._connection.send((dict(fields), tokens))
            count, seconds = self._connection.recv()
        except (EOFError, OSError):
            raise BenchError("the process of ctransformers' own loop has died") from None
        if count != tokens:
            raise BenchError(f"ctransformers' own loop made {count} tokens instead of {tokens}")
        return float((tokens - 1) / seconds)


def serve_direct_loop(
    connection: Connection, path: Path, cpus: tuple[int, ...], context: int
) -> None:
    """The child of DirectLoop: (fields, tokens) in, (tokens made, seconds) out, until the end."""
    from ctransformers.llm import LLM, Config

    from workers.engines.ctransformers import library_build

    os.dup2(2, 1)  # native code may print
    os.sched_setaffinity(0, cpus)
    config = Config(context_length=context, threads=len(cpus))
    model = LLM(str(path), config=config, lib=library_build())
    model.is_eos_token = lambda _: False  # the loop ends at such a token; like ignore_eos, go on
    while True:
        try:
            fields, tokens = connection.recv()
        except EOFError:
            return
        connection.send(_time_loop(model, fields, tokens))


def _time_loop(model: Any, fields: Mapping[str, Any], tokens: int) -> tuple[int, float]:
    """Tokenize, generate, detokenize; the time is that of all tokens after the first."""
    generated = model.generate(
        model.tokenize(fields["prompt"]),
        top_k=fields["top_k"],
        top_p=fields["top_p"],
        temperature=fields["temp"],
        repetition_penalty=fields["repeat_penalty"],
        last_n_tokens=fields["repeat_last_n"],
    )
    times = []
    for token in itertools.islice(generated, tokens):
        model.detokenize([token], decode=False)
        times.append(time.monotonic())
    return len(times), times[-1] - times[0]


# ---------------------------------------------------------------- the worker's clock


class StampingSender(TokenSender):
    """A TokenSender that remembers when it was given each batch."""

    log: ClassVar[list[tuple[float, Sequence[Message]]]] = []  # a process has one sender

    def send(self, batch: Sequence[Message]) -> None:
        self.log.append((time.monotonic(), batch))
        super().send(batch)


def stamped_worker(
    stamps: str, settings: WorkerSettings, requests: Connection, tokens: Connection
) -> None:
    """run_worker, which at its end writes to the file `stamps` when it had which token.

    The file is a JSON array with a list for each request, in the order of their first tokens:
    the time, in time.monotonic's seconds, at which the worker was about to send each token.
    """
    with mock.patch.object(workers.worker, "TokenSender", StampingSender):
        workers.worker.run_worker(settings, requests, tokens)
    times: dict[int, list[float]] = {}
    for when, batch in StampingSender.log:
        for message in batch:
            for token in message.tokens if isinstance(message, Tokens) else ():
                times.setdefault(token.request, []).append(when)
    Path(stamps).write_text(json.dumps(list(times.values())))


def read_stamps(path: Path) -> list[list[float]]:
    """What `stamped_worker` wrote. Raises BenchError."""
    try:
        stamps: list[list[float]] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BenchError(f"the worker left no record of its tokens: {error}") from None
    return stamps


def run_stamped_server(stamps: str, *options: str) -> int:
    """The server's command line, with `stamped_worker` in the place of its workers."""
    stamped = functools.partial(stamped_worker, stamps)
    with mock.patch.object(workers.handle, "run_worker", stamped):
        return run(list(options))


if __name__ == "__main__":
    sys.exit(run_stamped_server(*sys.argv[1:]))
