"""The prompt that all requests continue: processed once, saved to a file, restored at start."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.errors import ConfigurationError, EngineFailed, ServingError
from shared.settings import ModelSettings, WorkerSettings
from workers.engines.base import Engine, Feed
from workers.engines.table import load_engine
from workers.machine.pinning import pin
from workers.prompts.cache import SavedPrompt
from workers.prompts.files import (
    Identity,
    PromptFileError,
    read_head,
    read_prompt,
    write_prompt,
)
from workers.prompts.identity import model_identity

logger = logging.getLogger("tokenflume.worker")
SLOT = 0


def read_identity(settings: ModelSettings, engine: Engine, folder: Path | None = None) -> Identity:
    """Return the identity that saved prompts must have. Raises ConfigurationError.

    `folder`: the folder of saved prompts.
    """
    try:
        return model_identity(settings, engine, folder)
    except OSError as error:
        raise ConfigurationError(f"{settings.path} cannot be read: {error.strerror}") from None


def restore_prompt(path: Path, identity: Identity, engine: Engine) -> SavedPrompt:
    """Return the saved prompt, for requests to continue from. Raises ConfigurationError.

    If its state is damaged or does not belong to the engine, its tokens are processed again. An
    engine that cannot save states then has them in its first slot.
    """
    try:
        head = read_head(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except PromptFileError as error:
        raise ConfigurationError(str(error)) from None
    if head.identity.model != identity.model:
        raise ConfigurationError(f"{path} was made with another model or engine")
    check_length(len(head.tokens), engine)
    if engine.state_format:
        try:
            return read_prompt(path, identity)
        except (OSError, PromptFileError) as error:
            logger.warning("the prompt to restore is processed again: %s", error)
    return process(head.tokens, engine)


def save_prompt(text: str, path: Path, engine: Engine, identity: Identity) -> int:
    """Process the text and write its state; return how many tokens it has.

    Raises ConfigurationError.
    """
    try:
        tokens = engine.tokenize(text)
        check_length(len(tokens), engine)
        write_prompt(path, process(tokens, engine), identity)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    except ServingError as error:
        raise ConfigurationError(error.message) from None
    return len(tokens)


def check_length(tokens: int, engine: Engine) -> None:
    """Raise ConfigurationError unless a token of a prompt and one of an answer fit behind."""
    if tokens + 2 > engine.info.context:
        raise ConfigurationError(
            f"the prompt to begin from has {tokens} tokens; the context holds"
            f" {engine.info.context}, of which two must be left: --num-ctx-tokens sets it"
        )


def process(tokens: list[int], engine: Engine) -> SavedPrompt:
    """Process tokens in the first slot. It keeps them only if the engine cannot save states.

    Raises ConfigurationError.
    """
    try:
        for chunk in _chunks(tokens, engine.info.batch):
            engine.decode([chunk])
        if not engine.state_format:
            return SavedPrompt(tokens, bytearray())
        state = engine.save(SLOT)
    except EngineFailed as error:
        raise ConfigurationError(f"the prompt to begin from: {error.message}") from None
    engine.truncate(SLOT, 0)
    return SavedPrompt(tokens, state)


def _chunks(tokens: Sequence[int], size: int) -> Iterator[Feed]:
    for start in range(0, len(tokens), size):
        yield Feed(SLOT, tokens[start : start + size], start, wants_logits=False)


def process_and_save(settings: WorkerSettings, text: str, path: Path) -> tuple[int, float]:
    """Process a prompt in this process, and write its state to a file.

    Returns how many tokens it has, and how many seconds they took. Raises ConfigurationError.
    The process stays pinned to the worker's CPUs.
    """
    standard_output = os.dup(1)
    os.dup2(2, 1)  # native code may print
    try:
        pin(settings)
        engine = load_engine(settings.model, threads=max(1, len(settings.cpus)))
        started = time.monotonic()
        tokens = save_prompt(text, path, engine, read_identity(settings.model, engine))
        return tokens, time.monotonic() - started
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)
