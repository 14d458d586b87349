"""The kinds of requests of a soak, and how often each is sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from scripts.load.dialects import STREAMING
from scripts.load.words import WORDS
from scripts.soak.cases import TEXTS, TIMED, Case, Draw
from scripts.soak.server_state import ServerFacts

SLOW_BUFFER_BYTES = 4096
"""Receive buffer of a slow reader."""
CACHE_IDS = 40
"""Number of different cache ids."""
SHORT_TIMEOUT_S = 0.4


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request."""

    name: str
    weight: float
    """How often it is sent, relative to the other kinds."""
    draw: Callable[[Draw], Case]
    needs_echo: bool = False
    needs_vectors: bool = False


def short(draw: Draw) -> Case:
    """A short answer."""
    prompt = draw.words(2, 30)
    return draw.text(draw.chance.choice(TEXTS), prompt, draw.chance.randint(1, 60))


def long(draw: Draw) -> Case:
    """A long answer."""
    prompt = draw.words(60, 120)
    return draw.text(draw.chance.choice(TEXTS), prompt, draw.chance.randint(250, 900))


def to_the_end(draw: Draw) -> Case:
    """The answer ends before the length that is asked for."""
    return draw.text(
        draw.chance.choice(("ollama", "ollama-chat-unstreamed")), draw.words(2, 20), 2000
    )


def large_prompt(draw: Draw) -> Case:
    """The prompt takes a quarter to half of the context."""
    words = draw.server.context // (12 if draw.server.is_echo else 4)
    return draw.text(draw.chance.choice(TEXTS), draw.words(words // 2, words), 20)


def cached(draw: Draw) -> Case:
    """The prompt begins like the earlier prompts with the same cache id."""
    prompt_id = draw.chance.randint(1, CACHE_IDS)
    beginning = " ".join(random.Random(prompt_id).choices(WORDS, k=40))
    draw.fields["cache"] = prompt_id
    prompt = f"{beginning} {draw.words(1, 12)}"
    dialects = ("stream", "stream-plain", "openai", "openai-unstreamed")
    return draw.text(draw.chance.choice(dialects), prompt, draw.chance.randint(5, 200))


def cancelled_in_queue(draw: Draw) -> Case:
    """The client disconnects, most of the time before its answer begins."""
    after_s = draw.chance.choice((0.0, 0.01, 0.05))
    return draw.text(draw.chance.choice(TEXTS), draw.words(5, 30), 100, cancel_after_s=after_s)


def cancelled_in_prefill(draw: Draw) -> Case:
    """The client disconnects during prefill."""
    prompt = draw.words(20, 40)
    if draw.server.is_echo:
        prompt = f"[[prefill sleep 0.5]]{prompt}"
    else:
        prompt = draw.words(draw.server.context // 8, draw.server.context // 4)
    after_s = draw.chance.uniform(0.05, 0.45)
    return draw.text(draw.chance.choice(TEXTS), prompt, 50, cancel_after_s=after_s)


def cancelled_in_decode(draw: Draw) -> Case:
    """The client disconnects after some tokens."""
    tokens = draw.chance.randint(50, 400)
    after = draw.chance.randint(1, tokens)
    dialect = draw.chance.choice(tuple(STREAMING))
    return draw.text(dialect, draw.words(60, 80), tokens, cancel_after_tokens=after)


def reads_slowly(draw: Draw) -> Case:
    """The client reads slowly, through a small buffer."""
    tokens = draw.chance.randint(300, 900)
    dialects = ("stream", "openai", "openai-chat", "ollama-chat", "stream-plain")
    prompt = draw.words(60, 120)
    slow = {"read_pause_s": 0.1, "receive_buffer_bytes": SLOW_BUFFER_BYTES}
    return draw.text(draw.chance.choice(dialects), prompt, tokens, **slow)


def expires(draw: Draw) -> Case:
    """Its timeout ends it, most of the time."""
    draw.fields["timeout_s"] = SHORT_TIMEOUT_S
    prompt = draw.words(10, 20)
    if draw.server.is_echo:
        where = draw.chance.choice(("prefill ", ""))
        prompt = f"[[{where}sleep {2 * SHORT_TIMEOUT_S}]] {prompt}"
    case = draw.text(draw.chance.choice(TIMED), prompt, 500)
    return replace(case, may_expire=True)


def in_time(draw: Draw) -> Case:
    """Its timeout is long enough, even if it waits for the replacement of a worker."""
    draw.fields["timeout_s"] = 120
    return draw.text(draw.chance.choice(TIMED), draw.words(5, 20), 60)


def fails(draw: Draw) -> Case:
    """The engine fails in prefill or in decode."""
    where = draw.chance.choice(("[[prefill fail]] {}", "{} [[fail]]"))
    prompt = where.format(draw.words(3, 10))
    case = draw.text(draw.chance.choice(TEXTS), prompt, 4000)
    return replace(case, fails=True)


def tokenize(draw: Draw) -> Case:
    """The tokens of a text."""
    return draw.prompt_only("tokenize")


def embed(draw: Draw) -> Case:
    """The vector of a text."""
    return draw.prompt_only(draw.chance.choice(("embeddings", "ollama-embed")))


KINDS = (
    Kind("short", 30, short),
    Kind("long", 14, long),
    Kind("ends by itself", 3, to_the_end, needs_echo=True),
    Kind("large prompt", 4, large_prompt),
    Kind("cache id", 8, cached),
    Kind("cancelled in queue", 5, cancelled_in_queue),
    Kind("cancelled in prefill", 4, cancelled_in_prefill),
    Kind("cancelled in decode", 8, cancelled_in_decode),
    Kind("slow reader", 5, reads_slowly),
    Kind("short timeout", 3, expires),
    Kind("long timeout", 4, in_time),
    Kind("engine failure", 2, fails, needs_echo=True),
    Kind("tokenize", 5, tokenize),
    Kind("embedding", 5, embed, needs_vectors=True),
)


def draw_case(server: ServerFacts, number: int, seed: str) -> Case:
    """Request number `number`; the same for the same seed."""
    chance = random.Random(f"{seed} {number}")
    kinds = [
        kind
        for kind in KINDS
        if (server.is_echo or not kind.needs_echo)
        and (server.makes_vectors or not kind.needs_vectors)
    ]
    kind = chance.choices(kinds, [kind.weight for kind in kinds])[0]
    return kind.draw(Draw(server, number, chance, kind.name))


CRASHES = ("abort", "segfault", "exit", "hang", "stop")
"""Directives of the echo engine that end its worker, some of them only by --progress-timeout."""


def draw_poison(server: ServerFacts, number: int, chance: random.Random) -> Case:
    """A request that ends its worker, in prefill or in decode."""
    draw = Draw(server, number, chance, "poison prompt")
    name = chance.choice(CRASHES)
    words = draw.words(2, 9)
    prompt = chance.choice((f"[[prefill {name}]] {words}", f"{words} [[{name}]]"))
    case = draw.text(chance.choice(TEXTS), prompt, 4000)
    return replace(case, crashes=True)
