"""The command line of `tokenflume tune`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from server.background import BackgroundTasks
from server.config.file import MODEL_NAME
from server.config.options import Options, ResolvedOptions
from server.config.parsers import number
from server.config.resolve import build_parser, resolve_options
from server.config.specs import GivenModel, given_files
from server.exit_status import ExitStatus, fail, sentence_of
from server.terminal.style import LiveLine, bar, columns, style_for
from server.tune.report import command_text, config_text, memory_lines, report_lines
from server.tune.search import Tuned, Tuner
from shared.errors import ConfigurationError, InvalidRequest
from shared.logs import configure_logging
from workers.machine.cores import counted, read_machine
from workers.machine.cpu_features import cpu_model

DEFAULT_SECONDS = "60"
SECONDS = number(low=1, high=3600)
BAR_COLUMNS = 20
SHOWN_GROUPS = ("model", "workers", "configuration", "other")
"""Groups of options that the help shows."""
TICK_S = 0.25
"""Time between two updates of the progress line."""

USAGE = "tokenflume tune [-m MODEL] [--seconds S] [--write-config FILE] [options]"
DESCRIPTION = """\
Measure a model on this machine, in the worker processes that would serve it,
and print the options with which it is fastest. Options that you give keep their
values. Of the others, these are tried: --num-threads and --workers, --repack,
--kv-type (if memory is short), --batch-size (with ctransformers), --slots and
--max-stall. Stop other programs before you measure."""
EPILOG = """\
exit status:
  0  measured
  2  a flag, environment variable or line of the file is invalid
  3  the model does not fit into memory or cannot be loaded, or the file cannot
     be written
130  interrupted

examples:
  tokenflume tune
      the bundled model
  tokenflume tune -m model.gguf -n 4096 --write-config tuned.toml
  tokenflume --config tuned.toml
      serve with the options that were found"""


def tune(arguments: list[str]) -> ExitStatus:
    """Run the command."""
    parser = tune_parser()
    given = parser.parse_args(arguments)
    resolved = resolve_options(parser, given, os.environ)
    try:
        seconds = SECONDS("--seconds", given.seconds)
    except InvalidRequest as error:
        parser.error(error.message)
    options = measuring_options(resolved)
    configure_logging(options.log_level)
    try:
        file = _prepared(options, given.write_config)
        tuned = _measured(file, options, resolved, seconds)
        _report(file, resolved, tuned, given.write_config)
    except ConfigurationError as error:
        return fail(ExitStatus.CONFIGURATION, error)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK


def tune_parser() -> argparse.ArgumentParser:
    """All flags of the server, of which the help shows the relevant ones, and two of our own."""
    parser = build_parser("tokenflume tune", USAGE, DESCRIPTION, EPILOG, SHOWN_GROUPS)
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--seconds",
        metavar="S",
        default=DEFAULT_SECONDS,
        help=f"approximate duration in seconds (default: {DEFAULT_SECONDS})",
    )
    group.add_argument(
        "--write-config",
        metavar="FILE",
        type=Path,
        help="write the recommended options to a file for --config",
    )
    return parser


def measuring_options(resolved: ResolvedOptions) -> Options:
    """The options to measure with: those given, but long queues, and no saved prompts."""
    options = resolved.values
    return replace(
        options,
        queue=64,
        queue_tokens=2**20,
        cache_limit=0,
        cache_dir=None,
        log_level=options.log_level if "log_level" in resolved.sources else "error",
    )


def _prepared(options: Options, path: Path | None) -> GivenModel:
    """The model to measure. Raises ConfigurationError also if `path` cannot be written."""
    try:
        _check_writable(path)
        return _the_model(options)
    except OSError as error:
        raise ConfigurationError(sentence_of(error)) from error


def _check_writable(path: Path | None) -> None:
    """Fail before a minute is spent on measuring. Raises ConfigurationError."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ConfigurationError(
            f"{path} cannot be written: it must be a file in a folder that is writable"
        )


def _the_model(options: Options) -> GivenModel:
    """Raises ConfigurationError."""
    if options.models_dir is not None or len(options.model) > 1:
        raise ConfigurationError("tune measures one model: give one -m")
    (file,) = given_files(options)
    return file


def _measured(
    file: GivenModel, options: Options, resolved: ResolvedOptions, seconds: float
) -> Tuned:
    """Measure, and show the progress. Raises ConfigurationError."""
    style, machine = style_for(sys.stdout), read_machine()
    ticker = _Ticker(seconds)
    tuner = Tuner(file, options, resolved.sources, machine, seconds, ticker.tell)
    print(f"{style.bold(file.name)}  on {counted(len(machine.cores), 'core')}, {cpu_model()}\n")
    for line in memory_lines(tuner.memory, tuner.available, style):
        print(line, flush=True)

    async def measure() -> Tuned:
        async with BackgroundTasks() as tasks:
            tasks.start("progress line", ticker.tick())
            try:
                return await tuner.run()
            finally:
                ticker.line.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure())


def _report(file: GivenModel, resolved: ResolvedOptions, tuned: Tuned, path: Path | None) -> None:
    """Print the report; write the options to `path`. Raises ConfigurationError."""
    style = style_for(sys.stdout)
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
    """The options that were given, by a flag or otherwise; the model's file as an absolute path."""
    given = {name: getattr(resolved.values, name) for name in resolved.sources}
    if "model" in given and not any(text.startswith("hf:") for text in _files(given["model"])):
        is_name = MODEL_NAME.fullmatch(file.name)
        given["model"] = (f"{file.name}={file.path}" if is_name else str(file.path),)
    return given


def _files(models: Iterable[str]) -> list[str]:
    """The texts of -m without the names."""
    return [text.partition("=")[2] or text for text in models]


class _Ticker:
    """A line on the terminal with the elapsed time and what is being measured."""

    def __init__(self, seconds: float) -> None:
        self.line = LiveLine(sys.stderr)
        self._seconds = seconds
        self._started = time.monotonic()
        self._what = ""

    def tell(self, what: str) -> None:
        self._what = what
        self._show()

    async def tick(self) -> None:
        """Update the line until cancelled."""
        while True:
            self._show()
            await asyncio.sleep(TICK_S)

    def _show(self) -> None:
        passed = time.monotonic() - self._started
        drawn = f"{bar(passed / self._seconds, BAR_COLUMNS):·<{BAR_COLUMNS}}"
        self.line.show(f"  {drawn} {passed:3.0f} s  {self._what}")
