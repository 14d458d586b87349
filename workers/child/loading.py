"""Loads the model, and builds what runs requests on it."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

from shared.messages import Loading
from shared.queues import TokenSender
from shared.settings import WorkerSettings
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler
from workers.child.step_cost import StepCost, measure
from workers.engines.base import Engine
from workers.engines.table import ENGINES, load_engine
from workers.prompts.cache import PromptCache
from workers.prompts.restore import read_identity, restore_prompt
from workers.prompts.store import PromptStore

CALIBRATION_STEP_S = 0.2
"""Longest step, in seconds, that is measured when a worker starts: it should be ready soon."""
SAMPLE = "a"
"""The measured steps are fed this text's tokens, repeated; every context has room for them."""
SMALLEST_PROGRESS = 0.05
"""Smallest increase in load progress (0 to 1) worth reporting."""

logger = logging.getLogger("tokenflume.worker")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and what runs requests on it."""

    engine: Engine
    scheduler: Scheduler
    preparer: Preparer
    store: PromptStore | None = None
    """None: saved prompts are in memory only."""


def load(settings: WorkerSettings, sender: TokenSender) -> LoadedModel:
    """Load the model, and tell the front how far loading is. Raises ConfigurationError."""
    threads = max(1, len(settings.cpus))
    engine = load_engine(settings.model, threads, LoadingReport(sender).progress)
    return assemble(settings, engine)


class LoadingReport:
    """Tells the front the progress of loading, in steps of at least SMALLEST_PROGRESS."""

    def __init__(self, sender: TokenSender) -> None:
        self._sender = sender
        self._reported = 0.0

    def progress(self, share: float) -> None:
        """Report that this share of the model is loaded, 0 to 1."""
        if share < self._reported + SMALLEST_PROGRESS:
            return
        self._reported = share
        # The caller may be native code. If the front is gone, this process ends by itself.
        with contextlib.suppress(BrokenPipeError):
            self._sender.send([Loading(share)])


def assemble(settings: WorkerSettings, engine: Engine) -> LoadedModel:
    """Build what runs requests on the engine. Raises ConfigurationError."""
    cost = step_cost(engine) if ENGINES[settings.model.engine].measured else None
    cache, store, root = settings.cache, None, None
    if cache.folder is not None or cache.restore is not None:
        identity = read_identity(settings.model, engine, cache.folder)
        if cache.folder is not None:
            store = PromptStore(cache.folder, cache.disk, identity, cache.memory)
        if cache.restore is not None:
            root = restore_prompt(cache.restore, identity, engine)
    prompts = PromptCache(cache.memory, root if root and root.state else None)
    scheduler = Scheduler(engine, time.monotonic, cost, settings.max_stall_s, prompts)
    if root and not root.state:
        scheduler.preload(root.tokens)
    preparer = Preparer(engine, root.tokens if root else (), store)
    return LoadedModel(engine, scheduler, preparer, store)


def step_cost(engine: Engine) -> StepCost:
    """Measure how long the engine's steps take on this machine."""
    started = time.monotonic()
    cost = measure(engine, time.monotonic, engine.tokenize(SAMPLE), CALIBRATION_STEP_S)
    logger.debug("steps: %s; measured in %.2f s", cost, time.monotonic() - started)
    return cost
