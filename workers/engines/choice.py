"""Chooses the engine for a model file, by its header and by what is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shared.errors import ConfigurationError
from shared.settings import EngineName
from workers.model_files.gguf_header import read_gguf_header
from workers.model_files.magic import GGML_MAGICS, GGUF_MAGIC

INSTALL_LLAMA_CPP = "pip install 'tokenflume[llama]'"
CTRANSFORMERS_GGUF = {("llama", "llama"), ("falcon", "gpt2")}
"""(architecture, tokenizer) of the GGUF files that ctransformers runs."""
CTRANSFORMERS_TENSORS = frozenset((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
"""ggml's numbers of the tensor types it knows: F32 and F16, Q4_0 to Q8_1, Q2_K to Q8_K."""


def choose_engine(path: Path, model_type: str | None) -> EngineName:
    """The engine for a model file, by its header and by what is installed.

    Raises ConfigurationError, in one sentence, for a file that is missing, not
    readable, empty, no model, headerless without a `model_type`, or one that
    only llama.cpp runs where that is not installed.
    """
    magic = _read_magic(path)
    if magic == GGUF_MAGIC:
        if has_llama_cpp():
            return "llama_cpp"
        return _without_llama_cpp(path)
    if magic in GGML_MAGICS:
        if model_type is None:
            raise ConfigurationError(
                f"{path} is a GGML file, which does not say its architecture:"
                " name it with --model-type (llama, gpt2, gptj, gpt_neox, mpt, starcoder, …)"
            )
        return "ctransformers"
    raise ConfigurationError(f"{path} is neither a GGUF nor a GGML file")


def has_llama_cpp() -> bool:
    """Whether the optional engine is installed; finds out without importing it."""
    return importlib.util.find_spec("llama_cpp") is not None


def _without_llama_cpp(path: Path) -> EngineName:
    """ctransformers, if it can run the GGUF. Raises ConfigurationError."""
    header = read_gguf_header(path)
    kind = (header.architecture, header.tokenizer)
    if kind in CTRANSFORMERS_GGUF and header.tensor_types <= CTRANSFORMERS_TENSORS:
        return "ctransformers"
    raise ConfigurationError(
        f"{path} ({' with the tokenizer '.join(name[:80] for name in kind)}) needs llama.cpp:"
        f" install it with {INSTALL_LLAMA_CPP}"
    )


def _read_magic(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigurationError(f"{path} is no regular file")  # a pipe would block us
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{path} cannot be read: {reason}") from None
    if not magic:
        raise ConfigurationError(f"{path} is empty")
    return magic
