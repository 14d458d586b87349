"""A digest of every byte of a model's files: files with any different byte have another digest.

The files are read in segments, on all CPUs of the process: about a second for each GiB and CPU.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SEGMENT = 4 * 2**20
"""Bytes that are read and hashed at a time. Each thread holds as many."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file. Whoever edits or replaces the file changes it."""

    device: int
    inode: int
    size: int
    """Bytes."""
    modified_ns: int
    changed_ns: int
    """The time of the last change in nanoseconds since 1970. Unlike `modified_ns`, no program can
    set it."""


def file_states(paths: Sequence[Path]) -> tuple[FileState, ...]:
    """The state of each file. Raises OSError."""
    return tuple(
        FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        for found in map(os.stat, paths)
    )


def content_digest(paths: Sequence[Path]) -> str:
    """64 hexadecimal digits that depend on each byte of the files, and not on their names.

    Raises OSError.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "model-digest") as threads:
        for path in paths:
            for part in _segment_digests(path, threads):
                digest.update(part)
    return digest.hexdigest()


def _segment_digests(path: Path, threads: ThreadPoolExecutor) -> Iterator[bytes]:
    """The file's size, then the digest of each segment. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        yield size.to_bytes(8)

        def of_segment(start: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), SEGMENT, start)).digest()

        yield from threads.map(of_segment, range(0, size, SEGMENT))
