"""What a list of models says of each, in the words that Ollama's clients know."""

from __future__ import annotations

from dataclasses import dataclass

from workers.model_files.card import quantization
from workers.model_files.fingerprint import files_identity
from workers.model_files.folder import ModelFile
from workers.model_files.gguf_header import GgufHeader, read_gguf_header
from workers.model_files.magic import GGUF_MAGIC, read_magic

UNKNOWN = "unknown"
MAX_FAMILY = 80
"""Characters; no engine knows an architecture with a longer name."""


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What a header says. Of a GGML file, whose header does not say its kind, little."""

    format: str
    """gguf or ggml."""
    family: str
    """The architecture, such as "llama"; "" where the file does not say."""
    parameter_size: str
    """Such as "1.1B"; "" where the file does not say."""
    quantization_level: str
    """Such as "Q4_K_M"; "unknown" where the file does not say."""
    context_length: int | None
    """Tokens that it was trained on; None where the file does not say."""
    digest: str
    """64 hexadecimal digits that change with the file; no hash of all its bytes."""


class DetailsCache:
    """Details, read once for each state of a file: a header takes up to a second.

    `of` reads files, so it has its place in a thread.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[ModelFile, ModelDetails]] = {}

    def of(self, model: ModelFile) -> ModelDetails:
        """Raises ConfigurationError for a header that cannot be read, OSError for such a file."""
        known = self._known.get(model.name)
        if known is None or known[0] != model:
            known = self._known[model.name] = model, read_details(model)
        return known[1]


def read_details(model: ModelFile) -> ModelDetails:
    """Raises ConfigurationError for a header that cannot be read, OSError for such a file."""
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
    """As Ollama writes it: 1.1B, 134.52M, 7K."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 10**6:
        return f"{parameters / 1e6:.2f}M"
    return f"{parameters / 1e3:.0f}K" if parameters >= 1000 else str(parameters)


def quantization_level(header: GgufHeader) -> str:
    """What most of its weights are."""
    return quantization(header) or UNKNOWN
