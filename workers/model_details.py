"""What a list of models says of each, in the words that Ollama's clients know."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine import GGUF_MAGIC
from workers.gguf_header import GgufHeader, read_gguf_header
from workers.model_files import ModelFile, read_magic
from workers.model_identity import files_identity

QUANTIZATIONS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""llama.cpp's numbers of file types (`general.file_type`, llama.h's llama_ftype)."""
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
    file_type = header.metadata.get("general.file_type")
    return QUANTIZATIONS.get(file_type, UNKNOWN) if type(file_type) is int else UNKNOWN
