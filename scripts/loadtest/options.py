"""The command line of loadtest.py, checked, as a Job."""

from __future__ import annotations

import argparse
import json
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.load.client import PORTS, Target
from scripts.load.dialects import DIALECTS
from scripts.loadtest.plan import (
    BadPlan,
    FilePrompts,
    Fixed,
    Lengths,
    Plan,
    RandomWords,
    Source,
    parse_lengths,
    read_prompts,
)
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
    """What the command line asks for."""

    title: str
    targets: Sequence[Target]
    names: Sequence[str]
    """Of the targets, to read."""
    shapes: Sequence[Shape]
    plan: Plan
    span: Span
    rounds: int
    timeout_s: float
    json: Path | None
    report: Path | None
    settings: Mapping[str, str]
    """To read; without keys."""

    @property
    def unit(self) -> str:
        units = {target.dialect.body.unit for target in self.targets}
        return units.pop() if len(units) == 1 else "tokens or pieces"


def parse_arguments(description: str, arguments: Sequence[str] | None) -> Job:
    """The job; ends the program with status 2 and a sentence if there is none."""
    parser = make_parser(description)
    options = parser.parse_args(arguments)
    try:
        return make_job(options)
    except BadPlan as error:
        parser.error(str(error))


def make_job(options: argparse.Namespace) -> Job:
    """Raises BadPlan."""
    targets = make_targets(options)
    source = make_source(options, targets)
    names = [f"{target.url} ({dialect})" for target, dialect in targets]
    if len(names) > 1:
        names = [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
    rounds = options.rounds or (DEFAULT_ROUNDS if options.compare else 1)
    for path in (options.json, options.report):
        if path is not None and not path.parent.is_dir():
            raise BadPlan(f"{path} cannot be written: there is no folder {path.parent}")
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
    """The servers, each with its dialect's name. Raises BadPlan."""
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
            raise BadPlan("an API key must be of printable ASCII characters")
    return [
        (Target(url, DIALECTS[dialect], model, key_of, **common), dialect)
        for url, dialect, model, key_of in found
    ]


def make_source(options: argparse.Namespace, targets: Sequence[tuple[Target, str]]) -> Source:
    """Where prompts are from. Raises BadPlan."""
    if options.prompts is None:
        words = options.prompt_words or DEFAULT_WORDS
        return RandomWords(words, options.tokens, options.shared_words)
    if options.prompt_words or options.shared_words:
        raise BadPlan("--prompts has the prompts: --prompt-words and --shared-words make others")
    entries = read_prompts(options.prompts)
    for target, dialect in targets:
        if any(entry.messages for entry in entries) and not target.dialect.takes_messages:
            able = ", ".join(name for name, one in DIALECTS.items() if one.takes_messages)
            raise BadPlan(
                f"{options.prompts} has messages, which --dialect {dialect} does not take;"
                f" these do: {able}"
            )
    return FilePrompts(entries, options.tokens)


def make_shapes(options: argparse.Namespace) -> list[Shape]:
    if options.rates is not None:
        return [Open(rate) for rate in options.rates]
    return [Closed(streams) for streams in options.streams]


def make_span(options: argparse.Namespace) -> Span:
    duration = options.duration
    if duration is None and options.requests is None:
        duration = DEFAULT_DURATION_S
    return Span(options.ramp_up, options.warm_up, duration, options.requests)


def describe(options: argparse.Namespace, rounds: int) -> dict[str, str]:
    """What the load is, to read."""
    span = make_span(options)
    length = [f"{span.duration_s:g} s"] if span.duration_s is not None else []
    length += [f"{span.requests} requests"] if span.requests is not None else []
    loads = ", ".join(shape.label for shape in make_shapes(options))
    shared = f", behind {options.shared_words} that all share" if options.shared_words else ""
    prompts = f"{options.prompt_words or DEFAULT_WORDS} words{shared}"
    rows = {
        "load": loads,
        "counted": " or ".join(length) + f", after {span.ramp_s:g} s of ramp-up"
        f" and {span.warm_up_s:g} s of warm-up",
        "prompts": prompts if options.prompts is None else options.prompts.name,
        "answers": f"{options.tokens} tokens{' at most' if options.eos else ''}",
        "cancelled by the client": f"{options.cancel:.0%}" if options.cancel else "",
        "model": options.model or "",
        "more fields": json.dumps(options.fields) if options.fields else "",
        "rounds": str(rounds) if rounds > 1 else "",
        "seed": str(options.seed),
    }
    return {name: value for name, value in rows.items() if value}


# ---------------------------------------------------------------- the parser


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("url", type=address, metavar="URL", help="the server, like http://127.0.0.1:8080")
    add("--dialect", choices=DIALECTS, default="stream", help="what it speaks (default: stream)")
    add("--model", metavar="NAME", help="the model to ask for (default: the server's own)")
    add("--api-key", metavar="KEY", help=f"a bearer token (or {KEY_NAME} in the environment)")
    add("--fields", type=fields, default={}, metavar="JSON", help="more fields of each body")
    add("--timeout", type=positive, default=120.0, metavar="S", help="longest silence (120)")
    _add_load(parser)
    _add_requests(parser)
    _add_checks(parser)
    _add_compare(parser)
    add = parser.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--report", type=Path, metavar="FILE", help="write a page of HTML with plots there")
    add("--title", default="Load test", help="of the page")
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the load")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--streams",
        type=stream_counts,
        default=DEFAULT_STREAMS,
        metavar="N,…",
        help=f"clients at once, each with one request after the other ({DEFAULT_STREAMS})",
    )
    kinds.add_argument(
        "--rate",
        "--rates",
        dest="rates",
        type=rates,
        metavar="R,…",
        help="requests a second that arrive by themselves, at random",
    )
    add = group.add_argument
    add(
        "--duration",
        type=positive,
        metavar="S",
        help=f"seconds that count ({DEFAULT_DURATION_S:g}, but without end if --requests is given)",
    )
    add("--requests", type=count, metavar="N", help="requests that count, at most")
    add(
        "--warm-up",
        type=not_negative,
        default=DEFAULT_WARM_UP_S,
        metavar="S",
        help=f"seconds before that do not count ({DEFAULT_WARM_UP_S:g})",
    )
    add(
        "--ramp-up",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="seconds before these in which the load grows (0)",
    )
    add("--rounds", type=count, metavar="N", help="repeat each load so often (1; compared: 3)")
    add("--seed", type=int, default=1, metavar="N", help="of everything that is random (1)")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "requests",
        "LENGTH is N, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA or lognormal:MEDIAN,SIGMA,MOST",
    ).add_argument
    add(
        "--prompt-words",
        type=lengths,
        metavar="LENGTH",
        help=f"words of a prompt ({DEFAULT_WORDS})",
    )
    add(
        "--shared-words",
        type=count,
        default=0,
        metavar="N",
        help="words before these, the same in all prompts: for caches of prompts (none)",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts to take instead: one a line; of *.jsonl objects with prompt or messages,"
        " and max_tokens",
    )
    add(
        "--tokens",
        type=lengths,
        default="64",
        metavar="LENGTH",
        help="tokens of an answer (64)",
    )
    add(
        "--cancel",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the requests that their client leaves after a random token (0)",
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what answers may be like").add_argument
    add(
        "--eos",
        action="store_true",
        help="the model may end its answers: do not send ignore_eos (Ollama has no such field)",
    )
    add(
        "--events",
        choices=("exact", "usual", "merged"),
        default="usual",
        help="with OpenAI's and Ollama's formats: an event for each token of the usage; one for"
        " each that completes a character (default); or for several, as some servers merge them",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "two servers", "the same load on both in turn, and the ratios of the second to the first"
    ).add_argument
    add("--compare", type=address, metavar="URL", help="the second server")
    add("--compare-dialect", choices=DIALECTS, help="what it speaks (default: --dialect)")
    add("--compare-model", metavar="NAME", help="its model (default: --model)")
    add("--compare-api-key", metavar="KEY", help=f"its key (or {COMPARED_KEY_NAME})")


# ---------------------------------------------------------------- values


def address(text: str) -> str:
    """An address without what comes after a path."""
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
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object like {{"temp": 0}}, not {text!r}')
    return value


def lengths(text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except BadPlan as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def stream_counts(text: str) -> list[int]:
    return [_integer(part, "each", 1, MOST_STREAMS) for part in text.split(",")]


def rates(text: str) -> list[float]:
    return [_number(part, above=0.0) for part in text.split(",")]


def count(text: str) -> int:
    return _integer(text, "", 1, 10**9)


def positive(text: str) -> float:
    return _number(text, above=0.0)


def not_negative(text: str) -> float:
    return _number(text)


def share(text: str) -> float:
    value = _number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def _integer(text: str, each: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(
            f"{each} must be an integer from {low} to {high}, not {text!r}".lstrip()
        )
    return int(text)


def _number(text: str, above: float | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or value == above:
        wanted = "≥ 0" if above is None else f"> {above:g}"
        raise argparse.ArgumentTypeError(f"must be a number {wanted}, not {text!r}")
    return value
