"""A name for what model files hold, from their sizes and samples of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

BEGINNING = 4 * 2**20
"""Bytes that are read whole: the metadata of usual files."""
SAMPLES = 64
SAMPLE = 16 * 2**10
"""Bytes of each: files that differ in their weights alone differ in all of them."""


def files_identity(paths: Sequence[Path]) -> str:
    """64 hexadecimal digits for what these files hold, found as `model_identity` does it.

    The names of the files do not matter. Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=32)
    for path in paths:
        add_file(path, digest)
    return digest.hexdigest()


def add_file(path: Path, digest: hashlib.blake2b) -> None:
    """Add what the file holds to `digest`: its size, its beginning and samples. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(f"{size}|".encode())
        file.seek(0)
        digest.update(file.read(BEGINNING))
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE) * (sample + 1) // SAMPLES if size > SAMPLE else 0)
            digest.update(file.read(SAMPLE))
