"""The command line of `tokenflume tune`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvloop

from server.config.file import MODEL_NAME
from server.config.options import ResolvedOptions, build_parser, read_float, resolve_options
from server.config.specs import GivenModel, given_files
from server.terminal.style import LiveLine, bar, columns, style_for
from server.tune.report import command_text, config_text, memory_lines, report_lines
from server.tune.search import Tuned, Tuner
from shared.errors import ConfigurationError, InvalidRequest
from shared.logs import configure_logging
from shared.validation import number
from workers.machine.cores import counted, read_machine
from workers.machine.cpu_features import cpu_model

SECONDS = 60.0
BAR_WIDTH = 20
SHOWN_GROUPS = ("model", "workers", "configuration", "other")
FIXED = {"queue": 64, "queue_tokens": 2**20, "cache_limit": 0, "cache_dir": None}
"""Options that measuring has its own values for."""

USAGE = "tokenflume tune [-m MODEL] [--seconds S] [--write-config FILE] [options]"
DESCRIPTION = """\
Measure a model on this machine, in the worker processes that would serve it,
and say with which flags it is fastest. Options that are given stay as they are;
of those that are not, these are tried: --num-threads and --workers, --repack,
--kv-type (where memory is short), --batch-size (on ctransformers), --slots and
--max-stall. Nothing else should run meanwhile."""
EPILOG = """\
exit status:
  0  it has measured
  2  a flag, an environment variable or a line of the file is wrong
  3  the model does not fit, or cannot be loaded, or the file not be written
130  it was interrupted

examples:
  tokenflume tune
      the bundled model
  tokenflume tune -m model.gguf -n 4096 --write-config tuned.toml
  tokenflume --config tuned.toml
      serve with what was found"""
EXIT_OK = 0
EXIT_CONFIGURATION = 3
EXIT_INTERRUPTED = 130
"""As shells say it of a program that Ctrl-C has ended."""
TICK_S = 0.25


def tune(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = tune_parser()
    resolved = resolve_options(parser, arguments, os.environ)
    options = resolved.values
    try:
        seconds = number("--seconds", read_float(options.seconds), low=1, high=3600)
    except InvalidRequest as error:
        parser.error(error.message)
    configure_logging(options.log_level if "log_level" in resolved.sources else "error")
    try:
        _check_writable(options.write_config)
        file = _the_model(options)
        tuned = _measured(file, resolved, seconds)
        _report(file, resolved, tuned)
    except ConfigurationError as error:
        print(f"tokenflume: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def tune_parser() -> argparse.ArgumentParser:
    """The server's flags, of which those that measuring is about are shown, and two more."""
    parser = build_parser("tokenflume tune", USAGE, DESCRIPTION, EPILOG, SHOWN_GROUPS)
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--seconds", metavar="S", default=str(SECONDS), help="to take, about (default: 60)"
    )
    group.add_argument(
        "--write-config", metavar="FILE", type=Path, help="write what is advised, for --config"
    )
    return parser


def _check_writable(path: Path | None) -> None:
    """Before a minute is spent for it. Raises ConfigurationError."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ConfigurationError(
            f"{path} cannot be written: it is no file in a folder that may be written to"
        )


def _the_model(options: argparse.Namespace) -> GivenModel:
    """Raises ConfigurationError."""
    if options.models_dir is not None or len(options.model) > 1:
        raise ConfigurationError("tune measures one model: give one -m")
    (file,) = given_files(options)
    return file


def _measured(file: GivenModel, resolved: ResolvedOptions, seconds: float) -> Tuned:
    """Measure; show what is going on. Raises ConfigurationError."""
    style, machine = style_for(sys.stdout), read_machine()
    options = argparse.Namespace(**{**vars(resolved.values), **FIXED, "log_level": "error"})
    if "log_level" in resolved.sources:
        options.log_level = resolved.values.log_level
    ticker = _Ticker(seconds)
    tuner = Tuner(file, options, resolved.sources, machine, seconds, ticker.tell)
    print(f"{style.bold(file.name)}  on {counted(len(machine.cores), 'core')}, {cpu_model()}\n")
    for line in memory_lines(tuner.memory, tuner.available, style):
        print(line, flush=True)

    async def measure() -> Tuned:
        ticking = asyncio.create_task(ticker.tick())
        try:
            return await tuner.run()
        finally:
            ticking.cancel()
            ticker.line.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure())


def _report(file: GivenModel, resolved: ResolvedOptions, tuned: Tuned) -> None:
    """Raises ConfigurationError for a file that cannot be written."""
    style, path = style_for(sys.stdout), resolved.values.write_config
    for line in report_lines(tuned, style, columns()):
        print(line)
    given = _given(file, resolved)
    print(f"\n{style.bold('Serve')}")
    if path is None:
        print(f"  {command_text(tuned, given)}")
        return
    try:
        path.write_text(config_text(tuned, given), "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    print(f"  tokenflume --config {shlex.quote(str(path))}")


def _given(file: GivenModel, resolved: ResolvedOptions) -> dict[str, Any]:
    """What was set, by a flag or otherwise; the model's file wherever the command is run."""
    given = {name: getattr(resolved.values, name) for name in resolved.sources}
    if "model" in given and not any(text.startswith("hf:") for text in _places(given["model"])):
        is_name = MODEL_NAME.fullmatch(file.name)
        given["model"] = (f"{file.name}={file.path}" if is_name else str(file.path),)
    return given


def _places(models: Iterable[str]) -> list[str]:
    """Without their names."""
    return [text.partition("=")[2] or text for text in models]


class _Ticker:
    """Says on the terminal what is being measured, and how long it has taken."""

    def __init__(self, seconds: float) -> None:
        self.line = LiveLine(sys.stderr)
        self._seconds = seconds
        self._started = time.monotonic()
        self._what = ""

    def tell(self, what: str) -> None:
        self._what = what
        self._show()

    async def tick(self) -> None:
        """For ever."""
        while True:
            self._show()
            await asyncio.sleep(TICK_S)

    def _show(self) -> None:
        passed = time.monotonic() - self._started
        drawn = f"{bar(passed / self._seconds, BAR_WIDTH):·<{BAR_WIDTH}}"
        self.line.show(f"  {drawn} {passed:3.0f} s  {self._what}")
