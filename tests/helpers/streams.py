"""Streams that threads follow, with the time of each line: who was cut, when, and who was not."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import httpx
import psutil

from tests.helpers.running import RunningServer

WITHIN_S = 30.0
"""Long enough for anything here; a test that needs it has failed."""
ENDLESS = {"num_predict": 1_000_000, "ignore_eos": True}
"""Needs a server with `-n 2000000`."""


class Followed:
    """A POST /stream as NDJSON that a thread reads. A context: leaving it closes the connection."""

    def __init__(self, server: RunningServer, **body: Any) -> None:
        self._server = server
        self._body = body
        self._change = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._follow)
        self.status = 0
        self.headers = httpx.Headers()
        self.lines: list[dict[str, Any]] = []
        self.times: list[float] = []
        """When each line came, in time.monotonic's seconds."""
        self.is_over = False

    def __enter__(self) -> Followed:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection, at the next line."""
        self._is_closing = True
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            with self._server.stream("application/x-ndjson", **self._body) as response:
                self.status, self.headers = response.status_code, response.headers
                for line in response.iter_lines():
                    with self._change:
                        self.lines.append(json.loads(line))
                        self.times.append(time.monotonic())
                        self._change.notify_all()
                    if self._is_closing:
                        return
        finally:
            with self._change:
                self.is_over = True
                self._change.notify_all()

    def until(self, condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Wait until the condition holds, which is looked at when a line has come."""
        with self._change:
            assert self._change.wait_for(condition, within_s), self.lines[-3:]

    def until_tokens(self, count: int = 1) -> None:
        """Wait for so many more."""
        wanted = len(self.lines) + count
        self.until(lambda: len(self.lines) >= wanted or self.is_over)
        assert len(self.lines) >= wanted, self.lines[-3:]

    def until_over(self, within_s: float = WITHIN_S) -> None:
        self.until(lambda: self.is_over, within_s)

    @property
    def text(self) -> str:
        return "".join(line.get("token", "") for line in self.lines)

    @property
    def is_cut(self) -> bool:
        return bool(self.lines) and "error" in self.lines[-1]

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two of its lines."""
        return max(after - before for before, after in itertools.pairwise(self.times))


def fresh(text: str = "") -> str:
    """A prompt that begins as none before: it goes to the least busy worker."""
    return f"{uuid.uuid4().hex} {text}"


def pids(server: RunningServer) -> set[int]:
    return {worker.pid for worker in server.workers()}


def until_replaced(server: RunningServer, before: set[int], dead: int = 1) -> None:
    """Wait until there are as many ready workers as before, and check how many are new."""
    server.until(lambda state: state["workers"] == len(before))
    assert len(pids(server) - before) == len(before - pids(server)) == dead


def the_cut_one(streams: Sequence[Followed]) -> tuple[Followed, Followed]:
    """Of two streams the one that is over, and the other."""
    one, other = streams
    deadline = time.monotonic() + WITHIN_S
    while not (one.is_over or other.is_over):
        assert time.monotonic() < deadline, "neither was cut"
        time.sleep(0.005)
    return (one, other) if one.is_over else (other, one)


def rss(pid: int) -> int:
    """Bytes of memory that the process has."""
    return psutil.Process(pid).memory_info().rss
