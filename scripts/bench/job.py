"""What a measurement is given, its sizes, and how its runs are repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scripts.bench.models import make_model
from workers.machine.cores import Machine

A = TypeVar("A")
B = TypeVar("B")


class Skipped(Exception):
    """This measurement is not possible here; the message says what it needs."""


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of the measurements with llama.cpp."""

    shape: str = "tinyllama-1.1b"
    kind: str = "Q4_K_M"
    """Type of its matrices."""
    threads: int = 2
    streams: tuple[int, ...] = (1, 8, 16)
    """Numbers of concurrent streams."""
    requests: int = 2
    """Requests of each stream, one after another."""
    tokens: int = 64
    """Length of an answer, in tokens."""
    words: int = 10
    """Length of a prompt, in words."""
    deep_words: int = 300
    """Length of a prompt of `llama-deep`, in words."""
    deep_streams: int = 8
    depths: tuple[int, ...] = (100, 1200)
    """Tokens of a sequence before a step of `engine`."""
    chunk: int = 16
    """Tokens of a chunk of a prompt."""
    chats: int = 8
    """Concurrent chats."""
    turns: int = 10
    """Turns of a chat."""
    system_words: int = 500
    """Length of the system prompt, in words."""
    new_requests: int = 8
    small_shape: str = "small-24m"
    small_streams: int = 16
    long_words: int = 900
    """Length of a long prompt, in words."""
    long_context: int = 2048
    """Context of a slot for a long prompt and its answer, in tokens: a multiple of 256."""
    decoding: int = 3
    """Streams that decode when a long prompt arrives."""
    leave_s: float = 0.5
    """Seconds after which the client of a long prompt disconnects."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements."""

    runs: int
    front_streams: int
    front_tokens: int
    latency_streams: int
    latency_step_s: float
    latency_tokens: int
    decode_tokens: int
    context: int
    shape: str
    llama: LlamaSizes
    kind: str = "Q4_0"
    """Type of the model's matrices."""


FULL = Sizes(
    runs=5,
    front_streams=32,
    front_tokens=6000,
    latency_streams=10,
    latency_step_s=0.01,
    latency_tokens=300,
    decode_tokens=128,
    context=512,
    shape="tinyllama-1.1b",
    llama=LlamaSizes(),
)
QUICK = Sizes(
    runs=1,
    front_streams=32,
    front_tokens=100,
    latency_streams=5,
    latency_step_s=0.005,
    latency_tokens=40,
    decode_tokens=16,
    context=256,
    shape="tiny",
    llama=LlamaSizes(
        shape="tiny",
        kind="F16",
        threads=1,
        streams=(1, 2),
        tokens=8,
        depths=(10,),
        deep_words=60,
        chats=2,
        turns=2,
        system_words=50,
        new_requests=2,
        deep_streams=2,
        small_shape="tiny",
        small_streams=2,
        long_words=100,
        long_context=256,
        leave_s=0.0,  # such a prompt takes almost no time
    ),
)


@dataclass(frozen=True)
class Job:
    """What every measurement is given."""

    sizes: Sizes
    machine: Machine
    threads: int | None
    """Threads of the engine; None: the default of the measurement."""
    given_model: Path | None
    models: Path
    """The folder of the made models."""
    llama_server: Path | None
    scratch: Path
    """A folder for temporary files."""

    def model(self, shape: str, kind: str) -> Path:
        """The given model, or the made one of this shape and type. Raises MeasurementError."""
        return self.given_model or make_model(self.models, shape, kind)


def repeat(runs: int, run: Callable[[], A]) -> list[A]:
    """The results of `runs` runs, after a warm-up."""
    return [run() for _ in range(1 + runs)][1:]


def take_turns(
    runs: int, first: Callable[[], A], second: Callable[[], B]
) -> tuple[list[A], list[B]]:
    """The results of two things that take turns, so that disturbances affect both."""
    pairs = repeat(runs, lambda: (first(), second()))
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The quotient of each pair."""
    return [a / b for a, b in zip(over, under, strict=True)]
