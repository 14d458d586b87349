"""Writes into a worker's token queue, as the worker itself would."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil


def token_queue_of(worker: psutil.Process) -> int:
    """A descriptor of our own for the pipe that the worker writes its frames to.

    It is the only pipe that the worker can write to, but for its standard streams and the one to
    multiprocessing's resource tracker, which its command line has.
    """
    tracker = re.search(r"tracker_fd=(\d+)", " ".join(worker.cmdline()))
    others = {"1", "2", tracker[1] if tracker else ""}
    process = Path(f"/proc/{worker.pid}")
    (path,) = (
        path
        for path in (process / "fd").iterdir()
        if path.name not in others
        and os.readlink(path).startswith("pipe:")
        and is_writable(process / "fdinfo" / path.name)
    )
    return os.open(path, os.O_WRONLY)


def is_writable(info: Path) -> bool:
    flags = re.search(r"^flags:\s+([0-7]+)$", info.read_text(), re.MULTILINE)
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE == os.O_WRONLY


def write_all(queue: int, data: bytes) -> None:
    """Raises BrokenPipeError when the front has closed the queue."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(queue, rest) :]
