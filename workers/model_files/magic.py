"""What the first four bytes of a model file say: its format."""

from __future__ import annotations

from pathlib import Path

GGUF_MAGIC = b"GGUF"
GGML_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")
"""ggml, ggjt, ggmf and ggla, as little-endian integers on disk."""


def read_magic(path: Path) -> bytes:
    """The first four bytes, or what there is. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4)
