"""Identifies what computes a state: the model file, the engine and its settings."""

from __future__ import annotations

import hashlib

from shared.settings import ModelSettings
from workers.engines.base import Engine
from workers.model_files.fingerprint import add_file
from workers.prompts.files import Identity


def model_identity(settings: ModelSettings, engine: Engine) -> Identity:
    """Return the identity; of the file its size, beginning and samples count. Raises OSError."""
    digest = hashlib.blake2b(f"{settings.engine}|{settings.model_type}|".encode(), digest_size=20)
    if settings.path is not None:
        add_file(settings.path, digest)
    return Identity(digest.hexdigest(), engine.state_format)
