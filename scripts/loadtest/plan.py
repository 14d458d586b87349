"""What is asked and when: lengths, prompts, who leaves early, arrivals. A seed decides."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_WORDS = """
a about after again air all also am an and any are as ask at away back be been bell big bird blue
boat book both bread bring but by call came can castle cat child city clear cloud cold come could
dark day deep did do dog door down each early earth east eat egg end even ever every eye face fall
far farm fast father few field find fire first fish five flower fly follow food for forest found
four fox friend from full garden gave get girl give go gold good grass great green ground had hand
has have he hear heart her high hill him his hold home horse hot hour house how hundred ice if in
into iron is it jump just keep kind king knew know lake land large last late leaf learn left less
let letter life light like line listen little live long look made make man many may me men might
milk mind moon more morning most mother mountain move much music must my name near never new next
night no north not now of off often old on once one only open or other our out over page paper part
path people place play point queen quick rain ran read red rest right river road rock room round
run said sail salt same sat saw say sea second see seem seven shall she ship short should show side
silver sing sister sit six sky sleep slow small snow so some song soon south spring stand star
start stay step still stone stood stop story street summer sun sure table take talk tall tell ten
than that the their them then there these they thing think this those thought three through time to
today together told too took top town tree true try turn two under until up upon us very voice wait
walk wall want warm was watch water way we week well went were west what wheel when where which
while white who why will wind window winter wish with woman wood word work world would write year
yellow yes yet you young your
"""
WORDS = tuple(_WORDS.split())
"""Everyday words, each one token or two to most models."""
LONGEST = 1_000_000
"""Words or tokens at most, whatever a distribution says."""


class BadPlan(ValueError):
    """An option or a file of prompts that cannot be followed; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, in no dialect's words: so many tokens after this prompt."""

    prompt: str
    tokens: int
    seed: int
    messages: Sequence[Mapping[str, Any]] = ()
    """A chat in the place of the prompt."""
    leaves_after: int | None = None
    """Tokens after which the client closes the connection, 0: at once; None: it stays."""
    leaves_after_s: float | None = None
    """Seconds after which it does so."""
    pause_s: float = 0.0
    """Between two reads, in seconds, each of a few kB: a slow reader."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """More fields of this request's body."""
    text: str | None = None
    """What the answer says; None: that is not known."""


# ---------------------------------------------------------------- lengths


class Lengths(Protocol):
    """A distribution of lengths, each 1 or more; its text is for reports."""

    def draw(self, chance: random.Random) -> int:
        """One of them."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    length: int

    def __str__(self) -> str:
        return str(self.length)

    def draw(self, chance: random.Random) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class Uniform:
    """From `low` to `high`, both included, all equally likely."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"

    def draw(self, chance: random.Random) -> int:
        return chance.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Half of them over the median; `sigma` is the deviation of their natural logarithm."""

    median: float
    sigma: float
    most: int = LONGEST

    def __str__(self) -> str:
        most = f", at most {self.most}" if self.most < LONGEST else ""
        return f"about {self.median:g} (lognormal, sigma {self.sigma:g}{most})"

    def draw(self, chance: random.Random) -> int:
        length = math.exp(math.log(self.median) + self.sigma * chance.gauss())
        return min(max(round(length), 1), self.most)


def parse_lengths(text: str) -> Lengths:
    """Of `50`, `uniform:10-200` or `lognormal:MEDIAN,SIGMA[,MOST]`. Raises BadPlan."""
    kind, _, rest = text.partition(":")
    try:
        match kind:
            case "uniform":
                low, high = map(int, rest.split("-"))
                if 1 <= low <= high <= LONGEST:
                    return Uniform(low, high)
            case "lognormal":
                median, sigma, *most = rest.split(",")
                found = Lognormal(float(median), float(sigma), *map(int, most))
                if 1 <= found.median <= LONGEST and 0 <= found.sigma <= 5 and found.most >= 1:
                    return found
            case _:
                if 1 <= int(text) <= LONGEST:
                    return Fixed(int(text))
    except (ValueError, TypeError):
        pass  # said below, as for what is out of range
    raise BadPlan(
        f"{text!r} is no length: write N, uniform:LOW-HIGH (integers from 1 to {LONGEST:,}, LOW ≤"
        " HIGH), or lognormal:MEDIAN,SIGMA[,MOST] (MEDIAN ≥ 1, SIGMA from 0 to 5, MOST ≥ 1)"
    )


# ---------------------------------------------------------------- prompts


class Source(Protocol):
    """Where prompts are from."""

    def draw(self, index: int, chance: random.Random, seed: str) -> Ask:
        """Request number `index`. `seed` is that of the whole load."""


@dataclass(frozen=True, slots=True)
class RandomWords:
    """Prompts of everyday words: no two begin alike, but for the words that all share."""

    words: Lengths
    tokens: Lengths
    shared: int = 0
    """Words that all prompts begin with."""

    def draw(self, index: int, chance: random.Random, seed: str) -> Ask:
        own = chance.choices(WORDS, k=self.words.draw(chance))
        shared = random.Random(f"{seed} shared").choices(WORDS, k=self.shared)
        prompt = " ".join([*shared, *own])
        return Ask(prompt, self.tokens.draw(chance), chance.getrandbits(31))


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt of a file."""

    prompt: str
    messages: Sequence[Mapping[str, Any]] = ()
    tokens: int | None = None
    """None: as many as the command line says."""


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """The prompts of a file in their order, again and again."""

    entries: Sequence[Entry]
    tokens: Lengths

    def draw(self, index: int, chance: random.Random, seed: str) -> Ask:
        entry = self.entries[index % len(self.entries)]
        tokens = self.tokens.draw(chance) if entry.tokens is None else entry.tokens
        return Ask(entry.prompt, tokens, chance.getrandbits(31), entry.messages)


