"""What the program prints about its options: `--help`, and `--print-config`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.config.file import toml_value
from server.config.options import OPTIONS, Option, ResolvedOptions
from server.exit_status import ExitStatus
from shared.settings import Network

MIN_COLUMNS = 50
MAX_COLUMNS = 100
"""Longer lines are hard to read."""
FLAGS_COLUMNS = 30
VALUE_COLUMNS = 40
"""Columns before the comments of a file, unless a value is longer."""

USAGE = """tokenflume [-m MODEL] [options]
       tokenflume tune [-m MODEL] [options]     (tune --help)"""

SOURCES = """An option with a value may also be set by an environment variable, such as
TOKENFLUME_NUM_THREADS for --num-threads, or in a TOML file, as num-threads;
--config or TOKENFLUME_CONFIG names the file. A flag wins over the environment,
and the environment over the file."""

EXAMPLES = """examples:
  tokenflume
      the bundled model, which tells fairy tales, at http://127.0.0.1:8080
  tokenflume -m model.gguf -P 9000
      your own model, at another port
  tokenflume -m chat=big.gguf -m code=other.gguf
      two models; requests choose one by its name
  tokenflume --models-dir models --memory-limit 12G
      all models of a folder, each loaded on its first request
  tokenflume --host 0.0.0.0 --api-key-file keys
      for other machines, whose requests need a key
  tokenflume tune -m model.gguf --write-config tuned.toml
  tokenflume --config tuned.toml
      measure which options are fastest here, then serve with them
  tokenflume -m model.gguf --plan
      show the cores, the limits and the planned workers"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the options to the width of the terminal; to 80 columns without a terminal."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        width = max(MIN_COLUMNS, min(MAX_COLUMNS, columns)) - 2
        super().__init__(prog, max_help_position=FLAGS_COLUMNS, width=width)


def exit_statuses() -> str:
    """The statuses that the server ends with, for the help."""
    statuses = [status for status in ExitStatus if status is not ExitStatus.INTERRUPTED]
    return "\n".join(["exit status:", *(f"  {status}  {status.meaning}" for status in statuses)])


def help_of(option: Option) -> str:
    """The option's line in the help, for argparse."""
    choices = f"; one of {', '.join(option.parser.choices)}" if option.parser.choices else ""
    default = ""
    if option.default is not None and "(default:" not in option.help:
        default = f" (default: {option.default})"
    return f"{option.help}{choices}{default}".replace("%", "%%")


def print_config(resolved: ResolvedOptions) -> str:
    """A file for --config: every option in the order of the table, with its source in a comment."""
    return "\n".join(_lines(resolved))


def _lines(resolved: ResolvedOptions) -> Iterator[str]:
    group = ""
    for option in OPTIONS:
        if option.group != group:
            yield f"{'' if not group else chr(10)}# {option.group}"
            group = option.group
        line = setting(option, getattr(resolved.values, option.name))
        source = resolved.sources.get(option.name, "default")
        yield f"{line:<{VALUE_COLUMNS}}  # {''.join(filter(str.isprintable, source))}"


def setting(option: Option, value: Any) -> str:
    """The option's line in a file. TOML has no null: the line for None is a comment."""
    if value is None:
        return f"# {option.key} ="
    return f"{option.key} = {toml_value(_in_file(option, value))}"


def _in_file(option: Option, value: Any) -> Any:
    if isinstance(value, Path | Network):
        return str(value)
    if isinstance(value, tuple):
        return [_in_file(option, item) for item in value]
    if "on" in option.parser.choices and value in ("on", "off"):
        return value == "on"
    return value
