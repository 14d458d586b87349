"""The models that requests may name, with what the front adds to them: how they chat."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.chat import ChatFormat, chat_format
from server.chat.system_prompts import SystemPrompts
from server.generation.served_model import ServedModel
from shared.errors import NotReady
from shared.sampling import SamplingParams
from shared.values import ModelCard, ModelInfo
from workers.pool.catalog import Catalog, ModelStatus
from workers.pool.pool import WorkerPool

logger = logging.getLogger("tokenflume.models")


class Models:
    """Over a catalog that its caller starts and stops.

    `template`: the chat template of all models; None: each has its own.
    """

    def __init__(
        self,
        catalog: Catalog,
        defaults: SamplingParams,
        system: SystemPrompts,
        template: str | None = None,
    ) -> None:
        self._catalog = catalog
        self._defaults = defaults
        self._system = system
        self._template = template
        self._formats: dict[ModelCard, ChatFormat] = {}

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    def statuses(self) -> list[ModelStatus]:
        """The status of each known model; the default one, if there is one, is the first."""
        return self._catalog.statuses()

    async def current_statuses(self) -> list[ModelStatus]:
        """As `statuses`, after a look for new models."""
        await self._catalog.refresh()
        return self._catalog.statuses()

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[tuple[ServedModel, WorkerPool]]:
        """Within, the model's workers are there. None: the default model. Raises ServingError."""
        async with self._catalog.use(name) as (spec, pool):
            status = pool.status()
            info = status.model
            if info is None:
                raise NotReady(status.why_not_ready or "no worker is ready yet")
            served = ServedModel(
                spec.name, info, self._defaults, self.chat_of(spec.name, info.card), self._system
            )
            yield served, pool

    def is_for_chats(self, card: ModelCard) -> bool:
        """There is a chat template for it, its own or the server's; else chats are a guess."""
        return bool(card.chat_template) or self._template is not None

    def prompt_with(self, system: SystemPrompts) -> None:
        """The system prompts of requests from now on."""
        self._system = system

    async def introduce(self) -> None:
        """Say how the models chat that are loaded at start, as soon as they are."""
        for spec, pool in self._catalog.loaded():
            await pool.until_ready()
            info = pool.status().model
            if info is not None:
                self.chat_of(spec.name, info.card)
                _warn_of_context(spec.name, info)

    def chat_of(self, name: str, card: ModelCard) -> ChatFormat:
        """The model's chat format, made once."""
        chat = self._formats.get(card)
        if chat is None:
            chat = self._formats[card] = chat_format(card, self._template)
            if chat.is_guess:
                logger.warning(
                    "%s has no chat template: its chats are plain text (%s); --chat-template"
                    " chooses another", name, chat.name,
                )  # fmt: skip
            else:
                logger.info("%s chats by %s", name, chat.name)
        return chat


def _warn_of_context(name: str, info: ModelInfo) -> None:
    trained = info.card.trained_context
    if 0 < trained < info.context:
        logger.warning(
            "the context is %d tokens; %s was trained on at most %d, and may lose its thread"
            " beyond them", info.context, name, trained,
        )  # fmt: skip
