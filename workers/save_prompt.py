"""Process a prompt once, without a server, and write its state to a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from shared.settings import WorkerSettings
from workers.engine import load_engine
from workers.restore import read_identity, save_prompt
from workers.worker import pin


def process_and_save(settings: WorkerSettings, text: str, path: Path) -> tuple[int, float]:
    """The prompt's tokens, and the seconds that they took. Raises ConfigurationError.

    In this process, which takes the worker's CPUs for good.
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
