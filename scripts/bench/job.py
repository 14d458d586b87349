"""What a measurement is given, how much it measures, and how its runs are repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scripts.bench.models import make_model
from workers.machine.cores import Machine

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class LlamaSizes:
    """How much is measured against llama-server."""

    shape: str = "tinyllama-1.1b"
    kind: str = "Q4_K_M"
    """Type of its matrices."""
    threads: int = 2
    streams: tuple[int, ...] = (1, 8, 16)
    """At once."""
    requests: int = 2
    """Of each stream, one after the other."""
    tokens: int = 64
    """Of a request."""
    words: int = 10
    """Of its prompt."""
    deep_words: int = 300
    """Of a prompt of the deep ones."""
    deep_streams: int = 8
    depths: tuple[int, ...] = (100, 1200)
    """Tokens before those of a step of `engine`."""
    chunk: int = 16
    chats: int = 8
    turns: int = 10
    system_words: int = 500
    new_requests: int = 8
    small_shape: str = "small-24m"
    small_streams: int = 16
    long_words: int = 900
    """Of the prompt that takes long."""
    long_context: int = 2048
    """Tokens of a slot for such a prompt and its answer: a multiple of 256."""
    decoding: int = 3
    """Streams that decode when it arrives."""
    leave_s: float = 0.5
    """Seconds after which its client leaves."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

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
    runs=2,
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
        leave_s=0.0,  # such a prompt is done in no time
    ),
)


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    sizes: Sizes
    machine: Machine
    threads: int | None
    """Of the engine; None: as many as the measurement takes by itself."""
    given_model: Path | None
    models: Path
    """The folder of the models that are made."""
    llama_server: Path | None
    scratch: Path

    def model(self, shape: str, kind: str) -> Path:
        """The model that was given, or else the one of that shape and type. BenchError."""
        return self.given_model or make_model(self.models, shape, kind)


def repeat(runs: int, run: Callable[[], A]) -> list[A]:
    """The results of `runs` runs, after a warm-up."""
    return [run() for _ in range(1 + runs)][1:]


def take_turns(
    runs: int, first: Callable[[], A], second: Callable[[], B]
) -> tuple[list[A], list[B]]:
    """The results of two things that take turns, so that both meet the same disturbances."""
    pairs = repeat(runs, lambda: (first(), second()))
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]