def read_prompts(path: Path) -> list[Entry]:
    """A prompt a line; of a file *.jsonl, objects with `prompt` or `messages`, and `max_tokens`.

    Empty lines do not count. Raises BadPlan, naming the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path} cannot be read: {error}") from None
    parse = _entry if path.suffix == ".jsonl" else Entry
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(parse(line))
            except ValueError as error:
                raise BadPlan(f"{path}, line {number}: {error}") from None
    if not entries:
        raise BadPlan(f"{path} has no prompts")
    return entries


def _entry(line: str) -> Entry:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadPlan(f"is not JSON: {error}") from None
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise BadPlan("must be an object with either prompt or messages")
    prompt, messages, tokens = value.get("prompt", ""), value.get("messages"), None
    if not isinstance(prompt, str) or (messages is None and not prompt):
        raise BadPlan("prompt must be a string that is not empty")
    if messages is not None and not _are_messages(messages):
        raise BadPlan("messages must be a list, not empty, of objects with role and content")
    if "max_tokens" in value:
        tokens = value["max_tokens"]
        if type(tokens) is not int or not 1 <= tokens <= LONGEST:
            raise BadPlan(f"max_tokens must be an integer from 1 to {LONGEST}")
    return Entry(prompt, tuple(messages or ()), tokens)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in value)
    )


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests of a load. The same seed and number give the same request, in any order."""

    source: Source
    seed: str
    leaving: float = 0.0
    """Share of the requests whose client leaves before the end, 0 … 1."""

    def ask(self, index: int) -> Ask:
        """Request number `index`; those of a warm-up have negative numbers."""
        chance = random.Random(f"{self.seed} {index}")
        ask = self.source.draw(index, chance, self.seed)
        if chance.random() >= self.leaving:
            return ask
        leaves_after = chance.randrange(ask.tokens)
        return Ask(ask.prompt, ask.tokens, ask.seed, ask.messages, leaves_after)


def arrivals(rate: float, ramp_s: float, seed: str) -> Iterator[float]:
    """Seconds at which requests arrive, without end: a Poisson process.

    Its rate, in requests a second, rises evenly from 0 within the first `ramp_s` seconds.
    """
    chance = random.Random(f"{seed} arrivals")
    expected = 0.0  # requests until then
    for _ in itertools.count():
        expected += chance.expovariate(1.0)
        in_ramp = rate * ramp_s / 2
        if expected < in_ramp:
            yield math.sqrt(2 * ramp_s * expected / rate)
        else:
            yield ramp_s + (expected - in_ramp) / rate
