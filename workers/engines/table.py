"""The table of engines.

Only a worker process imports the engines themselves, because they load native code.
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
    """What the front knows about an engine."""

    module: str
    """The module with the function `load(settings, threads, on_progress) -> Engine`."""
    batches: bool
    """Whether it decodes many sequences in one step, so that few large workers beat many small
    ones."""
    measured: bool = False
    """Whether the duration of a step depends on its tokens and is measured at a worker's start."""


ENGINES: dict[EngineName, EngineEntry] = {
    "llama_cpp": EngineEntry("workers.engines.llama_cpp.engine", batches=True, measured=True),
    "ctransformers": EngineEntry("workers.engines.ctransformers", batches=False),
    "echo": EngineEntry("workers.engines.echo", batches=True),
}


def load_engine(
    settings: ModelSettings, threads: int, on_progress: Callable[[float], None] = lambda _: None
) -> Engine:
    """Load the model with its engine. Only a worker calls this. Raises ConfigurationError.

    `on_progress` is called several times with the loaded share of the model, 0 to 1.
    """
    module = importlib.import_module(ENGINES[settings.engine].module)
    return cast(Engine, module.load(settings, threads, on_progress))
