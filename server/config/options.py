"""Every option of the server: one table of their types, defaults, flags and help.

The table is the dataclass Options: each field is an option, and says how its text is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from server.config.parsers import (
    BYTES,
    NETWORK,
    PATH,
    SECONDS,
    TEXT,
    Parser,
    integer,
    number,
    one_of,
    sampling,
)
from shared.logs import LogFormat
from shared.sampling import SamplingParams
from shared.settings import KvType, Network

BUNDLED_MODEL = Path(__file__).parents[2] / "workers" / "bundled" / "fairy-tales.gguf"
SAMPLING = SamplingParams()

Switch = Literal["on", "off"]
RepackChoice = Literal["on", "off", "auto"]
EngineChoice = Literal["auto", "llama_cpp", "ctransformers", "echo"]
LogLevel = Literal["debug", "info", "warning", "error"]

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Option:
    """How an option is given, parsed and explained."""

    group: str
    """The heading in the help and in files."""
    metavar: str
    parser: Parser[Any]
    default: Any
    help: str
    short: str | None = None
    """A second flag, of one letter, such as "-m"."""
    bare: str | None = None
    """The text that the flag stands for without a value; None: the flag needs a value."""
    repeats: bool = False
    """May be given several times; the value is then a tuple. In the environment the values are
    separated and quoted as in a shell."""
    name: str = ""
    """The field of Options that has the value."""

    @property
    def key(self) -> str:
        """The name in a file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def flags(self) -> tuple[str, ...]:
        return (self.flag,) if self.short is None else (self.short, self.flag)

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return f"TOKENFLUME_{self.name.upper()}"


def _option(
    group: str,
    metavar: str,
    parser: Parser[T],
    default: D,
    text: str,
    **more: Any,
) -> T | D:
    """A field of Options. `text`: its help. `more`: further fields of Option."""
    row = Option(group, metavar, parser, default, text, **more)
    return cast("T | D", field(default=default, metadata={"option": row}))


def _repeated(
    group: str,
    metavar: str,
    parser: Parser[T],
    text: str,
    **more: Any,
) -> tuple[T, ...]:
    """A field of Options for an option that may be given several times."""
    none: tuple[T, ...] = ()
    return cast("tuple[T, ...]", _option(group, metavar, parser, none, text, repeats=True, **more))


