"""A client that leaves during a long step of its prompt."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

from shared.messages import Cancel, Finished, Generate, Shutdown
from shared.prompt import Prompt
from shared.queues import RequestReceiver, TokenSender
from shared.sampling import SamplingParams
from shared.wire import encode_frame
from tests.helpers.support import (
    collect,
    echo_options,
    end_of,
    model_settings,
    pool_settings,
    text_of,
    until,
    with_pool,
)
from workers.child.loading import LoadedModel
from workers.child.loop import Loop
from workers.child.preparer import Preparer
from workers.child.scheduler import Scheduler
from workers.engines.base import Feed, Interrupted
from workers.engines.table import load_engine
from workers.pool.pool import WorkerPool
from workers.pool.stream import Event, RequestStream

FULL = SamplingParams(num_predict=1000)
LONG = "[[prefill print]][[prefill sleep 30]]"
"""Prints when the worker is in the step that is to be interrupted: a cancel that came before the
step would take effect without an interrupt."""
SOON_S = 8.0
"""Much less than the sleep, and than the timeout after which a stuck worker is replaced."""


class Worker:
    """What the only worker of the pool has printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._printed = ""

    async def sleeps(self, times: int = 1) -> None:
        """Wait until the worker has begun `times` long steps."""
        await until(lambda: self._count() >= times)

    def _count(self) -> int:
        self._printed += self._capfd.readouterr().err
        return self._printed.count("printed by the engine")


@pytest.fixture
def worker(capfd: pytest.CaptureFixture[str]) -> Worker:
    return Worker(capfd)


def pids(pool: WorkerPool) -> list[int]:
    """The process ids of the workers: a worker that was replaced has another one."""
    return [worker.pid for worker in pool.status().workers if worker.pid is not None]


async def collect_soon(pool: WorkerPool, stream: RequestStream) -> list[Event]:
    async with asyncio.timeout(SOON_S):
        return await collect(pool, stream)


def test_the_step_is_cut_short_and_its_slot_is_free_for_the_next(
    tmp_path: Path, worker: Worker
) -> None:
    async def step(pool: WorkerPool) -> None:
        before = pids(pool)
        left = pool.submit(Prompt(LONG), FULL)
        waiting = pool.submit(Prompt("next"), FULL)
        await worker.sleeps()
        pool.release(left)
        assert text_of(await collect_soon(pool, waiting)) == "next"
        assert pids(pool) == before, "the worker has died of it"

    path = echo_options(tmp_path, slots=1)
    with_pool(pool_settings(model_settings(path=path)), step)


def test_the_same_feed_can_be_given_to_the_echo_engine_again() -> None:
    engine = load_engine(model_settings(slots=1), threads=1)
    feed = Feed(0, engine.tokenize("[[prefill sleep 30]]"), 0, True)
    for _ in range(2):  # it sleeps again, so it has the text again
        engine.resume()
        with ThreadPoolExecutor(1) as thread:
            decoding = thread.submit(engine.decode, [feed], interruptible=True)
            engine.interrupt()
        assert isinstance(decoding.exception(), Interrupted)


def test_a_cancel_that_comes_just_before_the_step_begins_is_not_lost(tmp_path: Path) -> None:
    """The loop had taken its messages before it came, and the step had not begun."""
    engine = load_engine(model_settings(path=echo_options(tmp_path, slots=1)), threads=1)
    begun, asked = threading.Event(), threading.Event()
    real_truncate = engine.truncate

    def truncate(slot: int, length: int) -> int:  # the scheduler's last call before the step
        begun.set()
        assert asked.wait(SOON_S)
        return real_truncate(slot, length)

    engine.truncate = truncate  # type: ignore[method-assign]
    scheduler = Scheduler(engine, time.monotonic, None, 1.0)
    model = LoadedModel(engine, scheduler, Preparer(engine))
    requests_out, requests_in = Pipe(duplex=False)
    tokens_out, tokens_in = Pipe(duplex=False)
    with ThreadPoolExecutor(1) as thread:
        loop = Loop(model, RequestReceiver(requests_out), TokenSender(tokens_in))
        serving = thread.submit(loop.run)
        os.write(
            requests_in.fileno(), encode_frame([Generate(1, Prompt("[[prefill sleep 30]]"), FULL)])
        )
        assert begun.wait(SOON_S)
        os.write(requests_in.fileno(), encode_frame([Cancel(1)]))
        assert engine._interruption.wait(SOON_S)  # type: ignore[attr-defined]
        asked.set()
        assert tokens_out.poll(SOON_S), "the step was not interrupted"
        os.write(requests_in.fileno(), encode_frame([Shutdown()]))
        serving.result(SOON_S)


@pytest.mark.parametrize("comes_first", [False, True], ids=["after it", "before it"])
def test_another_prompt_in_the_same_step_loses_nothing(
    comes_first: bool, tmp_path: Path, worker: Worker
) -> None:
    """A first request occupies the worker until it has both of the others, so they share a step."""
    text = "the prompt of the one who stays, é語🙂 " * 8

    async def step(pool: WorkerPool) -> None:
        first = pool.submit(Prompt(LONG), FULL)
        await worker.sleeps()
        prompts = [text, LONG] if comes_first else [LONG, text]
        streams = {
            prompt: pool.submit(Prompt(prompt), replace(FULL, n_batch=40)) for prompt in prompts
        }
        pool.release(first)
        await worker.sleeps(times=2)
        pool.release(streams[LONG])
        events = await collect_soon(pool, streams[text])
        assert text_of(events) == text
        end = end_of(events)
        assert isinstance(end, Finished)
        assert end.usage.prompt_tokens == end.usage.completion_tokens == len(text.encode())

    path = echo_options(tmp_path, slots=3)
    with_pool(pool_settings(model_settings(path=path, context=1024)), step)
