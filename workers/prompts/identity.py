"""Identifies what computes a state: the model's files, the engine and its settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.settings import ModelSettings
from workers.engines.base import Engine
from workers.model_files.split_names import model_parts
from workers.prompts.files import Identity
from workers.prompts.known_digest import known_digest


def model_identity(settings: ModelSettings, engine: Engine, folder: Path | None = None) -> Identity:
    """Return the identity, which depends on each byte of all the model's files.

    `folder`: where the digest of a large model is kept. Raises OSError.
    """
    digest = hashlib.blake2b(f"{settings.engine}|{settings.model_type}|".encode(), digest_size=20)
    if settings.path is not None:
        digest.update(known_digest(model_parts(settings.path), folder).encode())
    return Identity(digest.hexdigest(), engine.state_format)
