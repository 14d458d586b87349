"""The servers that are measured: tokenflume from this checkout, and llama.cpp's llama-server."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from scripts.load.errors import BenchError

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
OK = 200
LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
SETTINGS = ("TOKENFLUME_", "LLAMA_ARG_")
"""Environment variables of these are options too: the servers do not get them."""
START_S = 120.0
"""For a server to listen and to load its model."""
LAST_LOG = 64 * 1024
"""Bytes of a log's end that are shown."""
STOP_S = 15.0
"""For a server without streams to end after SIGTERM."""


class ServerProcess:
    """A server on a free port of this machine; ready inside the context, ended after it.

    It must say in its log where it listens, and answer `ready_path` with 200 once it can serve.
    """

    def __init__(self, command: Sequence[str | Path], ready_path: str) -> None:
        self._command = command
        self._ready_path = ready_path
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: subprocess.Popen[bytes]
        self.port = 0

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
        paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)  # this checkout's, from any folder
        try:
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        except OSError as error:
            raise BenchError(f"{self._command[0]} cannot be run: {error.strerror}") from None
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

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Of its exit, negative for a signal; None: it lives."""
        return self._process.poll()

    def log_lines(self) -> list[str]:
        """What it has said last."""
        return self._read_log(LAST_LOG).decode(errors="replace").splitlines()

    def pin_main_thread(self, cpus: Sequence[int]) -> None:
        """Let the process' first thread, and no other, run on these CPUs only."""
        os.sched_setaffinity(self._process.pid, cpus)

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time so far, in seconds: of the process, and of its children together."""
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
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == OK
        except OSError:
            return False
        finally:
            connection.close()

    def _read_log(self, last: int | None = None) -> bytes:
        """All of it, or so many bytes at its end."""
        # The server writes through the same open file: pread does not move where it writes.
        descriptor = self._log.fileno()
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, 0 if last is None else max(0, size - last))

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def tokenflume(*options: str, stamps: Path | None = None) -> ServerProcess:
    """`python -m server` with these options.

    With `stamps` its workers write down when they had each token; the file is there after
    the context.
    """
    program = ["-m", "server"] if stamps is None else ["-m", "scripts.bench.stamps", str(stamps)]
    command = [sys.executable, *program, *options, "--host", HOST, "-P", "0"]
    return ServerProcess(command, "/ready")


@contextlib.contextmanager
def llama_server(
    program: Path,
    model: Path,
    *,
    cpus: Sequence[int],
    slots: int,
    context: int,
    saves_prompts: bool = False,
) -> Iterator[ServerProcess]:
    """llama-server with a thread for each of these CPUs, and so many tokens for each slot.

    `saves_prompts`: with its cache of prompts in memory, as it has by itself.
    """
    threads = str(len(cpus))
    mask = f"{sum(1 << cpu for cpu in cpus):x}"
    command: list[str | Path] = [
        program.absolute(),
        *("--model", model.absolute()),
        *("--host", HOST, "--port", "0", "--no-webui"),
        *("--threads", threads, "--threads-batch", threads, "--cpu-mask", mask),
        # -c is the whole cache's, and a unified one would give all of it to any slot.
        *("--parallel", str(slots), "--ctx-size", str(slots * context), "--no-kv-unified"),
    ]
    if not saves_prompts:  # no two prompts are alike: it would only copy keys and values
        command += ["--cache-ram", "0"]
    with ServerProcess(command, "/health") as server:
        # It computes in its first thread and a pool's, and the mask is for the pool's: a single
        # compute thread has none. Its HTTP threads are as free as tokenflume's front.
        server.pin_main_thread(cpus)
        yield server
