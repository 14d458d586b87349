"""What somebody sees who starts the server in a terminal: the model, the cores, how far loading
is, what was loaded, the address, and a line to copy.

Without a terminal there are log lines instead: `server.cli.describe`, `Models.introduce`.
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
from shared.settings import ModelSpec, Settings
from shared.values import ModelInfo
from workers.machine.cores import counted
from workers.machine.cpu_features import cpu_model
from workers.machine.kernel_files import format_cpu_list
from workers.model_files.card import file_size
from workers.model_files.details import parameter_size
from workers.pool.catalog import Catalog

LABEL_WIDTH = 10
BAR_WIDTH = 24
LOOK_S = 0.1
"""Between two looks at how far loading is."""
EXAMPLE = "Once upon a time"


def is_wanted(log_level: str, log_format: str, stream: TextIO = sys.stderr) -> bool:
    """On a terminal, unless its user wants to see the log, or only what is wrong."""
    return (log_level, log_format) == ("info", "text") and stream.isatty()


class StartScreen:
    """Written from top to bottom; only the line that shows loading is written over."""

    def __init__(self, settings: Settings, stream: TextIO = sys.stderr) -> None:
        self._settings = settings
        self._stream = stream
        self._style = style_for(stream)
        self._started = time.monotonic()

    def begin(self) -> None:
        """What is known before anything is loaded."""
        settings = self._settings
        self._line(f"{self._style.bold('tokenflume')} {self._style.dim(VERSION)}")
        self._line()
        for spec in settings.models:
            self._row("model", *model_texts(spec))
        if settings.folder is not None:
            limit = size_text(settings.folder.memory_limit)
            self._row("models", f"those in {settings.folder.path}, loaded on their first use")
            self._row("memory", f"at most {limit} for those that are loaded")
        else:
            self._row("cores", *core_texts(settings.models))
        self._row("cpu", " ".join(cpu_model().split()))

    async def follow(self, models: Models, url: str) -> None:
        """Show how far loading is; then what was loaded, and where the server is."""
        with quiet_log():
            await self._show_loading(models.catalog)
            statuses = [(spec, pool.status()) for spec, pool in models.catalog.loaded()]
            if any(status.is_lost for _, status in statuses):
                return  # the server ends, or the log says what is wrong
            for spec, status in statuses:
                if status.model is None:
                    continue
                chat = models.chat_of(spec.name, status.model.card)
                whose = f"{spec.name}: " if len(self._settings.models) > 1 else ""
                for place, (label, text) in enumerate(loaded_rows(status.model, chat)):
                    self._row(label, text if place else whose + text)
        names = [status.spec.name for status in models.statuses()]
        self._say_address(url, names)

    async def _show_loading(self, catalog: Catalog) -> None:
        """Until each model has a worker, or is known to get none."""
        live = LiveLine(self._stream)
        waiting = asyncio.gather(*(pool.until_ready() for _, pool in catalog.loaded()))
        try:
            while not waiting.done():
                live.show(self._loading_text(catalog))
                await asyncio.wait([waiting], timeout=LOOK_S)
        finally:
            waiting.cancel()
            live.clear()
            await asyncio.gather(waiting, return_exceptions=True)

    def _loading_text(self, catalog: Catalog) -> str:
        statuses = [status for status in catalog.statuses() if status.info is None]
        name = statuses[0].spec.name if statuses else ""
        share = min((status.pool.loaded for status in statuses), default=1.0)
        drawn = f"{bar(share, BAR_WIDTH):·<{BAR_WIDTH}}"
        seconds = time.monotonic() - self._started
        return f"  {'loading':<{LABEL_WIDTH}}{drawn} {share:4.0%}  {name}  {seconds:.0f} s"

    def _say_address(self, url: str, names: list[str]) -> None:
        style = self._style
        where = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        self._line()
        self._line(f"  {style.bold(style.accent(url))}  also a page to try it in a browser")
        self._line()
        model = names[0] if self._settings.folder is not None and names else None
        key = self._settings.access.key_file is not None
        self._line(f"  {curl_line(where, model, needs_key=key)}")
        self._line()
        self._line(f"  {style.dim('Ctrl-C ends it, after the streams that run.')}")

    def _row(self, label: str, *texts: str) -> None:
        """The texts below each other, each wrapped to the terminal."""
        width = max(20, columns() - LABEL_WIDTH - 2)
        lines = [line for text in texts for line in textwrap.wrap(text, width)] or [""]
        for place, line in enumerate(lines):
            shown = self._style.dim(f"{label if not place else '':<{LABEL_WIDTH}}")
            self._line(f"  {shown}{line}".rstrip())

    def _line(self, text: str = "") -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def model_texts(spec: ModelSpec) -> Iterator[str]:
    """Its name, size and file."""
    path = spec.model.path
    if path is None:
        yield f"{spec.name}, which streams the prompt back"
        return
    size = f", {size_text(file_size(path))}" if spec.model.engine != "echo" else ""
    yield f"{spec.name}{size}"
    yield str(path)


def core_texts(models: tuple[ModelSpec, ...]) -> Iterator[str]:
    """What each model has of them."""
    for spec in models:
        workers = spec.pool.workers
        threads = [len(worker.cpus) for worker in workers]
        each = f" of {counted(threads[0], 'thread')}" if len(set(threads)) == 1 else ""
        cpus = format_cpu_list(cpu for worker in workers for cpu in worker.cpus)
        whose = f", for {spec.name}" if len(models) > 1 else ""
        noun = "CPU" if cpus.isdecimal() else "CPUs"
        yield f"{counted(len(workers), 'worker')}{each}, on {noun} {cpus}{whose}"


def loaded_rows(info: ModelInfo, chat: ChatFormat) -> Iterator[tuple[str, str]]:
    """What the model's worker says of it."""
    card = info.card
    parameters = f"{parameter_size(card.parameters)} parameters" if card.parameters else ""
    kind = [info.architecture, parameters, card.quantization, f"on {info.engine}"]
    yield "loaded", ", ".join(text for text in kind if text)
    context = f"{info.context:,} tokens of prompt and answer"
    if 0 < card.trained_context < info.context:
        context += f"; beyond {card.trained_context:,} it was not trained"
    yield "context", context
    yield "streams", f"{info.slots} at a time in each worker"
    guess = "plain text, for want of a template: --chat-template has others"
    yield "chats", guess if chat.is_guess else f"by {chat.name}"


def curl_line(url: str, model: str | None, *, needs_key: bool) -> str:
    """A command that streams a text. `model`: to name it, where none is the default."""
    key = "-H 'Authorization: Bearer YOUR-KEY' " if needs_key else ""
    fields = {"model": model, "prompt": EXAMPLE} if model else {"prompt": EXAMPLE}
    body = json.dumps(fields, ensure_ascii=False)
    return f"curl -N {url}/stream {key}-d {shlex.quote(body)}"


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Within, the log leaves out what the screen says: all that is no error."""
    handlers = logging.getLogger().handlers[:]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
