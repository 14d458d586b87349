"""From the command line, the environment and a file to Options.

A flag wins over a variable, and a variable over the file. What is wrong ends the program with
status 2 and a sentence.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config.file import nearest_name, read_options_file
from server.config.options import CONFIG, OPTIONS, Option, Options, ResolvedOptions
from server.config.output import (
    EXAMPLES,
    SOURCES,
    USAGE,
    HelpFormatter,
    exit_statuses,
    help_of,
)
from shared.errors import ConfigurationError, InvalidRequest


@dataclass(frozen=True, slots=True)
class _Given:
    """The text of an option, or several, and where it was given."""

    value: Any
    """A text or a list of texts. Python 3.11 parses `--port=--` as an empty list."""
    source: str
    """The flag, the variable or the file."""
    where: str
    """The same for errors, with the key in the file."""


def resolve_options(
    parser: argparse.ArgumentParser, given: argparse.Namespace, environment: Mapping[str, str]
) -> ResolvedOptions:
    """`given`: what `parser`, made by `build_parser`, has parsed."""
    _check_names(parser, environment)
    path = given.config or environment.get(CONFIG.variable)
    in_file = _read_file(parser, path)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    flags = {option.name: getattr(given, option.name) for option in OPTIONS}
    flags["kv_type"] = _kv_type(parser, given)
    for option in OPTIONS:
        found = _find(option, flags[option.name], environment, path, in_file)
        if found is None:
            continue
        sources[option.name] = found.source
        try:
            values[option.name] = _value(option, found)
        except InvalidRequest as error:
            parser.error(error.message)
    return ResolvedOptions(Options(**values), sources)


def _kv_type(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str | None:
    """The text of --kv-type, for which --float16 is another flag."""
    if given.float16 and given.kv_type not in (None, "f16"):
        parser.error(f"--float16 and --kv-type {given.kv_type} contradict each other")
    return "f16" if given.float16 else given.kv_type


def _read_file(parser: argparse.ArgumentParser, path: str | None) -> dict[str, str | list[str]]:
    if not path:
        return {}
    try:
        return read_options_file(Path(path))
    except ConfigurationError as error:
        parser.error(str(error))


def _check_names(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """A mistyped variable is an error: otherwise it would have no effect, silently."""
    known = [option.variable for option in (*OPTIONS, CONFIG)]
    for name in environment:
        if name.startswith("TOKENFLUME_") and name not in known:
            parser.error(f"{name} is not an option; did you mean {nearest_name(name, known)}?")


def _find(
    option: Option,
    by_flag: Any,
    environment: Mapping[str, str],
    path: str | None,
    in_file: Mapping[str, str | list[str]],
) -> _Given | None:
    """None: the option is not given anywhere."""
    if by_flag is not None:
        return _Given(by_flag, option.flag, option.flag)
    if option.variable in environment:
        return _Given(environment[option.variable], option.variable, option.variable)
    if path and option.name in in_file:
        return _Given(in_file[option.name], path, f"{path}: {option.key}")
    return None


def _value(option: Option, given: _Given) -> Any:
    """Raises InvalidRequest."""
    if not option.repeats:
        return _parsed(option, given.where, given.value)
    texts = _words(given) if isinstance(given.value, str) else given.value
    return tuple(_parsed(option, given.where, text) for text in texts)


def _words(given: _Given) -> list[str]:
    try:
        return shlex.split(given.value)
    except ValueError as error:
        raise InvalidRequest(f"{given.where} must be quoted as in a shell: {error}") from None


def _parsed(option: Option, where: str, text: Any) -> Any:
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} must have a value")
    return option.parser(where, text)


def build_parser(
    prog: str = "tokenflume",
    usage: str = USAGE,
    description: str = "Stream text from GGML and GGUF language models on CPUs, over HTTP.",
    epilog: str | None = None,
    shown: Collection[str] | None = None,
) -> argparse.ArgumentParser:
    """A parser of the flags, which it leaves as texts.

    `shown`: the groups whose options the help shows. None: all, and the switches that only the
    server has.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog or f"{exit_statuses()}\n\n{SOURCES}\n\n{EXAMPLES}",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    _add_options(parser, shown)
    configuration = parser.add_argument_group(CONFIG.group)
    configuration.add_argument(*CONFIG.flags, metavar=CONFIG.metavar, help=CONFIG.help)
    other = parser.add_argument_group("other")
    if shown is None:
        _add_switches(configuration, other)
    other.add_argument("-h", "--help", action="help", help="print this help and exit")
    return parser


def _add_options(parser: argparse.ArgumentParser, shown: Collection[str] | None) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(
            *option.flags,
            dest=option.name,
            metavar=option.metavar,
            help=help_of(option) if shown is None or option.group in shown else argparse.SUPPRESS,
            nargs="?" if option.bare else None,
            **({"action": "append"} if option.repeats else {"const": option.bare}),
        )
    groups["model"].add_argument(
        "-f", "--float16", action="store_true", help="the same as --kv-type f16, the default"
    )


def _add_switches(configuration: argparse._ArgumentGroup, other: argparse._ArgumentGroup) -> None:
    configuration.add_argument(
        "--print-config",
        action="store_true",
        help="print the value and the source of every option, as a file for --config, and exit",
    )
    configuration.add_argument(
        "--plan",
        action="store_true",
        help="print the cores, the limits and the planned workers, and exit",
    )
    other.add_argument("--version", action="store_true", help="print the version and exit")
