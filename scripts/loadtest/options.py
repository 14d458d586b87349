"""The command line of the load test, checked, as a Job."""

from __future__ import annotations

import argparse
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.load.arguments import count, integer, not_negative, positive, share
from scripts.load.dialects import STREAMING
from scripts.load.target import PORTS, Target
from scripts.loadtest.lengths import BadPlan, Fixed, Lengths, parse_lengths
from scripts.loadtest.plan import Plan
from scripts.loadtest.prompts import FilePrompts, RandomWords, Source, read_prompts
from scripts.loadtest.run import Closed, Open, Shape, Span

KEY_NAME = "LOADTEST_API_KEY"
COMPARED_KEY_NAME = "LOADTEST_COMPARE_API_KEY"
DEFAULT_STREAMS = "8"
DEFAULT_WORDS = Fixed(50)
DEFAULT_DURATION_S = 10.0
DEFAULT_WARM_UP_S = 2.0
DEFAULT_ROUNDS = 3
MOST_STREAMS = 100_000


@dataclass(frozen=True, slots=True)
class Job:
    """The load test that the command line asks for."""

    title: str
    targets: Sequence[Target]
    names: Sequence[str]
    """Names of the targets, for the report."""
    shapes: Sequence[Shape]
    plan: Plan
    span: Span
    rounds: int
    timeout_s: float
    """Longest silence of a stream, in seconds."""
    json: Path | None
    report: Path | None
    settings: Mapping[str, str]
    """The options for the report, without API keys."""

    @property
    def unit(self) -> str:
        units = {target.dialect.body.unit for target in self.targets}
        return units.pop() if len(units) == 1 else "tokens or pieces"


def parse_arguments(description: str, arguments: Sequence[str] | None) -> Job:
    """The job. Bad arguments end the program with status 2 and a message."""
    parser = make_parser(description)
    options = parser.parse_args(arguments)
    try:
        return make_job(options)
    except BadPlan as error:
        parser.error(str(error))


