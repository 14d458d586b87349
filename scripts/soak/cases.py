"""The requests of a soak: what is asked, what the answer must be, what may happen to it.

A case is drawn at random, by the weights of KINDS. The echo engine's answers are known to the
character; of a model's answers it is known when they are whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.load.bodies.objects import (
    OllamaVector,
    TokenIds,
    Vector,
    WholeChat,
    WholeChatted,
    WholeCompletion,
    WholeGenerated,
)
from scripts.load.dialects import (
    DIALECTS,
    LoadDialect,
    chat_fields,
    completion_fields,
    generate_fields,
    ollama_chat_fields,
)
from scripts.loadtest.plan import WORDS, Ask

JSON = "application/json"
ODD_WORDS = ("größer", "日本語", "🦊🦊", "a\\b", "\n", "«»", "Ω", '"', "{}")
"""Characters of several bytes, and such that formats escape."""
CACHE_IDS = 40
SHORT_TIME_S = 0.4


def at_once(fields: Callable[[Ask], dict[str, Any]]) -> Callable[[Ask], dict[str, Any]]:
    """The same request, answered when all is there."""

    def whole(ask: Ask) -> dict[str, Any]:
        asked = {**fields(ask), "stream": False}
        asked.pop("stream_options", None)
        return asked

    return whole


def input_fields(ask: Ask) -> dict[str, Any]:
    return {"input": ask.prompt}


def content_fields(ask: Ask) -> dict[str, Any]:
    return {"content": ask.prompt}


_ENDLESS = DIALECTS["openai"].endless
FORMATS: Mapping[str, LoadDialect] = {
    **DIALECTS,
    "openai-whole": LoadDialect(
        "/v1/completions", JSON, at_once(completion_fields), WholeCompletion, endless=_ENDLESS
    ),
    "openai-chat-whole": LoadDialect(
        "/v1/chat/completions", JSON, at_once(chat_fields), WholeChat, True, _ENDLESS
    ),
    "ollama-whole": LoadDialect("/api/generate", JSON, at_once(generate_fields), WholeGenerated),
    "ollama-chat-whole": LoadDialect(
        "/api/chat", JSON, at_once(ollama_chat_fields), WholeChatted, takes_messages=True
    ),
    "embeddings": LoadDialect("/v1/embeddings", JSON, input_fields, Vector),
    "ollama-embed": LoadDialect("/api/embed", JSON, input_fields, OllamaVector),
    "tokenize": LoadDialect("/tokenize", JSON, content_fields, TokenIds),
}
CHATS = {
    "token-stream", "openai-chat", "openai-chat-whole", "ollama", "ollama-whole", "ollama-chat",
    "ollama-chat-whole",
}  # fmt: skip
"""Formats whose prompt goes through a chat template."""
TEXTS = tuple(name for name in FORMATS if name not in ("embeddings", "ollama-embed", "tokenize"))
TIMED = tuple(name for name in TEXTS if not name.startswith("ollama"))
"""Formats that take timeout_s."""
WITHOUT_WORDS = ("stream-plain", "token-stream")
"""Formats that can tell a failure only by a cut."""


@dataclass(frozen=True, slots=True)
class World:
    """What is known of the server under test."""

    models: Sequence[str]
    is_echo: bool
    context: int
    """Tokens."""
    before: str
    """What its chat template puts before a question."""
    after: str
    makes_vectors: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what may happen to it besides its answer and the death of its worker."""

    kind: str
    format: str
    ask: Ask
    prompt_tokens: int | None = None
    """As usage should count them."""
    may_expire: bool = False
    fails: bool = False
    """It asks for a failure."""
    crashes: bool = False
    """It asks for its worker's death."""

    @property
    def holds_slot(self) -> bool:
        return self.format != "tokenize"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request and how often it comes."""

    name: str
    weight: float
    draw: Callable[[Draw], Case]
    needs_echo: bool = False
    needs_vectors: bool = False


@dataclass(slots=True)
class Draw:
    """Makes one case: its chance, and what the server is."""

    world: World
    number: int
    chance: random.Random
    kind: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def words(self, low: int, high: int) -> str:
        """A text that no other request has."""
        chance = self.chance
        words = chance.choices(WORDS, k=chance.randint(low, high))
        for _ in range(len(words) // 8):
            words.insert(chance.randrange(len(words)), chance.choice(ODD_WORDS))
        return f"{self.number} {' '.join(words)} end"

    def text(self, format_: str, prompt: str, tokens: int, **ask: Any) -> Case:
        """A request for text, whose answer is known where the engine is the echo."""
        rendered = prompt
        if format_ in CHATS:
            rendered = self.world.before + prompt + self.world.after
        length = len(rendered.encode())
        repeats = bool(FORMATS[format_].endless)
        if format_ in CHATS and tokens > length and repeats:
            tokens = length  # what repeats could have a chat's stop string in it
        fields = {"model": self.chance.choice(self.world.models), **self.fields}
        asked = Ask(prompt, tokens, self.chance.getrandbits(31), fields=fields, **ask)
        if not self.world.is_echo:
            return Case(self.kind, format_, asked)
        asked = replace(asked, text=echoed(rendered, tokens, repeats=repeats))
        return Case(self.kind, format_, asked, prompt_tokens=length)

    def whole_prompt(self, format_: str) -> Case:
        """A request whose answer is not text."""
        prompt = self.words(2, 60)
        fields = {"model": self.chance.choice(self.world.models)}
        text = prompt if self.world.is_echo else None
        return Case(self.kind, format_, Ask(prompt, 1, 0, fields=fields, text=text))


def echoed(prompt: str, tokens: int, *, repeats: bool) -> str:
    """What the echo engine answers; a character that its end cuts is left out."""
    data = prompt.encode()
    if repeats:
        data *= -(-tokens // len(data))
    return data[:tokens].decode(errors="ignore")


# ---------------------------------------------------------------- the kinds


def short(draw: Draw) -> Case:
    prompt = draw.words(2, 30)
    return draw.text(draw.chance.choice(TEXTS), prompt, draw.chance.randint(1, 60))


def long(draw: Draw) -> Case:
    prompt = draw.words(60, 120)
    return draw.text(draw.chance.choice(TEXTS), prompt, draw.chance.randint(250, 900))


def to_the_end(draw: Draw) -> Case:
    """More is asked for than there is: the answer ends by itself."""
    return draw.text(draw.chance.choice(("ollama", "ollama-chat-whole")), draw.words(2, 20), 2000)


def large_prompt(draw: Draw) -> Case:
    """A prompt of a quarter to half of the context."""
    words = draw.world.context // (12 if draw.world.is_echo else 4)
    return draw.text(draw.chance.choice(TEXTS), draw.words(words // 2, words), 20)


def cached(draw: Draw) -> Case:
    """The prompt of an id goes on as that of the same id did before."""
    id_ = draw.chance.randint(1, CACHE_IDS)
    beginning = " ".join(random.Random(id_).choices(WORDS, k=40))
    draw.fields["cache"] = id_
    prompt = f"{beginning} {draw.words(1, 12)}"
    formats = ("stream", "stream-plain", "openai", "openai-whole")
    return draw.text(draw.chance.choice(formats), prompt, draw.chance.randint(5, 200))


def leaves_queue(draw: Draw) -> Case:
    """Gone before its answer, most of the time."""
    leaves = draw.chance.choice((0.0, 0.01, 0.05))
    return draw.text(draw.chance.choice(TEXTS), draw.words(5, 30), 100, leaves_after_s=leaves)


def leaves_prompt(draw: Draw) -> Case:
    """Gone while its prompt is processed."""
    prompt = draw.words(20, 40)
    if draw.world.is_echo:
        prompt = f"[[prefill sleep 0.5]]{prompt}"
    else:
        prompt = draw.words(draw.world.context // 8, draw.world.context // 4)
    leaves = draw.chance.uniform(0.05, 0.45)
    return draw.text(draw.chance.choice(TEXTS), prompt, 50, leaves_after_s=leaves)


def leaves_stream(draw: Draw) -> Case:
    """Gone after some tokens."""
    tokens = draw.chance.randint(50, 400)
    formats = tuple(name for name in TEXTS if not name.endswith("whole"))
    after = draw.chance.randint(1, tokens)
    return draw.text(draw.chance.choice(formats), draw.words(60, 80), tokens, leaves_after=after)


def reads_slowly(draw: Draw) -> Case:
    tokens = draw.chance.randint(300, 900)
    format_ = draw.chance.choice(("stream", "openai", "openai-chat", "ollama-chat", "stream-plain"))
    return draw.text(format_, draw.words(60, 120), tokens, pause_s=0.1)


def expires(draw: Draw) -> Case:
    """Its time is over before its answer is, most of the time."""
    draw.fields["timeout_s"] = SHORT_TIME_S
    prompt = draw.words(10, 20)
    if draw.world.is_echo:
        where = draw.chance.choice(("prefill ", ""))
        prompt = f"[[{where}sleep {2 * SHORT_TIME_S}]] {prompt}"
    case = draw.text(draw.chance.choice(TIMED), prompt, 500)
    return replace(case, may_expire=True)


def in_time(draw: Draw) -> Case:
    """A time that is enough, even where it waits for a replacement."""
    draw.fields["timeout_s"] = 120
    return draw.text(draw.chance.choice(TIMED), draw.words(5, 20), 60)


def fails(draw: Draw) -> Case:
    """In the prompt, or within the answer."""
    where = draw.chance.choice(("[[prefill fail]] {}", "{} [[fail]]"))
    prompt = where.format(draw.words(3, 10))
    case = draw.text(draw.chance.choice(TEXTS), prompt, 4000)
    return replace(case, fails=True)


def tokenize(draw: Draw) -> Case:
    return draw.whole_prompt("tokenize")


def embed(draw: Draw) -> Case:
    return draw.whole_prompt(draw.chance.choice(("embeddings", "ollama-embed")))


KINDS = (
    Kind("short", 30, short),
    Kind("long", 14, long),
    Kind("to its end", 3, to_the_end, needs_echo=True),
    Kind("large prompt", 4, large_prompt),
    Kind("with a cache id", 8, cached),
    Kind("leaves in the queue", 5, leaves_queue),
    Kind("leaves in its prompt", 4, leaves_prompt),
    Kind("leaves in its stream", 8, leaves_stream),
    Kind("reads slowly", 5, reads_slowly),
    Kind("timeout too short", 3, expires),
    Kind("timeout long enough", 4, in_time),
    Kind("engine failure", 2, fails, needs_echo=True),
    Kind("tokenize", 5, tokenize),
    Kind("embedding", 5, embed, needs_vectors=True),
)


def draw_case(world: World, number: int, seed: str) -> Case:
    """Request number `number`: the same for the same seed."""
    chance = random.Random(f"{seed} {number}")
    kinds = [
        kind
        for kind in KINDS
        if (world.is_echo or not kind.needs_echo)
        and (world.makes_vectors or not kind.needs_vectors)
    ]
    kind = chance.choices(kinds, [kind.weight for kind in kinds])[0]
    return kind.draw(Draw(world, number, chance, kind.name))


CRASHES = ("abort", "segfault", "exit", "hang", "stop")
"""Directives that end a worker, some of them only by its progress limit."""


def crash(world: World, number: int, chance: random.Random) -> Case:
    """A request that ends its worker, in the prompt or within the answer."""
    draw = Draw(world, number, chance, "poison")
    name = chance.choice(CRASHES)
    words = draw.words(2, 9)
    prompt = chance.choice((f"[[prefill {name}]] {words}", f"{words} [[{name}]]"))
    case = draw.text(chance.choice(TEXTS), prompt, 4000)
    return replace(case, crashes=True)