@dataclass(frozen=True, slots=True)
class Options:
    """The value of every option."""

    model: tuple[str, ...] = _repeated(
        "model",
        "[NAME=]FILE",
        TEXT,
        "GGUF or GGML model file, or hf:OWNER/REPO/FILE.gguf[@REVISION]; may be repeated, the first"
        " model is the default (default: the bundled fairy-tale model)",
        short="-m",
    )
    models_dir: Path | None = _option(
        "model",
        "DIR",
        PATH,
        None,
        "folder of model files; each model is loaded on its first request",
    )
    memory_limit: int | None = _option(
        "model",
        "BYTES",
        BYTES,
        None,
        "memory for the loaded models of --models-dir, such as 12G; the least recently used model"
        " is unloaded first (default: 90 % of the memory that is free at start)",
    )
    engine: EngineChoice = _option(
        "model",
        "NAME",
        one_of(EngineChoice),
        "auto",
        "inference engine; auto chooses by the format of the file; echo needs no model and streams"
        " the prompt back",
    )
    model_type: str | None = _option(
        "model",
        "NAME",
        TEXT,
        None,
        "architecture of a GGML file, which does not name it: llama, gpt2, gptj, gpt_neox,"
        " dolly-v2, mpt, starcoder, falcon or replit",
    )
    num_ctx_tokens: int = _option(
        "model",
        "N",
        integer(8),
        2048,
        "context size of each stream: tokens of prompt and answer together",
        short="-n",
    )
    kv_type: KvType = _option(
        "model",
        "TYPE",
        one_of(KvType),
        "f16",
        "data type of the KV cache; ctransformers has f16 only",
    )
    batch_size: int | None = _option(
        "model",
        "N",
        integer(1),
        None,
        "prompt tokens of a prefill step (default: 512 with llama.cpp, 8 with ctransformers)",
        short="-b",
    )
    mlock: Switch = _option(
        "model",
        "on|off",
        one_of(Switch),
        "off",
        "lock the weights in memory, so that they are never swapped out",
        bare="on",
    )
    repack: RepackChoice = _option(
        "model",
        "on|off|auto",
        one_of(RepackChoice),
        "auto",
        "let llama.cpp rearrange the weights for this CPU: faster with several streams, but each"
        " worker then has its own copy; auto: only if there is one worker",
        bare="on",
    )
    restore_prompt: Path | None = _option(
        "prompts",
        "FILE",
        PATH,
        None,
        "prompt saved by --cache-prompt, or by a request under an id; every request continues from"
        " it",
        short="-R",
    )
    cache_dir: Path | None = _option(
        "prompts",
        "DIR",
        PATH,
        None,
        "folder for the prompts that requests save with the field `cache` (default: in memory"
        " only)",
    )
    cache_limit: int | None = _option(
        "prompts",
        "BYTES",
        BYTES,
        None,
        "limit for saved prompts in the memory of all workers together, and again for the files in"
        " --cache-dir; such as 500M or 2G (default: 1G, and in memory at most a quarter of what the"
        " KV cache may take)",
    )
    cache_prompt: Path | None = _option(
        "prompts",
        "FILE",
        PATH,
        None,
        "process the text of --prompt-file, save its state to this file, and exit",
    )
    prompt_file: Path | None = _option(
        "prompts", "FILE", PATH, None, "text for --cache-prompt, in UTF-8"
    )
    chat_template: str | None = _option(
        "chat",
        "NAME|FILE",
        TEXT,
        None,
        "how chats become prompts: a built-in template or a Jinja file (default: the model's own"
        " template, else plain)",
    )
    prompts: Path | None = _option(
        "chat",
        "FILE",
        PATH,
        None,
        "named system prompts: a TOML file of NAME = TEXT; read again on SIGHUP",
    )
    system: str | None = _option(
        "chat",
        "NAME|TEXT",
        TEXT,
        None,
        "system prompt for chats without one: a text, or a name in --prompts",
    )
    host: str = _option("server", "ADDRESS", TEXT, "127.0.0.1", "address to listen on")
    api_key_file: Path | None = _option(
        "server",
        "FILE",
        PATH,
        None,
        "API keys: a file with a name and a key per line; every request but those for /health and"
        " the web page then needs a key; read again on SIGHUP",
    )
    insecure: Switch = _option(
        "server",
        "on|off",
        one_of(Switch),
        "off",
        "listen beyond this machine without API keys",
        bare="on",
    )
    allowed_host: tuple[str, ...] = _repeated(
        "server",
        "NAME",
        TEXT,
        "host name that requests may be sent to, besides localhost and IP addresses; * allows all;"
        " may be repeated (default: none)",
    )
    port: int = _option(
        "server",
        "N",
        integer(0, 65_535),
        8080,
        "TCP port to listen on; 0: any free port",
        short="-P",
    )
    queue: int = _option(
        "server",
        "N",
        integer(0),
        64,
        "requests that may wait for a slot; further requests are refused with status 429",
    )
    queue_tokens: int = _option(
        "server",
        "N",
        integer(0),
        262_144,
        "estimated prompt tokens that waiting requests may have together; further requests are"
        " refused with status 429",
    )
    cors_origin: tuple[str, ...] = _repeated(
        "server",
        "ORIGIN",
        TEXT,
        "origin whose web pages may use this server (CORS), such as https://example.org; * allows"
        " all; may be repeated (default: none)",
    )
    trusted_proxy: tuple[Network, ...] = _repeated(
        "server",
        "ADDRESS",
        NETWORK,
        "address or network of a reverse proxy, such as 127.0.0.1 or 10.0.0.0/8, whose"
        " X-Forwarded-For and X-Forwarded-Proto are believed; may be repeated (default: none)",
    )
    request_timeout: float = _option(
        "server", "S", SECONDS, 30.0, "seconds in which a request must arrive completely"
    )
    drain_timeout: float = _option(
        "server", "S", SECONDS, 30.0, "seconds that streams may still run after SIGTERM"
    )
    send_timeout: float = _option(
        "server",
        "S",
        SECONDS,
        20.0,
        "seconds that a client may read nothing, or be unreachable, before its request is"
        " cancelled",
    )
    log_level: LogLevel = _option(
        "server", "LEVEL", one_of(LogLevel), "info", "lowest level of messages to log"
    )
    log_format: LogFormat = _option(
        "server", "FORMAT", one_of(LogFormat), "text", "text lines, or a JSON object per line"
    )
    log_prompts: Switch = _option(
        "server", "on|off", one_of(Switch), "off", "log the text of the prompts, too", bare="on"
    )
    num_threads: int | None = _option(
        "workers",
        "N",
        integer(1),
        None,
        "threads of all workers together (default: the physical cores that this process may use)",
        short="-t",
    )
    workers: int | None = _option(
        "workers",
        "N",
        integer(1, 1024),
        None,
        "worker processes (default: depends on engine and cores, see --plan)",
    )
    slots: int | None = _option(
        "workers",
        "N",
        integer(1, 256),
        None,
        "concurrent streams of each worker (default: up to 16 with llama.cpp, as memory allows; 1"
        " with ctransformers)",
    )
    max_stall: float = _option(
        "workers",
        "MS",
        number(low=1, high=60_000),
        150.0,
        "longest step, in milliseconds, with both a running stream and the prompt of another"
        " request; less: shorter pauses in streams, later first tokens",
    )
    load_timeout: float = _option(
        "workers", "S", SECONDS, 600.0, "seconds in which a worker must load its model"
    )
    progress_timeout: float = _option(
        "workers", "S", SECONDS, 60.0, "seconds without progress after which a worker is replaced"
    )
    restart_wait: float = _option(
        "workers",
        "S",
        number(low=0, high=86_400),
        30.0,
        "longest backoff, in seconds, before a crashed worker is replaced; the first replacement"
        " starts at once",
    )
    max_deaths: int = _option(
        "workers",
        "N",
        integer(1),
        5,
        "crashes of a worker in a row, without a completed request, before it is given up",
    )
    temp: float = _option(
        "sampling defaults",
        "X",
        sampling("temp"),
        SAMPLING.temp,
        "temperature; 0: always the most likely token",
        short="-T",
    )
    top_k: int = _option(
        "sampling defaults",
        "N",
        sampling("top_k"),
        SAMPLING.top_k,
        "sample from the k most likely tokens; 0: from all",
        short="-k",
    )
    top_p: float = _option(
        "sampling defaults",
        "X",
        sampling("top_p"),
        SAMPLING.top_p,
        "sample from the most likely tokens that together have this probability",
    )
    repeat_penalty: float = _option(
        "sampling defaults",
        "X",
        sampling("repeat_penalty"),
        SAMPLING.repeat_penalty,
        "penalty for tokens that were used recently; 1: none",
        short="-p",
    )
    repeat_last_n: int = _option(
        "sampling defaults",
        "N",
        sampling("repeat_last_n"),
        SAMPLING.repeat_last_n,
        "number of recent tokens that --repeat-penalty is for; 0: none",
        short="-r",
    )


OPTIONS: tuple[Option, ...] = tuple(
    replace(field.metadata["option"], name=field.name) for field in fields(Options)
)
"""In the order of the help."""

CONFIG = Option(
    "configuration", "FILE", PATH, None, "file of options, in TOML: num-threads = 4", name="config"
)
"""The flag of the file of options. It is not one of OPTIONS: a file cannot name another file."""


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """The value of every option, and where it comes from."""

    values: Options
    sources: Mapping[str, str]
    """Flag, variable or file by the option's name; an option that is not in it has its default."""
