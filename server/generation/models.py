"""The models that requests may name, with what the front adds to them: how they chat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from server.chat import ChatFormat, chat_format
from server.chat.bounded_jinja import ChatTemplate
from server.chat.system_prompts import SystemPrompts
from server.chat.template import Compile
from server.generation.preparation import Preparation
from server.generation.served_model import ServedModel
from shared.errors import NotReady
from shared.sampling import SamplingParams
from shared.values import ModelCard, ModelInfo
from workers.pool.catalog import Catalog, ModelStatus
from workers.pool.pool import WorkerPool

logger = logging.getLogger("tokenflume.models")


class Models:
    """The models of a catalog that the caller starts and stops.

    `template`: the chat template of all models; None: each has its own. `compiled` makes templates
    that are not built in.
    """

    def __init__(
        self,
        catalog: Catalog,
        defaults: SamplingParams,
        system: SystemPrompts,
        template: str | None = None,
        compiled: Compile = ChatTemplate,
    ) -> None:
        self.preparation = Preparation()
        self._catalog = catalog
        self._defaults = defaults
        self._system = system
        self._template = template
        self._compiled = compiled
        self._formats: dict[ModelCard, ChatFormat] = {}
        self._making = asyncio.Lock()

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
        """Keep the model loaded within. None: the default model. Raises ServingError."""
        async with self._catalog.use(name) as (spec, pool):
            status = pool.status()
            info = status.model
            if info is None:
                raise NotReady(status.why_not_ready or "no worker is ready yet")
            chat = await self.chat_of(spec.name, info.card)
            yield ServedModel(spec.name, info, self._defaults, chat, self._system), pool

    def is_for_chats(self, card: ModelCard) -> bool:
        """Whether the model has a chat template, its own or the server's; else it is a guess."""
        return bool(card.chat_template) or self._template is not None

    def prompt_with(self, system: SystemPrompts) -> None:
        """Use these system prompts from now on."""
        self._system = system

    async def introduce(self) -> None:
        """Log how the models that are loaded at start chat, as soon as they are loaded."""
        for spec, pool in self._catalog.loaded():
            await pool.until_ready()
            info = pool.status().model
            if info is not None:
                with suppress(NotReady):  # the next request for the model tries again
                    await self.chat_of(spec.name, info.card)
                _warn_of_context(spec.name, info)

    async def chat_of(self, name: str, card: ModelCard) -> ChatFormat:
        """The model's chat format. Made once; that renders some chats. Raises NotReady."""
        if (chat := self._formats.get(card)) is not None:
            return chat
        async with self._making:
            if (chat := self._formats.get(card)) is None:
                chat = await self.preparation.run(chat_format, card, self._template, self._compiled)
                self._formats[card] = chat
                _log_chat_format(name, chat)
            return chat


def _log_chat_format(name: str, chat: ChatFormat) -> None:
    if chat.is_guess:
        logger.warning(
            "%s has no chat template: its chats are plain text (%s); --chat-template"
            " chooses another", name, chat.name,
        )  # fmt: skip
    else:
        logger.info("%s chats by %s", name, chat.name)


def _warn_of_context(name: str, info: ModelInfo) -> None:
    trained = info.card.trained_context
    if 0 < trained < info.context:
        logger.warning(
            "the context is %d tokens; %s was trained on at most %d, and may lose its thread"
            " beyond them", info.context, name, trained,
        )  # fmt: skip
