"""The start of the server in the log: models, cores, limits, address.

In a terminal, server.terminal.screen shows the same.
"""

from __future__ import annotations

import logging

from server.generation.models import Models
from shared.settings import Settings
from workers.machine.cpu_features import cpu_features, cpu_model

logger = logging.getLogger("tokenflume")


class StartLog:
    """Logs what is started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def begin(self) -> None:
        """Log what will be loaded, and on which cores."""
        settings, sampling, folder = self._settings, self._settings.sampling, self._settings.folder
        if folder is not None:
            logger.info(
                "models: from %s, each loaded on its first request, with at most %s MiB together",
                folder.path, f"{folder.memory_limit / 2**20:,.0f}",
            )  # fmt: skip
        for spec in settings.models:
            workers = ", ".join(str(worker.index) for worker in spec.pool.workers)
            logger.info(
                "model %s: file %s, engine %s, worker %s",
                spec.name, spec.model.path or "none", spec.model.engine, workers,
            )  # fmt: skip
        logger.info("cpu: %s; %s", cpu_model(), " ".join(cpu_features()) or "no known features")
        logger.info(
            "sampling defaults: temp %g, top_k %d, top_p %g, repeat_penalty %g over %d tokens",
            sampling.temp, sampling.top_k, sampling.top_p,
            sampling.repeat_penalty, sampling.repeat_last_n,
        )  # fmt: skip
        for line in settings.plan.splitlines():
            logger.info("%s", line)

    async def follow(self, models: Models, url: str) -> None:
        """Log the address; and the chat formats of the models once they are loaded."""
        logger.info("listening on %s", url)
        await models.introduce()
