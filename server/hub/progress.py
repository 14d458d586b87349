"""The progress of a download: a bar on a terminal, otherwise a log line now and then."""

from __future__ import annotations

import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import tqdm

from server.service.notify import Notifier, notifier_of

REPORT_S = 5.0
"""Time between two log lines."""
EXTENSION_US = 120_000_000
"""Time that a service manager is asked to wait for the server, from each log line on."""

logger = logging.getLogger("tokenflume")


class Progress(ABC):
    """Counts the bytes of a file, and shows them.

    `done`: bytes of the file that are present.
    `received`: bytes that came over the network, including those that were discarded.
    """

    def __init__(self, done: int) -> None:
        self.done = done
        self.received = 0

    def add(self, count: int) -> None:
        """Count bytes that were received."""
        self.done += count
        self.received += count
        self._show()

    def restart(self) -> None:
        """The file was emptied, and starts again."""
        self.done = 0
        self._show()

    @abstractmethod
    def _show(self) -> None: ...


class Bar(Progress):
    """A bar on the terminal."""

    def __init__(self, done: int, bar: tqdm) -> None:
        super().__init__(done)
        self._bar = bar

    def _show(self) -> None:
        self._bar.update(self.done - self._bar.n)


class Lines(Progress):
    """Lines for the log and the service manager: percent, and the speed since the last line."""

    def __init__(
        self,
        name: str,
        size: int,
        done: int,
        every_s: float = REPORT_S,
        notifier: Notifier = Notifier(),  # noqa: B008  without a manager
    ) -> None:
        super().__init__(done)
        self._notifier = notifier
        self._name = name
        self._size = size
        self._every_s = every_s
        self._last_at = time.monotonic()
        self._last_received = 0

    def _show(self) -> None:
        now = time.monotonic()
        passed = now - self._last_at
        if passed < self._every_s:
            return
        speed = (self.received - self._last_received) / passed / 1e6
        line = f"{self._name}: {100 * self.done // self._size} %, {speed:.1f} MB/s"
        logger.info("%s", line)
        self._notifier.send(STATUS=f"downloading {line}", EXTEND_TIMEOUT_USEC=EXTENSION_US)
        self._last_at, self._last_received = now, self.received


@contextmanager
def show_progress(name: str, size: int, done: int) -> Iterator[Progress]:
    """Shows the progress of a file of `size` bytes, of which `done` are present."""
    if not sys.stderr.isatty():
        yield Lines(name, size, done, notifier=notifier_of(os.environ))
        return
    bar = tqdm(desc=name, total=size, initial=done, unit="B", unit_scale=True)  # type: ignore[no-untyped-call]
    with bar:
        yield Bar(done, bar)