def make_job(options: argparse.Namespace) -> Job:
    """The job of these options. Raises BadPlan."""
    targets = make_targets(options)
    source = make_source(options, targets)
    names = [f"{target.url} ({dialect})" for target, dialect in targets]
    if len(names) > 1:
        names = [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
    rounds = options.rounds or (DEFAULT_ROUNDS if options.compare else 1)
    for path in (options.json, options.report):
        if path is not None and not path.parent.is_dir():
            raise BadPlan(f"{path} cannot be written: the folder {path.parent} does not exist")
    return Job(
        title=options.title,
        targets=[target for target, _ in targets],
        names=names,
        shapes=make_shapes(options),
        plan=Plan(source, str(options.seed), options.cancel),
        span=make_span(options),
        rounds=rounds,
        timeout_s=options.timeout,
        json=options.json,
        report=options.report,
        settings=describe(options, rounds),
    )


def make_targets(options: argparse.Namespace) -> list[tuple[Target, str]]:
    """The servers, each with the name of its dialect. Raises BadPlan."""
    common = {
        "fields": options.fields,
        "may_end": options.eos,
        "events": options.events,
    }
    key = options.api_key or os.environ.get(KEY_NAME)
    found = [(options.url, options.dialect, options.model, key)]
    if options.compare is not None:
        other_key = options.compare_api_key or os.environ.get(COMPARED_KEY_NAME)
        dialect = options.compare_dialect or options.dialect
        found.append((options.compare, dialect, options.compare_model or options.model, other_key))
    elif options.compare_dialect or options.compare_api_key or options.compare_model:
        raise BadPlan("--compare-dialect, --compare-model and --compare-api-key need --compare")
    for *_, key in found:
        if key is not None and not (key.isascii() and key.isprintable()):
            raise BadPlan("an API key must consist of printable ASCII characters")
    return [
        (Target(url, STREAMING[dialect], model, key_of, **common), dialect)
        for url, dialect, model, key_of in found
    ]


def make_source(options: argparse.Namespace, targets: Sequence[tuple[Target, str]]) -> Source:
    """The source of prompts. Raises BadPlan."""
    if options.prompts is None:
        words = options.prompt_words or DEFAULT_WORDS
        return RandomWords(words, options.tokens, options.shared_words)
    if options.prompt_words or options.shared_words:
        raise BadPlan("--prompts cannot be combined with --prompt-words and --shared-words")
    entries = read_prompts(options.prompts)
    for target, dialect in targets:
        if any(entry.messages for entry in entries) and not target.dialect.takes_messages:
            able = ", ".join(name for name, one in STREAMING.items() if one.takes_messages)
            raise BadPlan(
                f"{options.prompts} has messages, which --dialect {dialect} does not accept;"
                f" these do: {able}"
            )
    return FilePrompts(entries, options.tokens)


def make_shapes(options: argparse.Namespace) -> list[Shape]:
    """The loads, of which each is run."""
    if options.rates is not None:
        return [Open(rate) for rate in options.rates]
    return [Closed(streams) for streams in options.streams]


def make_span(options: argparse.Namespace) -> Span:
    """The length of each load."""
    duration = options.duration
    if duration is None and options.requests is None:
        duration = DEFAULT_DURATION_S
    return Span(options.ramp_up, options.warm_up, duration, options.requests)


def describe(options: argparse.Namespace, rounds: int) -> dict[str, str]:
    """The options for the report. Options that are not used are left out."""
    span = make_span(options)
    length = [f"{span.duration_s:g} s"] if span.duration_s is not None else []
    length += [f"{span.requests} requests"] if span.requests is not None else []
    loads = ", ".join(shape.label for shape in make_shapes(options))
    shared = f", after {options.shared_words} that all share" if options.shared_words else ""
    prompts = f"{options.prompt_words or DEFAULT_WORDS} words{shared}"
    rows = {
        "load": loads,
        "counted": " or ".join(length) + f", after {span.ramp_s:g} s of ramp-up"
        f" and {span.warm_up_s:g} s of warm-up",
        "prompts": prompts if options.prompts is None else options.prompts.name,
        "answers": f"{options.tokens} tokens{' at most' if options.eos else ''}",
        "cancelled by the client": f"{options.cancel:.0%}" if options.cancel else "",
        "model": options.model or "",
        "further fields": json.dumps(options.fields) if options.fields else "",
        "rounds": str(rounds) if rounds > 1 else "",
        "seed": str(options.seed),
    }
    return {name: value for name, value in rows.items() if value}


# ---------------------------------------------------------------- the parser


def make_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.loadtest",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", type=address, metavar="URL", help="the server, for example http://127.0.0.1:8080")
    add("--dialect", choices=STREAMING, default="stream", help="its API (default: stream)")
    add("--model", metavar="NAME", help="the model to ask for (default: the server's default)")
    add("--api-key", metavar="KEY", help=f"bearer token (default: {KEY_NAME} in the environment)")
    add("--fields", type=fields, default={}, metavar="JSON", help="further fields of each request")
    add(
        "--timeout",
        type=positive,
        default=120.0,
        metavar="S",
        help="seconds without a byte after which a stream fails (default: 120)",
    )
    _add_load(parser)
    _add_requests(parser)
    _add_checks(parser)
    _add_compare(parser)
    add = parser.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--report", type=Path, metavar="FILE", help="write an HTML page with plots to this file")
    add("--title", default="Load test", help="title of the page (default: Load test)")
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the load")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--streams",
        type=stream_counts,
        default=DEFAULT_STREAMS,
        metavar="N,…",
        help=f"concurrent clients; each sends one request at a time (default: {DEFAULT_STREAMS})",
    )
    kinds.add_argument(
        "--rate",
        "--rates",
        dest="rates",
        type=rates,
        metavar="R,…",
        help="requests per second, which arrive at random, whether or not earlier ones are over",
    )
    add = group.add_argument
    add(
        "--duration",
        type=positive,
        metavar="S",
        help=f"seconds that count (default: {DEFAULT_DURATION_S:g}; with --requests no limit)",
    )
    add("--requests", type=count, metavar="N", help="largest number of requests that count")
    add(
        "--warm-up",
        type=not_negative,
        default=DEFAULT_WARM_UP_S,
        metavar="S",
        help=f"seconds before them that do not count (default: {DEFAULT_WARM_UP_S:g})",
    )
    add(
        "--ramp-up",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="seconds before the warm-up in which the load grows (default: 0)",
    )
    add(
        "--rounds",
        type=count,
        metavar="N",
        help="runs of each load (default: 1; with --compare: 3)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="seed of everything that is random (default: 1)",
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "requests",
        "LENGTH is N, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA or lognormal:MEDIAN,SIGMA,LONGEST",
    ).add_argument
    add(
        "--prompt-words",
        type=lengths,
        metavar="LENGTH",
        help=f"words of a prompt (default: {DEFAULT_WORDS})",
    )
    add(
        "--shared-words",
        type=count,
        default=0,
        metavar="N",
        help="words that all prompts begin with, to test prefix caches (default: none)",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a file of prompts, one a line; a line of a *.jsonl file is an object with prompt or"
        " messages, and optionally max_tokens",
    )
    add(
        "--tokens",
        type=lengths,
        default="64",
        metavar="LENGTH",
        help="tokens of an answer (default: 64)",
    )
    add(
        "--cancel",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the requests that are cancelled after a random token, 0 to 1 (default: 0)",
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("checks").add_argument
    add(
        "--eos",
        action="store_true",
        help="let the model end its answers early: do not send ignore_eos (Ollama never has it)",
    )
    add(
        "--events",
        choices=("exact", "usual", "merged"),
        default="usual",
        help="formats of OpenAI and Ollama: one event for each token of the usage (exact), for each"
        " token that completes a character (usual, the default), or for several tokens (merged)",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "two servers", "run the same load on both in turn, and report the ratios"
    ).add_argument
    add("--compare", type=address, metavar="URL", help="the second server")
    add("--compare-dialect", choices=STREAMING, help="its API (default: --dialect)")
    add("--compare-model", metavar="NAME", help="its model (default: --model)")
    add(
        "--compare-api-key",
        metavar="KEY",
        help=f"its bearer token (default: {COMPARED_KEY_NAME} in the environment)",
    )


# ---------------------------------------------------------------- types of arguments


def address(text: str) -> str:
    """A URL without query, fragment and user."""
    try:
        parts = urllib.parse.urlsplit(text)
        is_good = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment or parts.username:
        raise argparse.ArgumentTypeError(
            f"must be like http://HOST:PORT or https://HOST/PATH, not {text!r}"
        )
    return text.rstrip("/")


def fields(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object like {{"temp": 0}}, not {text!r}')
    return value


def lengths(text: str) -> Lengths:
    """Lengths as `parse_lengths` reads them."""
    try:
        return parse_lengths(text)
    except BadPlan as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def stream_counts(text: str) -> list[int]:
    """One or more numbers of streams."""
    return [integer(part, 1, MOST_STREAMS, "each") for part in text.split(",")]


def rates(text: str) -> list[float]:
    """One or more rates."""
    return [positive(part) for part in text.split(",")]
