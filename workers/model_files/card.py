"""A model's card: what its file says about it, for clients that ask what is served."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from shared.values import ModelCard
from workers.model_files.gguf_header import GgufHeader
from workers.model_files.split_names import model_parts

MAX_TEMPLATE = 2**20
"""The most bytes of a chat template. The longest known ones have about 20,000."""
MAX_NAMES = 2 * 2**20
"""The most bytes of the names of all control tokens. One frame holds these and the template."""
MAX_NAME = 200
"""The most characters of the model's name. Longer names are cut."""
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""The quantizations that general.file_type numbers, as in llama.h."""

logger = logging.getLogger("tokenflume.worker")


def gguf_card(
    path: Path,
    header: GgufHeader,
    *,
    bos: str = "",
    eos: str = "",
    control: Iterable[str] = (),
    parameters: int | None = None,
) -> ModelCard:
    """The card of a GGUF file.

    `parameters`: the number of weights, if the header does not cover all parts of a split model.
    A template or names that are too long for a frame are left out, with a warning.
    """
    names = tuple(control)
    template = _text(header, "tokenizer.chat_template")
    if len(template.encode()) > MAX_TEMPLATE:
        logger.warning("the chat template is not used: it is longer than %d bytes", MAX_TEMPLATE)
        template = ""
    if sum(len(name.encode()) for name in (*names, bos, eos)) > MAX_NAMES:
        # Without all names, text in a message could be taken for a control token.
        logger.warning("the chat template is not used: the names of control tokens are too long")
        names, template, bos, eos = (), "", "", ""
    return ModelCard(
        name=_text(header, "general.name")[:MAX_NAME],
        parameters=header.n_params if parameters is None else parameters,
        size=file_size(path),
        quantization=quantization(header),
        trained_context=max(0, header.architecture_value("context_length") or 0),
        chat_template=template,
        bos=bos,
        eos=eos,
        control=names,
    )


def quantization(header: GgufHeader) -> str:
    """The type of most weights, such as "Q4_K_M"; "" if the header does not say or is unknown."""
    file_type = header.metadata.get("general.file_type")
    return FILE_TYPES.get(file_type, "") if type(file_type) is int else ""


def file_size(path: Path) -> int:
    """Size of a model's file in bytes; for a split model, of all parts that exist.

    Raises OSError.
    """
    return sum(part.stat().st_size for part in model_parts(path))


def _text(header: GgufHeader, key: str) -> str:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else ""
