"""Chooses the engine for a model file, by its header and by what is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shared.errors import ConfigurationError
from shared.settings import EngineName
from workers.model_files.gguf_header import read_gguf_header
from workers.model_files.magic import GGML_MAGICS, GGUF_MAGIC, read_magic

INSTALL_LLAMA_CPP = "pip install 'tokenflume[llama]'"
CTRANSFORMERS_GGUF = {("llama", "llama"), ("falcon", "gpt2")}
"""The architectures and tokenizers of GGUF files that ctransformers supports."""
CTRANSFORMERS_TENSORS = frozenset((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
"""ggml's numbers of the tensor types that ctransformers supports: F32, F16, Q4_0 to Q8_1 and Q2_K
to Q8_K."""


def choose_engine(path: Path, model_type: str | None) -> EngineName:
    """The engine for a model file, by its header and by the installed packages.

    Raises ConfigurationError if the file is missing, unreadable, empty or not a model, if it is a
    GGML file without a `model_type`, or if it needs llama.cpp and that is not installed.
    """
    magic = _checked_magic(path)
    if magic == GGUF_MAGIC:
        if has_llama_cpp():
            return "llama_cpp"
        return _without_llama_cpp(path)
    if magic in GGML_MAGICS:
        if model_type is None:
            raise ConfigurationError(
                f"{path} is a GGML file, which does not contain its architecture:"
                " name it with --model-type (llama, gpt2, gptj, gpt_neox, mpt, starcoder, …)"
            )
        return "ctransformers"
    raise ConfigurationError(f"{path} is neither a GGUF nor a GGML file")


def has_llama_cpp() -> bool:
    """Whether the optional package is installed. Does not import it."""
    return importlib.util.find_spec("llama_cpp") is not None


def _without_llama_cpp(path: Path) -> EngineName:
    """ctransformers if it supports the GGUF file. Raises ConfigurationError if not."""
    header = read_gguf_header(path)
    kind = (header.architecture, header.tokenizer)
    if kind in CTRANSFORMERS_GGUF and header.tensor_types <= CTRANSFORMERS_TENSORS:
        return "ctransformers"
    raise ConfigurationError(
        f"{path} ({' with the tokenizer '.join(name[:80] for name in kind)}) needs llama.cpp:"
        f" install it with {INSTALL_LLAMA_CPP}"
    )


def _checked_magic(path: Path) -> bytes:
    """The file's first four bytes. Raises ConfigurationError."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # Opening a pipe would block until somebody writes to it.
            raise ConfigurationError(f"{path} is not a regular file")
        magic = read_magic(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{path} cannot be read: {reason}") from None
    if not magic:
        raise ConfigurationError(f"{path} is empty")
    return magic
