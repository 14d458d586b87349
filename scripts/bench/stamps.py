"""When a worker had each token, for `latency`.

`python -m scripts.bench.stamps FILE OPTION…` is `python -m server OPTION…` whose workers also write
down, in FILE, when they had each token; see `stamped_worker`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from scripts.load.errors import BenchError
from server.cli import run
from shared.messages import Message, Tokens
from shared.queues import TokenSender
from shared.settings import WorkerSettings
from workers.child.process import run as run_worker


class StampingSender(TokenSender):
    """A TokenSender that remembers when it was given each batch."""

    log: ClassVar[list[tuple[float, Sequence[Message]]]] = []  # a process has one sender

    def send(self, batch: Sequence[Message]) -> None:
        self.log.append((time.monotonic(), batch))
        super().send(batch)


def stamped_worker(
    stamps: str, settings: WorkerSettings, requests: Connection, tokens: Connection
) -> None:
    """A worker, which at its end writes to the file `stamps` when it had which token.

    The file is a JSON array with a list for each request, in the order of their first tokens:
    the time, in time.monotonic's seconds, at which the worker was about to send each token.
    """
    run_worker(settings, requests, tokens, StampingSender)
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
    return run(list(options), functools.partial(stamped_worker, stamps))


if __name__ == "__main__":
    sys.exit(run_stamped_server(*sys.argv[1:]))
