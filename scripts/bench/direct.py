"""A ctransformers model without a server, with which the figure `ctransformers` compares."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scripts.load.errors import MeasurementError

STOP_S = 15.0
"""Time in which the process must end after its pipe is closed."""


class DirectLoop:
    """A ctransformers model in a process of its own, with the library's own loop."""

    def __init__(self, model: Path, cpus: Sequence[int], context: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, self._remote = spawn.Pipe()
        arguments = (self._remote, model, tuple(cpus), context)
        self._process = spawn.Process(target=serve_direct_loop, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._remote.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()  # this ends the loop of the child
        self._process.join(STOP_S)
        self._process.kill()
        self._process.join()

    def decode_rate(self, fields: Mapping[str, Any], tokens: int) -> float:
        """Tokens per second, from the first generated token to the last of `tokens`."""
        try:
            self._connection.send((dict(fields), tokens))
            count, seconds = self._connection.recv()
        except (EOFError, OSError):
            raise MeasurementError("the process of ctransformers' own loop has ended") from None
        if count != tokens:
            raise MeasurementError(
                f"ctransformers' own loop made {count} tokens instead of {tokens}"
            )
        return float((tokens - 1) / seconds)


def serve_direct_loop(
    connection: Connection, path: Path, cpus: tuple[int, ...], context: int
) -> None:
    """Run the child of DirectLoop.

    It receives (fields, tokens) and sends (tokens made, seconds), until its pipe is closed.
    """
    from ctransformers.llm import LLM, Config

    from workers.engines.ctransformers import library_build

    os.dup2(2, 1)  # native code may print
    os.sched_setaffinity(0, cpus)
    config = Config(context_length=context, threads=len(cpus))
    model = LLM(str(path), config=config, lib=library_build())
    model.is_eos_token = lambda _: False  # like ignore_eos: the loop does not end at EOS
    while True:
        try:
            fields, tokens = connection.recv()
        except EOFError:
            return
        connection.send(_time_loop(model, fields, tokens))


def _time_loop(model: Any, fields: Mapping[str, Any], tokens: int) -> tuple[int, float]:
    """Tokenize, generate and detokenize. The time is that of all tokens after the first."""
    generated = model.generate(
        model.tokenize(fields["prompt"]),
        top_k=fields["top_k"],
        top_p=fields["top_p"],
        temperature=fields["temperature"],
        repetition_penalty=fields["repeat_penalty"],
        last_n_tokens=fields["repeat_last_n"],
    )
    times = []
    for token in itertools.islice(generated, tokens):
        model.detokenize([token], decode=False)
        times.append(time.monotonic())
    return len(times), times[-1] - times[0]
