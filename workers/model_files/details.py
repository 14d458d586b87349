"""The details of models in lists, in the terms of Ollama's API."""

from __future__ import annotations

from dataclasses import dataclass

from workers.model_files.card import quantization
from workers.model_files.fingerprint import files_identity
from workers.model_files.folder import ModelFile
from workers.model_files.gguf_header import GgufHeader, read_gguf_header
from workers.model_files.magic import GGUF_MAGIC, read_magic

UNKNOWN = "unknown"
MAX_FAMILY = 80
"""The most characters of a family. No known architecture has a longer name."""


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What a model's header says. The header of a GGML file says little."""

    format: str
    """"gguf" or "ggml"."""
    family: str
    """The architecture, such as "llama"; "" if the file does not say."""
    parameter_size: str
    """The number of weights, such as "1.1B"; "" if the file does not say."""
    quantization_level: str
    """The type of most weights, such as "Q4_K_M"; "unknown" if the file does not say."""
    context_length: int | None
    """The trained context in tokens; None if the file does not say."""
    digest: str
    """64 hexadecimal digits that change with the file. Not a hash of all its bytes."""


class DetailsCache:
    """Details by model, read again only when a file changes, as a header takes up to a second.

    `of` reads files, so it must not run on an event loop.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[ModelFile, ModelDetails]] = {}

    def of(self, model: ModelFile) -> ModelDetails:
        """The model's details. Raises ConfigurationError for an unusable header, and OSError."""
        known = self._known.get(model.name)
        if known is None or known[0] != model:
            known = self._known[model.name] = model, read_details(model)
        return known[1]


def read_details(model: ModelFile) -> ModelDetails:
    """Read the model's details. Raises ConfigurationError for an unusable header, and OSError."""
    digest = files_identity(model.paths)
    if read_magic(model.path) != GGUF_MAGIC:
        return ModelDetails("ggml", "", "", UNKNOWN, None, digest)
    first, *others = (read_gguf_header(path) for path in model.paths)
    return ModelDetails(
        format="gguf",
        family=first.architecture[:MAX_FAMILY],
        parameter_size=parameter_size(first.n_params + sum(other.n_params for other in others)),
        quantization_level=quantization_level(first),
        context_length=first.architecture_value("context_length"),
        digest=digest,
    )


def parameter_size(parameters: int) -> str:
    """The number of weights in Ollama's notation: 1.1B, 134.52M, 7K."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 10**6:
        return f"{parameters / 1e6:.2f}M"
    return f"{parameters / 1e3:.0f}K" if parameters >= 1000 else str(parameters)


def quantization_level(header: GgufHeader) -> str:
    """The type of most weights; "unknown" if the header does not say."""
    return quantization(header) or UNKNOWN
