"""From the text of -m to a model file: a path, or a name that begins with `hf:`."""

from __future__ import annotations

from pathlib import Path

from server.hub.reference import PREFIX, parse_reference
from shared.errors import ConfigurationError


def resolve_model(text: str) -> Path:
    """The model file that `text` names: a path, or `hf:…`, which is fetched unless it is cached.

    Raises ConfigurationError with a sentence if the file cannot be fetched.
    """
    if not text.startswith(PREFIX):
        return Path(text)
    reference = parse_reference(text)
    try:
        # Imported here because huggingface_hub takes a quarter of a second, and may be broken.
        from server.hub.files import fetch
    except (ImportError, ValueError) as error:  # ValueError: a variable of the library is invalid
        raise ConfigurationError(f"huggingface_hub cannot be used: {error}") from None
    return fetch(reference)
