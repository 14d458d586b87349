"""GGUF files that are no language models."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_gguf(path: Path, architecture: str, kind: str = "", tensors: int = 1) -> Path:
    """A file of another kind, as the tools around llama.cpp write them."""
    writer = gguf.GGUFWriter(path, architecture)
    if kind:
        writer.add_type(kind)
    for number in range(tensors):
        writer.add_tensor(f"tensor.{number}", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
