"""An engine without a model. It streams the prompt back, one byte per token.

It serves tests, load tests and trying a client. A token is one byte of UTF-8, so characters are
split across tokens, as in real vocabularies. `<|eot|>` is one control token. It is echoed as one
token, has no text unless control tokens are shown, and does not end the generation. Sampling
parameters are accepted and have no effect; with ignore_eos the prompt repeats. An embedding
counts the tokens by their ids modulo 64.

A prompt may contain directives. They are echoed like any text, and take effect when they are
reached: `[[NAME]]` or `[[NAME SECONDS]]` in the generation. With `prefill` before the name, as in
`[[prefill sleep 2]]`, they take effect while the prompt is processed or embedded.

    sleep S    take S seconds for this step
    fail       report an error in this step
    hang       sleep forever in native code, without the GIL
    hang-gil   sleep forever in native code, holding the GIL
    segfault   read address 0
    abort      call abort()
    exit       leave the process with status 1
    stop       stop the process with SIGSTOP
    print      write to standard output, as native code may

The "model file" is optional: a JSON object of EchoOptions.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from shared.errors import ConfigurationError, EngineFailed, InvalidRequest
from shared.sampling import SamplingParams
from shared.settings import ModelSettings
from shared.values import ModelCard, ModelInfo
from workers.engines.base import Engine, Feed, Interrupted

END = 256
"""The token that ends a generation."""
CONTROL = 257
"""The control token."""
CONTROL_NAME = "<|eot|>"
DIRECTIVE = re.compile(r"\[\[(prefill )?([a-z-]+)(?: ([0-9.]+))?\]\]")
LONGEST_DIRECTIVE = 64
"""Characters before a chunk that are searched again for directives that end in the chunk."""
FOREVER_S = 2**31 - 1
DEFAULT_BATCH = 64
MAX_BATCH = 4096
EMBEDDING = 64
"""Numbers in a vector."""
LOADING_STEPS = 4
"""Progress reports while loading."""
WITHOUT = ("logprobs", "grammar", "json_schema")
"""The sampling parameters that are refused."""


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """How the engine behaves."""

    slots: int = 32
    """Slots, unless the settings say otherwise."""
    step_s: float = 0.0
    """Duration of each step in seconds, whatever it contains."""
    load_s: float = 0.0
    """Duration of loading in seconds."""
    load_error: str = ""
    """Loading fails with this sentence, unless it is empty."""
    dies_after_s: float = 0.0
    """Seconds after loading at which the process exits, busy or not. 0: never."""
    chat_template: str = ""
    """The Jinja template on the model's card."""


def load(settings: ModelSettings, threads: int, on_progress: Callable[[float], None]) -> EchoEngine:
    """Ignores `threads`. Raises ConfigurationError."""
    options = EchoOptions() if settings.path is None else read_options(settings.path)
    for step in range(1, LOADING_STEPS + 1):
        time.sleep(options.load_s / LOADING_STEPS)
        on_progress(step / LOADING_STEPS)
    if options.load_error:
        raise ConfigurationError(options.load_error)
    if options.dies_after_s:
        threading.Timer(options.dies_after_s, os._exit, [1]).start()
    options = replace(options, slots=settings.slots or options.slots)
    return EchoEngine(options, settings.context, settings.batch or DEFAULT_BATCH)


def read_options(path: Path) -> EchoOptions:
    """Reads the options from a JSON file. Raises ConfigurationError."""
    try:
        given = json.loads(path.read_bytes())
        unknown = set(given) - {field.name for field in fields(EchoOptions)}
        if unknown:
            raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
        return EchoOptions(**given)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} does not hold options of the echo engine: {error}"
        ) from None


@dataclass(slots=True)
class EchoSampler:
    """Echoes the prompt of one sequence."""

    prompt: str
    """The prompt's tokens as `characters` returns them."""
    ignore_eos: bool
    position: int = 0
    """The index of the next token in the prompt."""

    def next(self) -> int:
        if self.position == len(self.prompt):
            if not self.ignore_eos:
                return END
            self.position = 0
        self.position += 1
        return ord(self.prompt[self.position - 1])


def characters(tokens: Sequence[int]) -> str:
    """The tokens as a string whose character codes they are, for regular expressions."""
    return "".join(map(chr, tokens))


