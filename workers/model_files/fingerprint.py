"""Identifies the content of model files by their sizes and samples of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

BEGINNING = 4 * 2**20
"""Bytes at the beginning that are read completely. They contain the metadata of usual files."""
SAMPLES = 64
"""The number of samples, evenly distributed over the file."""
SAMPLE = 16 * 2**10
"""Bytes of a sample. Files with different weights differ in all samples."""


def files_identity(paths: Sequence[Path]) -> str:
    """64 hexadecimal digits that depend on the content of the files, but not on their names.

    Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=32)
    for path in paths:
        _add_file(path, digest)
    return digest.hexdigest()


def _add_file(path: Path, digest: hashlib.blake2b) -> None:
    """Add the file's size, beginning and samples to `digest`. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(f"{size}|".encode())
        file.seek(0)
        digest.update(file.read(BEGINNING))
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE) * (sample + 1) // SAMPLES if size > SAMPLE else 0)
            digest.update(file.read(SAMPLE))
