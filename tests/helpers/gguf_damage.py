"""Model files that are damaged, or hostile, by a few words: for tests."""

from __future__ import annotations

import struct

COUNTS = 8
"""Where a GGUF has its numbers of tensors and of metadata keys."""
ALIGNMENT = 32
STRING, UINT32, FLOAT32 = 8, 4, 6


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def with_entries(gguf: bytes, *entries: bytes) -> bytes:
    """The GGUF with more metadata in front; its tensors stay where they are to be."""
    tensors, keys = struct.unpack_from("<QQ", gguf, COUNTS)
    head = gguf[:COUNTS] + struct.pack("<QQ", tensors, keys + len(entries) + 1)
    added = b"".join(entries)
    padding = -len(added + entry(b"padding", STRING, text(b""))) % ALIGNMENT
    added += entry(b"padding", STRING, text(b" " * padding))
    return head + added + gguf[COUNTS + 16 :]


def with_text(gguf: bytes, key: bytes, value: bytes) -> bytes:
    """With another text under a key that it has."""
    start = gguf.index(text(key)) + len(text(key)) + 4
    (length,) = struct.unpack_from("<Q", gguf, start)
    value += b" " * ((length - len(value)) % ALIGNMENT)
    return gguf[:start] + text(value) + gguf[start + 8 + length :]


def with_number(gguf: bytes, key: bytes, value: int) -> bytes:
    """With another uint32 under a key that it has."""
    start = gguf.index(text(key)) + len(text(key)) + 4
    return gguf[:start] + struct.pack("<I", value) + gguf[start + 4 :]
