"""The first four bytes of a model file, which say its format."""

from __future__ import annotations

from pathlib import Path

GGUF_MAGIC = b"GGUF"
GGML_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")
"""ggml, ggjt, ggmf and ggla, stored as little-endian integers."""


def read_magic(path: Path) -> bytes:
    """The file's first four bytes, or all bytes of a shorter file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4)
