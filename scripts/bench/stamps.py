"""A server whose worker records when it had each token, for the figure `latency`.

`python -m scripts.bench.stamps FILE OPTION…` runs `python -m server OPTION…`. Its worker writes the
times to FILE when it ends.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from scripts.load.errors import MeasurementError
from shared.messages import Message, Tokens
from shared.queues import TokenSender
from shared.settings import WorkerSettings


def stamped_worker(
    stamps: str, settings: WorkerSettings, requests: Connection, tokens: Connection
) -> None:
    """Run a worker, and write the times of its tokens to the file `stamps` at its end.

    The file is a JSON array with one list for each request, in the order of their first tokens.
    A list has the time at which the worker was about to send each token, as a reading of
    time.monotonic, in seconds.
    """
    from workers.child.process import run  # here: the front never loads the child's half

    log: list[tuple[float, Sequence[Message]]] = []

    class StampingSender(TokenSender):
        def send(self, batch: Sequence[Message]) -> None:
            log.append((time.monotonic(), batch))
            super().send(batch)

    run(settings, requests, tokens, StampingSender)
    times: dict[int, list[float]] = {}
    for when, batch in log:
        for message in batch:
            for token in message.tokens if isinstance(message, Tokens) else ():
                times.setdefault(token.request, []).append(when)
    Path(stamps).write_text(json.dumps(list(times.values())))


def read_stamps(path: Path) -> list[list[float]]:
    """Read a file that `stamped_worker` wrote. Raises MeasurementError."""
    try:
        stamps: list[list[float]] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MeasurementError(f"the worker did not record its tokens: {error}") from None
    return stamps


def run_stamped_server(stamps: str, *options: str) -> int:
    """Run the server with `stamped_worker` as its worker."""
    from server.cli import run  # here: the worker never loads the front's half

    return run(list(options), functools.partial(stamped_worker, stamps))


if __name__ == "__main__":
    sys.exit(run_stamped_server(*sys.argv[1:]))
