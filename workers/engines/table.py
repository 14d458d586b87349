"""The table of engines.

Only a worker process imports the engines: they load native code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from shared.settings import EngineName, ModelSettings
from workers.engines.base import Engine


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A row of the table of engines."""

    module: str
    """Has `load(settings, threads, on_progress) -> Engine`."""
    batches: bool
    """Runs many sequences in one step, so few large workers beat many small ones."""
    measured: bool = False
    """What a step takes depends on what it carries, and is measured when a worker starts."""


ENGINES: dict[EngineName, EngineEntry] = {
    "llama_cpp": EngineEntry("workers.engines.llama_cpp.engine", batches=True, measured=True),
    "ctransformers": EngineEntry("workers.engines.ctransformers", batches=False),
    "echo": EngineEntry("workers.engines.echo", batches=True),
}


def load_engine(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None] = lambda _: None
) -> Engine:
    """Load the model with its engine; in the worker only. Raises ConfigurationError.

    `on_progress` is told now and then which share of the model is there, in [0, 1].
    """
    module = importlib.import_module(ENGINES[settings.engine].module)
    return cast(Engine, module.load(settings, threads, on_progress))
