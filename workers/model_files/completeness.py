"""Whether files are a complete language model. Others are in the same folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.errors import ConfigurationError
from workers.model_files.gguf_header import GgufHeader, read_gguf_header
from workers.model_files.magic import GGUF_MAGIC, read_magic

KINDS = {
    "adapter": "an adapter (LoRA), which changes a model",
    "mmproj": "a projector of images or sounds (mmproj), which belongs to a model",
    "imatrix": "an importance matrix, from which a model is quantized",
    "vocab": "a vocabulary without weights",
    "clip": "a projector of images or sounds (mmproj), which belongs to a model",
    "controlvector": "a control vector, which changes a model",
}
"""What other GGUF files contain, by `general.type` or by `general.architecture`."""
NO_TOKENIZERS = ("", "none", "no_vocab")


def check_complete(paths: Sequence[Path]) -> None:
    """Check that the files are all of a language model. GGML files are not looked into.

    Raises ConfigurationError, which names the file and what it is instead, and OSError.
    """
    if read_magic(paths[0]) != GGUF_MAGIC:
        return
    headers = [read_gguf_header(path) for path in paths]
    what = _other_kind(headers)
    if what:
        raise ConfigurationError(f"{paths[0]} is no language model: it is {what}")
    for path, header in zip(paths, headers, strict=True):
        if header.least_size > header.size:
            raise ConfigurationError(
                f"{path} is not complete: it has {header.size} bytes, and its tensors reach up to"
                f" {header.least_size}"
            )


def _other_kind(headers: Sequence[GgufHeader]) -> str:
    """What the files are instead of a language model; "" if they may be one."""
    first = headers[0]
    kind = first.metadata.get("general.type", "model")
    for name in (kind, first.architecture):
        if isinstance(name, str) and name in KINDS:
            return KINDS[name]
    if kind != "model":
        return f"of the type {kind!r:.80}"
    if not any(header.tensors for header in headers):
        return "a vocabulary or a header without weights"
    if not first.architecture:
        return "without an architecture"
    return "without a vocabulary" if first.tokenizer in NO_TOKENIZERS else ""
