"""Every option: its flags, its environment variable, its default, its help. One table."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.config.file import Takes, nearest_name, read_config
from server.config.help_text import EXAMPLES, USAGE, HelpFormatter
from shared.errors import ConfigurationError, InvalidRequest
from shared.sampling import SamplingParams
from shared.validation import integer, number

SAMPLING = SamplingParams()
BUNDLED_MODEL = Path(__file__).parents[2] / "workers" / "bundled" / "fairy-tales.gguf"

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

EXIT_STATUS = """exit status:
  0  it was asked to end, and has
  2  a flag, an environment variable or a line of the file is wrong
  3  the configuration cannot work, or the model cannot be loaded
  4  it cannot listen on that address
  5  a second signal ended it at once

An option with a value may also be set in the environment, --num-threads as
TOKENFLUME_NUM_THREADS, or in a file in TOML that --config or TOKENFLUME_CONFIG
names, as num-threads. A flag wins over the environment, and that over the
file."""


@dataclass(frozen=True, slots=True)
class Option:
    """A flag. `parse` raises ValueError, TypeError or InvalidRequest for a bad value."""

    flags: tuple[str, ...]
    metavar: str
    help: str
    default: Any
    parse: Callable[[str], Any]
    group: str
    choices: tuple[str, ...] = ()
    bare: str | None = None
    """What the flag means without a value; None: it needs one."""
    repeats: bool = False
    """May be given several times: its value is a tuple. In the environment they are written as
    words of a shell."""

    @property
    def name(self) -> str:
        return self.flags[-1].lstrip("-").replace("-", "_")

    @property
    def variable(self) -> str:
        return f"TOKENFLUME_{self.name.upper()}"

    @property
    def takes(self) -> Takes:
        """What its value is in a file."""
        if isinstance(self.parse, type):  # str or Path
            return "text"
        return "bytes" if self.metavar == "BYTES" else "number"


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """The value of every option, and where each came from."""

    values: argparse.Namespace
    sources: Mapping[str, str]
    """By an option's name a flag, a variable or a file; without an entry: the default."""


