"""Writes into a worker's token queue, as the worker itself would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

WITHIN_S = 10.0
"""A worker sends a sign of life every half second."""


@contextlib.contextmanager
def token_queue_of(worker: psutil.Process) -> Iterator[int]:
    """A descriptor of our own for the pipe that the worker writes its frames to."""
    queue = os.open(token_queue_path(worker), os.O_WRONLY)
    try:
        yield queue
    finally:
        os.close(queue)


def token_queue_path(worker: psutil.Process) -> Path:
    """Of the pipes from the worker to the front the one that fills up while the front is stopped.

    The other one is multiprocessing's, whose end tells the worker's.
    """
    front = psutil.Process(worker.ppid())
    read = {pipe for pipe, mode, _ in pipes_of(front.pid) if mode == os.O_RDONLY}
    paths = [
        path for pipe, mode, path in pipes_of(worker.pid) if mode == os.O_WRONLY and pipe in read
    ]
    deadline = time.monotonic() + WITHIN_S
    front.suspend()
    try:
        while not (filled := [path for path in paths if unread(path)]):
            assert time.monotonic() < deadline, "the worker is silent"
            time.sleep(0.002)
    finally:
        front.resume()
    (queue,) = filled
    return queue


def pipes_of(pid: int) -> Iterator[tuple[str, int, Path]]:
    """A process's pipes: their names, the access modes that they were opened with, their paths."""
    process = Path(f"/proc/{pid}")
    for path in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            name, info = str(path.readlink()), (process / "fdinfo" / path.name).read_text()
            flags = re.search(r"^flags:\s+([0-7]+)$", info, re.MULTILINE)
            if name.startswith("pipe:") and flags is not None:
                yield name, int(flags[1], 8) & os.O_ACCMODE, path


def unread(path: Path) -> int:
    """Bytes that are in the pipe."""
    pipe = os.open(path, os.O_WRONLY)
    try:
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])
    finally:
        os.close(pipe)


def write_all(queue: int, data: bytes) -> None:
    """Raises BrokenPipeError when the front has closed the queue."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(queue, rest) :]
