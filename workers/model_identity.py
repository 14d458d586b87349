"""A name for what computes: the same file, engine and settings have the same, others have not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from shared.settings import ModelSettings
from workers.engine import Engine
from workers.prompt_files import Identity

BEGINNING = 4 * 2**20
"""Bytes that are read whole: the metadata of usual files."""
SAMPLES = 64
SAMPLE = 16 * 2**10
"""Bytes of each: files that differ in their weights alone differ in all of them."""


def model_identity(settings: ModelSettings, engine: Engine) -> Identity:
    """Of the file its size, its beginning and samples of the rest. Raises OSError."""
    digest = hashlib.blake2b(f"{settings.engine}|{settings.model_type}|".encode(), digest_size=20)
    if settings.path is not None:
        _add_file(settings.path, digest)
    return Identity(digest.hexdigest(), engine.state_format)


def files_identity(paths: Sequence[Path]) -> str:
    """64 hexadecimal digits for what these files hold, found as `model_identity` does it.

    The names of the files do not matter. Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=32)
    for path in paths:
        _add_file(path, digest)
    return digest.hexdigest()


def _add_file(path: Path, digest: hashlib.blake2b) -> None:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(f"{size}|".encode())
        file.seek(0)
        digest.update(file.read(BEGINNING))
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE) * (sample + 1) // SAMPLES if size > SAMPLE else 0)
            digest.update(file.read(SAMPLE))
