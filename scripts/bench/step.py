"""The figure `step`: the time that our Python adds to each decode step of a worker.

A worker process serves endless streams, as in the server. In it, the functions of llama.cpp that
decode and sample are timed. The remaining time of an iteration of the worker's loop is ours:
scheduling, the batch, text, the frame and its sending.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job, Skipped
from scripts.bench.models import make_model
from scripts.bench.targets import SAMPLING, RandomRequests
from scripts.load.errors import MeasurementError
from scripts.report.text import count
from shared.errors import ConfigurationError
from shared.messages import Finished, Generate, Message, Ready, Tokens
from shared.prompt import Prompt
from shared.queues import TokenSender
from shared.sampling import SamplingParams
from shared.settings import ModelSettings, WorkerSettings
from shared.wire import FrameParser, encode_frame
from workers.child.process import run
from workers.machine.topology import make_plan

CONTEXT = 512
READ_SIZE = 1 << 16
FUNCTIONS = ("llama_decode", "llama_sampler_sample")
"""Functions of llama.cpp that are timed: those that decode and sample."""


class Step(NamedTuple):
    """The parts of the time of a step, in seconds."""

    decode: float
    sample: float
    ours: float


def measure_step(job: Job) -> Figure:
    """Milliseconds of our Python in a step of many sequences."""
    sizes = job.sizes.llama
    model = make_model(job.models, sizes.small_shape, "F16")
    try:
        (cpus,) = make_plan(job.machine, batches=True, threads=1, workers=1).workers
    except ConfigurationError as error:
        raise Skipped(str(error)) from None
    runs = [
        run_worker(model, cpus, sizes.small_streams, sizes.tokens) for _ in range(job.sizes.runs)
    ]
    return Figure(
        title=f"step: {count(sizes.small_streams, 'sequence')} of {model.name}, 1 thread",
        series=[
            Series("llama.cpp decodes", "ms", [step.decode * 1000 for step in runs], 2),
            Series("llama.cpp samples", "ms", [step.sample * 1000 for step in runs], 2),
            Series(
                "our Python",
                "ms",
                [step.ours * 1000 for step in runs],
                3,
                Aim("at most", 0.1),
            ),
        ],
        tokens=job.sizes.runs * sizes.small_streams * sizes.tokens,
    )


def run_worker(model: Path, cpus: Sequence[int], streams: int, tokens: int) -> Step:
    """The median of each part, over the steps of all streams. Raises MeasurementError."""
    settings = WorkerSettings(
        index=0,
        cpus=tuple(cpus),
        model=ModelSettings(model, "llama_cpp", None, CONTEXT, None, "f16", slots=streams),
        log_level="warning",
    )
    spawn = multiprocessing.get_context("spawn")
    requests_out, requests_in = spawn.Pipe(duplex=False)
    tokens_out, tokens_in = spawn.Pipe(duplex=False)
    report_out, report_in = spawn.Pipe(duplex=False)
    worker = spawn.Process(
        target=timed_worker, args=(settings, requests_out, tokens_in, report_in), daemon=True
    )
    worker.start()
    for end in (requests_out, tokens_in, report_in):
        end.close()
    try:
        _run_streams(requests_in, tokens_out, streams, tokens)
        requests_in.close()  # this ends the worker's loop
        steps: list[Step] = report_out.recv()
    except EOFError:
        raise MeasurementError("the worker has ended") from None
    finally:
        worker.kill()
        worker.join()
    return Step(*map(statistics.median, zip(*steps, strict=True)))


def _run_streams(requests: Connection, tokens_out: Connection, streams: int, tokens: int) -> None:
    """Request the streams once the worker is ready, and read them to their ends.

    Raises EOFError if the worker ends before.
    """
    requests_of = RandomRequests(seed=1)
    fields = {**SAMPLING, "num_predict": tokens, "ignore_eos": True}
    batch = [
        Generate(
            request_id,
            Prompt(requests_of.draw(10, tokens).prompt),
            SamplingParams().from_fields({**fields, "seed": request_id}),
        )
        for request_id in range(streams)
    ]
    parser = FrameParser()
    over = 0
    while over < streams:
        data = os.read(tokens_out.fileno(), READ_SIZE)
        if not data:
            raise EOFError
        for message in parser.feed(data):
            over += isinstance(message, Finished)
            if isinstance(message, Ready):
                os.write(requests.fileno(), encode_frame(batch))


class StepTimer:
    """Records how the time between two frames is spent."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Step]] = []
        """Number of tokens of each frame, and the parts of the time since the frame before."""
        self._spent = dict.fromkeys(FUNCTIONS, 0.0)  # seconds since the last frame
        self._last = 0.0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to that of `name`."""

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._spent[name] += time.perf_counter() - started

        return call

    def sent(self, batch: Sequence[Message]) -> None:
        """A frame was sent."""
        tokens = sum(len(message.tokens) for message in batch if isinstance(message, Tokens))
        decode, sample = (self._spent[name] for name in FUNCTIONS)
        whole = time.perf_counter() - self._last
        self.steps.append((tokens, Step(decode, sample, whole - decode - sample)))
        self._spent = dict.fromkeys(FUNCTIONS, 0.0)
        self._last = time.perf_counter()


def timed_worker(
    settings: WorkerSettings, requests: Connection, tokens: Connection, report: Connection
) -> None:
    """Run a worker, and report the steps of all streams at its end."""
    import llama_cpp  # here: only the worker loads the library

    timer = StepTimer()
    for name in FUNCTIONS:
        setattr(llama_cpp, name, timer.timed(name, getattr(llama_cpp, name)))

    class TimedSender(TokenSender):
        def send(self, batch: Sequence[Message]) -> None:
            super().send(batch)
            timer.sent(batch)

    run(settings, requests, tokens, TimedSender)
    most = max(sent for sent, _ in timer.steps)
    report.send([step for sent, step in timer.steps if sent == most])
