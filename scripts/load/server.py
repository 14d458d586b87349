"""Starts a server as a subprocess, on a free port of this machine."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from scripts.load.errors import MeasurementError

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
OK = 200
LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
SETTINGS = ("TOKENFLUME_", "LLAMA_ARG_")
"""Prefixes of environment variables that are options of servers. They are not passed on."""
START_S = 120.0
"""Time in which a server must listen and load its model."""
LOG_END_BYTES = 64 * 1024
"""Part of a log that is shown: its end."""
STOP_S = 15.0
"""Time in which a server without streams must end after SIGTERM."""


class ServerProcess:
    """A server that is ready inside the context, and ended after it.

    Its command must let the system choose the port. It must log its address, and answer
    GET `ready_path` with 200 once it can serve.
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
        environment["PYTHONPATH"] = os.pathsep.join(paths)  # this checkout, from any folder
        try:
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends it
            )
        except OSError as error:
            self._log.close()
            raise MeasurementError(f"{self._command[0]} cannot be run: {error.strerror}") from None
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
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None: it is running."""
        return self._process.poll()

    def log_lines(self) -> list[str]:
        """The end of its log."""
        return self._read_log(LOG_END_BYTES).decode(errors="replace").splitlines()

    def pin_main_thread(self, cpus: Sequence[int]) -> None:
        """Let the main thread, and no other, run only on these CPUs."""
        os.sched_setaffinity(self._process.pid, cpus)

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time until now, in seconds: of the process, and of its children together."""
        try:
            front = psutil.Process(self._process.pid)
            times = [process.cpu_times() for process in (front, *front.children(recursive=True))]
        except psutil.Error as error:
            raise MeasurementError(f"the server has died: {error}") from None
        front_s, *others_s = [spent.user + spent.system for spent in times]
        return front_s, sum(others_s)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._read_log().decode(errors="replace")
                raise MeasurementError(f"the server did not become ready; its log:\n{log}")
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

    def _read_log(self, end_bytes: int | None = None) -> bytes:
        """The log, or its last `end_bytes` bytes."""
        # The server writes through the same open file: pread does not move its position.
        descriptor = self._log.fileno()
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, 0 if end_bytes is None else max(0, size - end_bytes))

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