def _integer(name: str, low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(value: str) -> int:
        return integer(name, _integer_or_text(value), low, high)

    return parse


def _seconds(name: str) -> Callable[[str], float]:
    return _number(name, above=0, high=86_400)


def _number(name: str, **limits: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        return number(name, read_float(value), **limits)

    return parse


def _integer_or_text(value: str) -> int | str:
    """What the value says; the check that follows refuses a text in its own words."""
    return int(value) if value.lstrip("+-").isdecimal() else value


def read_float(value: str) -> float | str:
    """The number, or the text that is none, for the check that follows."""
    try:
        return float(value)
    except ValueError:
        return value


def _bytes(name: str) -> Callable[[str], int]:
    def parse(value: str) -> int:
        digits, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        if unit not in UNITS or not (digits.isascii() and digits.isdecimal() and len(digits) <= 15):
            raise InvalidRequest(f"{name} must be a number of bytes, such as 1000000, 500M or 2G")
        return int(digits) * UNITS[unit]

    return parse


def _sampling(flags: tuple[str, ...], field: str, text: str, metavar: str) -> Option:
    """A sampling default: SamplingParams has the value and the range."""
    is_integer = type(getattr(SAMPLING, field)) is int

    def parse(value: str) -> Any:
        given = _integer_or_text(value) if is_integer else read_float(value)
        return getattr(SAMPLING.from_fields({field: given}), field)

    return Option(flags, metavar, text, getattr(SAMPLING, field), parse, "sampling defaults")


OPTIONS: tuple[Option, ...] = (
    Option(
        ("-m", "--model"),
        "[NAME=]FILE",
        "GGUF or GGML model file, or hf:OWNER/REPO/FILE.gguf[@REV]; may be given several times, the"
        " first is the default (default: the bundled fairy tales)",
        (),
        str,
        "model",
        repeats=True,
    ),
    Option(
        ("--models-dir",),
        "DIR",
        "a folder of model files, each loaded on its first use",
        None,
        Path,
        "model",
    ),
    Option(
        ("--memory-limit",),
        "BYTES",
        "what the loaded models of --models-dir may take, such as 12G; the least recently used is"
        " unloaded (default: nine tenths of the memory that is left at start)",
        None,
        _bytes("--memory-limit"),
        "model",
    ),
    Option(
        ("--engine",),
        "NAME",
        "auto takes the one that the file needs; echo streams the prompt back, without a model",
        "auto",
        str,
        "model",
        ("auto", "llama_cpp", "ctransformers", "echo"),
    ),
    Option(
        ("--model-type",),
        "NAME",
        "architecture of a headerless GGML file: llama, gpt2, gptj,"
        " gpt_neox, dolly-v2, mpt, starcoder, falcon, replit",
        None,
        str,
        "model",
    ),
    Option(
        ("-n", "--num-ctx-tokens"),
        "N",
        "context: tokens of prompt and answer together, of each stream",
        2048,
        _integer("--num-ctx-tokens", 8),
        "model",
    ),
    Option(
        ("--kv-type",),
        "TYPE",
        "number format of keys and values; ctransformers has f16 only",
        "f16",
        str,
        "model",
        ("f16", "f32", "q8_0"),
    ),
    Option(
        ("-b", "--batch-size"),
        "N",
        "prompt tokens fed at a time (default: the engine's own, 512 on llama.cpp, 8 on"
        " ctransformers)",
        None,
        _integer("--batch-size", 1),
        "model",
    ),
    Option(
        ("--mlock",),
        "on|off",
        "keep the weights in memory, never swapped out",
        "off",
        str,
        "model",
        ("on", "off"),
        bare="on",
    ),
    Option(
        ("--repack",),
        "on|off|auto",
        "let llama.cpp rearrange the weights for this CPU: a copy in each worker, faster with"
        " several streams; auto does so unless several workers can share them",
        "auto",
        str,
        "model",
        ("on", "off", "auto"),
        bare="on",
    ),
    Option(
        ("-R", "--restore-prompt"),
        "FILE",
        "a prompt saved by --cache-prompt, or under an id: every request continues from it",
        None,
        Path,
        "prompts",
    ),
    Option(
        ("--cache-dir",),
        "DIR",
        "where prompts are saved that requests give an id with `cache` (default: in memory only)",
        None,
        Path,
        "prompts",
    ),
    Option(
        ("--cache-limit",),
        "BYTES",
        "saved prompts, in the memory of all workers together and, once more, in --cache-dir;"
        " such as 500M or 2G (default: 1G, and in memory at most a quarter of what is left for"
        " keys and values)",
        None,
        _bytes("--cache-limit"),
        "prompts",
    ),
    Option(
        ("--cache-prompt",),
        "FILE",
        "process the text of --prompt-file once, write its state to this file, and exit",
        None,
        Path,
        "prompts",
    ),
    Option(("--prompt-file",), "FILE", "a text in UTF-8", None, Path, "prompts"),
    Option(
        ("--chat-template",),
        "NAME|FILE",
        "how chats become prompts: a built-in template, or a Jinja file (default: the model's own,"
        " else plain)",
        None,
        str,
        "chat",
    ),
    Option(
        ("--prompts",),
        "FILE",
        "named system prompts: TOML, NAME = TEXT. Read again on SIGHUP",
        None,
        Path,
        "chat",
    ),
    Option(
        ("--system",),
        "NAME|TEXT",
        "the system prompt of chats that have none; a name is one of --prompts",
        None,
        str,
        "chat",
    ),
    Option(("--host",), "ADDRESS", "address to listen on", "127.0.0.1", str, "server"),
    Option(
        ("--api-key-file",),
        "FILE",
        "names and keys, a pair a line; with it every request needs a key, but for /health and the"
        " page itself. Read again on SIGHUP",
        None,
        Path,
        "server",
    ),
    Option(
        ("--insecure",),
        "on|off",
        "listen beyond this machine without keys",
        "off",
        str,
        "server",
        ("on", "off"),
        bare="on",
    ),
    Option(
        ("--allowed-host",),
        "NAME",
        "a name that requests may be sent to, besides localhost and addresses, or *; may be given"
        " several times (default: none)",
        (),
        str,
        "server",
        repeats=True,
    ),
    Option(
        ("-P", "--port"),
        "N",
        "port to listen on; 0: any free one",
        8080,
        _integer("--port", 0, 65_535),
        "server",
    ),
    Option(
        ("--queue",),
        "N",
        "requests that may wait for a slot; more get a 429",
        64,
        _integer("--queue", 0),
        "server",
    ),
    Option(
        ("--queue-tokens",),
        "N",
        "tokens that the prompts of waiting requests may have together, about; more get a 429",
        262_144,
        _integer("--queue-tokens", 0),
        "server",
    ),
    Option(
        ("--cors-origin",),
        "ORIGIN",
        "an origin whose pages may use this server, such as https://example.org, or *; may be given"
        " several times (default: none)",
        (),
        str,
        "server",
        repeats=True,
    ),
    Option(
        ("--request-timeout",),
        "S",
        "seconds in which a request must arrive whole",
        30.0,
        _seconds("--request-timeout"),
        "server",
    ),
    Option(
        ("--drain-timeout",),
        "S",
        "seconds that streams may still run after SIGTERM",
        30.0,
        _seconds("--drain-timeout"),
        "server",
    ),
    Option(
        ("--send-timeout",),
        "S",
        "seconds that a client may take nothing, or be out of reach, before its request is"
        " cancelled",
        20.0,
        _seconds("--send-timeout"),
        "server",
    ),
    Option(
        ("--log-level",),
        "LEVEL",
        "how much to log",
        "info",
        str,
        "server",
        ("debug", "info", "warning", "error"),
    ),
    Option(
        ("--log-format",),
        "FORMAT",
        "lines for people, or a JSON object a line",
        "text",
        str,
        "server",
        ("text", "json"),
    ),
    Option(
        ("--log-prompts",),
        "on|off",
        "what clients ask is in the log, too",
        "off",
        str,
        "server",
        ("on", "off"),
        bare="on",
    ),
    Option(
        ("-t", "--num-threads"),
        "N",
        "threads of all workers together (default: the physical cores that this process may use)",
        None,
        _integer("--num-threads", 1),
        "workers",
    ),
    Option(
        ("--workers",),
        "N",
        "worker processes (default: by engine and cores, see --plan)",
        None,
        _integer("--workers", 1, 1024),
        "workers",
    ),
    Option(
        ("--slots",),
        "N",
        "streams at a time in each worker (default: up to 16 on llama.cpp, as memory allows;"
        " 1 on ctransformers)",
        None,
        _integer("--slots", 1, 256),
        "workers",
    ),
    Option(
        ("--max-stall",),
        "MS",
        "longest step, in milliseconds, that carries a running stream and another's prompt",
        150.0,
        _number("--max-stall", low=1, high=60_000),
        "workers",
    ),
    Option(
        ("--load-timeout",),
        "S",
        "seconds that a worker may take to load its model",
        600.0,
        _seconds("--load-timeout"),
        "workers",
    ),
    Option(
        ("--progress-timeout",),
        "S",
        "seconds without progress after which a worker is replaced",
        60.0,
        _seconds("--progress-timeout"),
        "workers",
    ),
    Option(
        ("--restart-wait",),
        "S",
        "longest wait, in seconds, before a dead worker is replaced; the first is replaced at once",
        30.0,
        _number("--restart-wait", low=0, high=86_400),
        "workers",
    ),
    Option(
        ("--max-deaths",),
        "N",
        "deaths in a row, without a completed request between, after which a worker is given up",
        5,
        _integer("--max-deaths", 1),
        "workers",
    ),
    _sampling(("-T", "--temp"), "temp", "temperature; 0: always the likeliest token", "X"),
    _sampling(("-k", "--top-k"), "top_k", "keep the k likeliest tokens; 0: all", "N"),
    _sampling(("--top-p",), "top_p", "keep the likeliest tokens of this total probability", "X"),
    _sampling(("-p", "--repeat-penalty"), "repeat_penalty", "1: none", "X"),
    _sampling(("-r", "--repeat-last-n"), "repeat_last_n", "tokens that the penalty looks at", "N"),
)


CONFIG = Option(
    ("--config",),
    "FILE",
    "options in a file, in TOML: num-threads = 4",
    None,
    Path,
    "configuration",
)
"""No row of the table: a file cannot name another."""


def read_options(arguments: list[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The value of every option. Ends the program with status 2 and a sentence if one is wrong."""
    return resolve_options(build_parser(), arguments, environment).values


def resolve_options(
    parser: argparse.ArgumentParser, arguments: list[str], environment: Mapping[str, str]
) -> ResolvedOptions:
    """As `read_options`, by a parser of `build_parser`, which may know more flags."""
    given = parser.parse_args(arguments)
    _check_names(parser, environment)
    if given.float16:
        if given.kv_type not in (None, "f16"):
            parser.error(f"--float16 and --kv-type {given.kv_type} contradict each other")
        given.kv_type = "f16"
    given.config = given.config or environment.get(CONFIG.variable)
    in_file = _values_in_file(parser, given.config)
    sources: dict[str, str] = {}
    for option in OPTIONS:
        name = option.name
        source, where, value = option.flags[-1], option.flags[-1], getattr(given, name)
        if value is None and option.variable in environment:
            source = where = option.variable
            value = environment[option.variable]
        elif value is None and name in in_file:
            source, value = given.config, in_file[name]
            where = f"{given.config}: {name.replace('_', '-')}"
        if value is not None:
            sources[name] = source
        try:
            if option.repeats and isinstance(value, str):
                value = shlex.split(value)
            setattr(given, name, option.default if value is None else _check(option, value))
        except InvalidRequest as error:
            parser.error(f"{where}: {error.message}")
        except ValueError as error:
            parser.error(f"{where}: {error}")
    return ResolvedOptions(given, sources)


def _values_in_file(
    parser: argparse.ArgumentParser, path: str | None
) -> dict[str, str | list[str]]:
    if not path:
        return {}
    try:
        return read_config(Path(path), OPTIONS)
    except ConfigurationError as error:
        parser.error(str(error))


def _check_names(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """A mistyped variable must not be silently without effect."""
    known = [option.variable for option in (*OPTIONS, CONFIG)]
    for name in environment:
        if name.startswith("TOKENFLUME_") and name not in known:
            parser.error(f"{name} sets nothing; did you mean {nearest_name(name, known)}?")


def _check(option: Option, value: Any) -> Any:
    if option.repeats:
        return tuple(_check(replace(option, repeats=False), one) for one in value)
    if not isinstance(value, str):  # what argparse makes of --port=--
        raise ValueError("the value is missing")
    if option.choices and value not in option.choices:
        raise ValueError(f"{value!r} is none of {', '.join(option.choices)}")
    return option.parse(value)


def build_parser(
    prog: str = "tokenflume",
    usage: str = USAGE,
    description: str = "Stream text from GGML and GGUF language models on CPUs, over HTTP.",
    epilog: str = f"{EXIT_STATUS}\n\n{EXAMPLES}",
    shown: Collection[str] | None = None,
) -> argparse.ArgumentParser:
    """The flags, as strings; `resolve_options` checks the values, wherever they come from.

    `shown`: groups whose options help tells of; None: all, and what the server itself can print.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
        add_help=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(
            *option.flags,
            dest=option.name,
            metavar=option.metavar,
            help=_help(option) if shown is None or option.group in shown else argparse.SUPPRESS,
            nargs="?" if option.bare else None,
            **({"action": "append"} if option.repeats else {"const": option.bare}),
        )
    groups["model"].add_argument(
        "-f", "--float16", action="store_true", help="the same as --kv-type f16, the default"
    )
    configuration = parser.add_argument_group(CONFIG.group)
    configuration.add_argument(*CONFIG.flags, metavar=CONFIG.metavar, help=CONFIG.help)
    other = parser.add_argument_group("other")
    if shown is None:
        configuration.add_argument(
            "--print-config",
            action="store_true",
            help="print every option's value and where it comes from, as such a file, and exit",
        )
        configuration.add_argument(
            "--plan",
            action="store_true",
            help="print the cores, the limits and the workers that follow, and exit",
        )
        other.add_argument("--version", action="store_true", help="print the version and exit")
    other.add_argument("-h", "--help", action="help", help="print this and exit")
    return parser


def _help(option: Option) -> str:
    choices = f"; one of {', '.join(option.choices)}" if option.choices else ""
    default = ""
    if option.default is not None and "(default:" not in option.help:
        default = f" (default: {option.default})"
    return f"{option.help}{choices}{default}".replace("%", "%%")
