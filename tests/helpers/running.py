"""The real server as a subprocess, for end-to-end tests."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx
import psutil

from tests.helpers.paths import ROOT

START_S = 40.0


def run_to_its_end(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the server with flags, or in an environment, that it does not serve with."""
    return subprocess.run(
        [sys.executable, "-m", "server", "-P", "0", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


class RunningServer:
    """`python -m server` on a free port of 127.0.0.1, with the given flags.

    A context: leaving it ends the server, and fails if that needs a kill. `environment`: variables
    that it gets besides ours. `program`: what Python runs instead.
    """

    def __init__(
        self,
        *flags: str,
        wait_ready: bool = True,
        program: tuple[str, ...] = ("-m", "server"),
        **environment: str,
    ) -> None:
        self._program = program
        self._flags = flags
        self._environment = environment
        self._wait_ready = wait_ready
        self._lines: queue.Queue[str] = queue.Queue()
        self.log: list[str] = []
        self.url = ""

    def __enter__(self) -> RunningServer:
        self.process = subprocess.Popen(
            [sys.executable, *self._program, "-P", "0", *self._flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            line = self.wait_for_log(r"listening on (http://\S+)")
            self.url = re.search(r"http://[^\s\",]+", line)[0]  # type: ignore[index]
            self.client = httpx.Client(base_url=self.url, timeout=START_S, trust_env=False)
            if self._wait_ready:
                self.until_ready()
        except BaseException:
            self.process.kill()
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            if kind is None:
                raise
        finally:
            self._finish()

    def _finish(self) -> None:
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.read()
        self.process.stdout.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for raw in stderr:
                line = raw.decode(errors="replace").rstrip("\n")
                self.log.append(line)
                self._lines.put(line)

    def wait_for_log(self, pattern: str, within_s: float = START_S) -> str:
        """The next line of the log that has `pattern` in it."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in the log: {self.log}") from None
            if re.search(pattern, line):
                return line

    def log_has(self, pattern: str) -> None:
        """Fails unless some line of the log until now has `pattern` in it."""
        assert any(re.search(pattern, line) for line in self.log), self.log

    def until_ready(self) -> None:
        self.until(lambda _: True)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Poll /ready until it is, and its JSON meets the condition."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            answer = self.client.get("/ready")
            if answer.status_code == 200 and condition(answer.json()):
                return
            time.sleep(0.01)
        raise AssertionError(f"/ready never came to it: {answer.status_code} {answer.text}")

    def until_idle(self) -> None:
        self.until(lambda state: bool(state["active"] == 0))

    def kill_workers(self) -> None:
        """SIGKILL, and wait until the server has noticed."""
        workers = self.workers()
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        for _ in workers:
            self.wait_for_log("was ended by SIGKILL")

    def workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]

    def post(self, accept: str = "text/plain", **body: Any) -> httpx.Response:
        return self.client.post("/stream", json=body, headers={"accept": accept})

    @contextmanager
    def stream(self, accept: str = "text/plain", **body: Any) -> Iterator[httpx.Response]:
        with self.client.stream(
            "POST", "/stream", json=body, headers={"accept": accept}
        ) as response:
            yield response

    def ndjson(self, **body: Any) -> list[dict[str, Any]]:
        response = self.post("application/x-ndjson", **body)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]


def unescape(line: str) -> str:
    """The token of a line of the plain text body."""
    return re.sub(r"\\(u[0-9a-f]{4}|.)", lambda m: str(json.loads(f'"{m[0]}"')), line)


def text_of(body: str) -> str:
    """The text of a whole plain text body."""
    return "".join(unescape(line) for line in body.split("\n"))


def address_of(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def open_request(url: str, **body: Any) -> socket.socket:
    """A POST /stream whose answer is not waited for; the server closes after it."""
    connection = socket.create_connection(address_of(url))
    connection.settimeout(30)
    send_request(connection, **body)
    return connection


def send_request(connection: socket.socket, **body: Any) -> None:
    """POST /stream; the server closes after its answer."""
    content = json.dumps(body).encode()
    connection.sendall(
        b"POST /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        + f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