class EchoEngine(Engine):
    """The engine that the module's docstring describes."""

    max_batch = MAX_BATCH
    state_format = "echo, characters"

    def __init__(self, options: EchoOptions, context: int, batch: int) -> None:
        self.info = ModelInfo(
            engine="echo",
            architecture="echo",
            context=context,
            vocabulary=CONTROL + 1,
            slots=options.slots,
            batch=min(batch, MAX_BATCH),
            sampling=tuple(
                field.name for field in fields(SamplingParams) if field.name not in WITHOUT
            ),
            saves_states=True,
            embedding=EMBEDDING,
            card=ModelCard(
                name="echo",
                chat_template=options.chat_template,
                eos=CONTROL_NAME,
                control=(CONTROL_NAME,),
            ),
        )
        self._step_s = options.step_s
        self._fed = [""] * options.slots
        self._embedded = ""
        self._generates = [False] * options.slots
        self._interruption = threading.Event()

    def tokenize(self, text: str, *, is_start: bool = True, continues: bool = False) -> list[int]:
        first, *others = text.encode().split(CONTROL_NAME.encode())
        tokens = list(first)
        for other in others:
            tokens += [CONTROL, *other]
        if not tokens and not continues:
            raise InvalidRequest("the prompt has no tokens")
        return tokens

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        if token < END:
            return bytes((token,))
        return CONTROL_NAME.encode() if token == CONTROL and shows_control else b""

    def is_end(self, token: int) -> bool:
        return token == END

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> EchoSampler:
        return EchoSampler(characters(prompt), params.ignore_eos)

    def decode(self, feeds: Sequence[Feed], *, interruptible: bool = False, width: int = 0) -> None:
        if self._step_s:
            time.sleep(self._step_s)
        for feed in feeds:
            known = self._fed[feed.slot][: feed.position]  # cuts off an interrupted step
            text = known + characters(feed.tokens)
            if not self._generates[feed.slot]:
                self._reach(text, len(known), interruptible)
            self._fed[feed.slot] = text

    def sample(self, slot: int, sampler: EchoSampler) -> int:
        self._generates[slot] = True
        start = sampler.position
        token = sampler.next()
        if token == ord("["):
            found = DIRECTIVE.match(sampler.prompt, start)
            if found and not found[1]:
                act(found[2], found[3])
        return token

    def interrupt(self) -> None:
        """Ends the sleep of `[[prefill sleep S]]`."""
        self._interruption.set()

    def resume(self) -> None:
        self._interruption.clear()

    def truncate(self, slot: int, length: int) -> int:
        self._generates[slot] = False
        self._fed[slot] = self._fed[slot][:length]
        return len(self._fed[slot])

    def save(self, slot: int) -> bytearray:
        return bytearray(self._fed[slot].encode())

    def load(self, slot: int, state: bytearray) -> None:
        self._generates[slot] = False
        self._fed[slot] = state.decode()

    def embed(self, tokens: Sequence[int], position: int, *, is_last: bool) -> bytes:
        known = self._embedded[:position]
        self._embedded = known + characters(tokens)
        self._reach(self._embedded, len(known), interruptible=False)
        return normalised(self._embedded) if is_last else b""

    def _reach(self, text: str, known: int, interruptible: bool) -> None:
        """Execute the prompt's directives that end behind its first `known` characters."""
        for found in DIRECTIVE.finditer(text, max(0, known - LONGEST_DIRECTIVE)):
            if not found[1] or found.end() <= known:
                continue
            if found[2] != "sleep" or not interruptible:
                act(found[2], found[3])
            elif self._interruption.wait(float(found[3] or 0)):
                raise Interrupted


def normalised(text: str) -> bytes:
    """The numbers of tokens by their ids modulo EMBEDDING, as a vector of length 1."""
    counts = [0] * EMBEDDING
    for character in text:
        counts[ord(character) % EMBEDDING] += 1
    length = math.hypot(*counts)
    return struct.pack(f"<{EMBEDDING}f", *(count / length for count in counts))


def act(name: str, seconds: str | None) -> None:
    """Execute a directive. Raises EngineFailed for an unknown one."""
    action = ACTIONS.get(name)
    if action is None:
        raise EngineFailed(f"the echo engine does not know the directive {name!r}")
    action(float(seconds or 0))


def _fail(_: float) -> None:
    raise EngineFailed("the prompt asked for a failure")


ACTIONS: dict[str, Callable[[float], object]] = {
    "sleep": time.sleep,
    "fail": _fail,
    "hang": lambda _: ctypes.CDLL(None).sleep(FOREVER_S),
    "hang-gil": lambda _: ctypes.PyDLL(None).sleep(FOREVER_S),
    "segfault": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "exit": lambda _: os._exit(1),
    "print": lambda _: os.write(1, b"printed by the engine\n"),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
}
