"""What the server shows when it is started in a terminal: the model, the cores, the load
progress, the loaded model, the address, and a command to copy.

Without a terminal, server.observe.start_log logs the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import TextIO

from server.chat import ChatFormat
from server.generation.models import Models
from server.terminal.style import LiveLine, bar, columns, size_text, style_for
from server.version import VERSION
from shared.errors import NotReady
from shared.settings import ModelSpec, Settings
from shared.values import ModelInfo
from workers.machine.cores import counted
from workers.machine.cpu_features import cpu_model
from workers.machine.kernel_files import format_cpu_list
from workers.model_files.card import file_size
from workers.model_files.details import parameter_size
from workers.pool.catalog import Catalog
from workers.pool.status import PoolStatus

LABEL_COLUMNS = 10
BAR_COLUMNS = 24
CLOCK_S = 1.0
"""Time between two updates of the elapsed seconds."""
EXAMPLE = "Once upon a time"


def is_wanted(log_level: str, log_format: str, stream: TextIO = sys.stderr) -> bool:
    """Whether to show the screen: on a terminal, unless the user asks for another kind of log."""
    return (log_level, log_format) == ("info", "text") and stream.isatty()


class StartScreen:
    """Written from top to bottom; only the line with the load progress is overwritten."""

    def __init__(self, settings: Settings, stream: TextIO = sys.stderr) -> None:
        self._settings = settings
        self._stream = stream
        self._style = style_for(stream)
        self._started = time.monotonic()

    def begin(self) -> None:
        """Show what is known before the models are loaded."""
        settings = self._settings
        self._line(f"{self._style.bold('tokenflume')} {self._style.dim(VERSION)}")
        self._line()
        for spec in settings.models:
            self._row("model", *model_texts(spec))
        if settings.folder is not None:
            limit = size_text(settings.folder.memory_limit)
            self._row("models", f"from {settings.folder.path}, each loaded on its first request")
            self._row("memory", f"at most {limit} for loaded models")
        else:
            self._row("cores", *core_texts(settings.models))
        self._row("cpu", " ".join(cpu_model().split()))

    async def follow(self, models: Models, url: str) -> None:
        """Show the load progress; then the loaded models and the address."""
        with quiet_log():
            await self._show_loading(models.catalog)
            statuses = [(spec, pool.status()) for spec, pool in models.catalog.loaded()]
            if any(status.is_lost for _, status in statuses):
                return  # the server stops, or the log says what is wrong
            for spec, status in statuses:
                if status.model is None:
                    continue
                try:
                    chat = await models.chat_of(spec.name, status.model.card)
                except NotReady as error:
                    self._row("model", f"{spec.name}: {error.message}")
                    continue
                whose = f"{spec.name}: " if len(self._settings.models) > 1 else ""
                for row, (label, text) in enumerate(loaded_rows(status.model, chat)):
                    self._row(label, text if row else whose + text)
        names = [status.spec.name for status in models.statuses()]
        self._show_address(url, names)

    async def _show_loading(self, catalog: Catalog) -> None:
        """Return when each model has a ready worker, or has lost all its workers."""
        live = LiveLine(self._stream)
        try:
            while any(is_loading(pool.status()) for _, pool in catalog.loaded()):
                live.show(self._loading_text(catalog))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOCK_S):
                        await catalog.until_change()
        finally:
            live.clear()

    def _loading_text(self, catalog: Catalog) -> str:
        statuses = [status for status in catalog.statuses() if status.info is None]
        name = statuses[0].spec.name if statuses else ""
        share = min((status.pool.loaded for status in statuses), default=1.0)
        drawn = f"{bar(share, BAR_COLUMNS):·<{BAR_COLUMNS}}"
        seconds = time.monotonic() - self._started
        return f"  {'loading':<{LABEL_COLUMNS}}{drawn} {share:4.0%}  {name}  {seconds:.0f} s"

    def _show_address(self, url: str, names: list[str]) -> None:
        style = self._style
        where = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        self._line()
        self._line(f"  {style.bold(style.accent(url))}  with a page to try it in a browser")
        self._line()
        model = names[0] if self._settings.folder is not None and names else None
        key = self._settings.access.key_file is not None
        self._line(f"  {curl_line(where, model, needs_key=key)}")
        self._line()
        self._line(f"  {style.dim('Ctrl-C stops the server after its running streams.')}")

    def _row(self, label: str, *texts: str) -> None:
        """Show the texts below each other, each wrapped to the terminal."""
        width = max(20, columns() - LABEL_COLUMNS - 2)
        lines = [line for text in texts for line in textwrap.wrap(text, width)] or [""]
        for row, line in enumerate(lines):
            shown = self._style.dim(f"{label if not row else '':<{LABEL_COLUMNS}}")
            self._line(f"  {shown}{line}".rstrip())

    def _line(self, text: str = "") -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def is_loading(status: PoolStatus) -> bool:
    """Whether the pool has no ready worker yet, but may get one."""
    return status.model is None and not status.is_lost


def model_texts(spec: ModelSpec) -> Iterator[str]:
    """The name and size of a model, and its file."""
    path = spec.model.path
    if path is None:
        yield f"{spec.name}, which streams the prompt back"
        return
    size = f", {size_text(file_size(path))}" if spec.model.engine != "echo" else ""
    yield f"{spec.name}{size}"
    yield str(path)


def core_texts(models: tuple[ModelSpec, ...]) -> Iterator[str]:
    """The workers, threads and CPUs of each model."""
    for spec in models:
        workers = spec.pool.workers
        threads = [len(worker.cpus) for worker in workers]
        each = f" of {counted(threads[0], 'thread')}" if len(set(threads)) == 1 else ""
        cpus = format_cpu_list(cpu for worker in workers for cpu in worker.cpus)
        whose = f", for {spec.name}" if len(models) > 1 else ""
        noun = "CPU" if cpus.isdecimal() else "CPUs"
        yield f"{counted(len(workers), 'worker')}{each}, on {noun} {cpus}{whose}"


def loaded_rows(info: ModelInfo, chat: ChatFormat) -> Iterator[tuple[str, str]]:
    """What is known of a model once it is loaded."""
    card = info.card
    parameters = f"{parameter_size(card.parameters)} parameters" if card.parameters else ""
    kind = [info.architecture, parameters, card.quantization, f"on {info.engine}"]
    yield "loaded", ", ".join(text for text in kind if text)
    context = f"{info.context:,} tokens of prompt and answer"
    if 0 < card.trained_context < info.context:
        context += f"; trained on at most {card.trained_context:,}"
    yield "context", context
    yield "streams", f"{info.slots} at a time in each worker"
    guess = "plain text: the model has no template, --chat-template sets one"
    yield "chats", guess if chat.is_guess else f"template {chat.name}"


def curl_line(url: str, model: str | None, *, needs_key: bool) -> str:
    """A command that streams a text. `model`: the name to send; None: the default model."""
    key = "-H 'Authorization: Bearer YOUR-KEY' " if needs_key else ""
    fields = {"model": model, "prompt": EXAMPLE} if model else {"prompt": EXAMPLE}
    body = json.dumps(fields, ensure_ascii=False)
    return f"curl -N {url}/stream {key}-d {shlex.quote(body)}"


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """A context in which only errors are logged: the screen shows the rest."""
    handlers = logging.getLogger().handlers[:]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
