"""What several test files need: settings with few words, and a bounded event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from server.chat import chat_format
from server.chat.system_prompts import SystemPrompts
from server.generation.served_model import ServedModel
from shared.messages import Failed, Finished, Token
from shared.sampling import SamplingParams
from shared.settings import ModelSettings, PoolSettings, RestartPolicy, WorkerSettings
from shared.values import ModelCard, ModelInfo
from workers.pool.pool import WorkerPool
from workers.pool.stream import Event, RequestStream

T = TypeVar("T")
TIMEOUT_S = 30.0
"""Long enough for any event here on a slow machine; a test that needs it has failed."""
QUICK_RESTART = RestartPolicy(first_wait_s=0.05, longest_wait_s=0.2, max_deaths=4)


def run(coroutine: Coroutine[Any, Any, T], timeout_s: float = TIMEOUT_S) -> T:
    """Run on the loop that the server uses; fail rather than hang."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await coroutine

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def model_settings(
    engine: Any = "echo",
    path: Path | None = None,
    *,
    model_type: str | None = None,
    context: int = 256,
    batch: int | None = None,
    kv_type: Any = "f16",
    slots: int | None = None,
) -> ModelSettings:
    return ModelSettings(path, engine, model_type, context, batch, kv_type, slots)


def echo_options(folder: Path, **options: Any) -> Path:
    """A file of EchoOptions."""
    path = folder / "echo.json"
    path.write_text(json.dumps(options))
    return path


def pool_settings(
    model: ModelSettings | None = None,
    *,
    workers: int = 1,
    queue: int = 8,
    queue_tokens: int = 100_000,
    progress_timeout_s: float = 20.0,
    load_timeout_s: float = 20.0,
    restart: RestartPolicy = QUICK_RESTART,
) -> PoolSettings:
    each = tuple(
        WorkerSettings(index, (), model or model_settings(), "warning") for index in range(workers)
    )
    return PoolSettings(each, queue, queue_tokens, load_timeout_s, progress_timeout_s, restart)


async def until(condition: Callable[[], bool], within_s: float = TIMEOUT_S) -> None:
    """Wait for a state that has no event of its own."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def until_ready(pool: WorkerPool, workers: int = 1) -> None:
    await until(lambda: pool.status().ready_workers >= workers)


async def collect(pool: WorkerPool, stream: RequestStream) -> list[Event]:
    """All events of the stream, to its Finished or Failed."""
    events: list[Event] = []
    try:
        while not events or isinstance(events[-1], Token):
            events += await stream.take()
    finally:
        pool.release(stream)
    return events


async def first_tokens(stream: RequestStream, count: int = 1) -> list[Event]:
    events: list[Event] = []
    while len(events) < count:
        events += await stream.take()
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def end_of(events: list[Event]) -> Finished | Failed:
    last = events[-1]
    assert isinstance(last, Finished | Failed)
    return last


def served(
    defaults: SamplingParams = SamplingParams(),  # noqa: B008  frozen
    card: ModelCard = ModelCard(),  # noqa: B008
    system: SystemPrompts = SystemPrompts(),  # noqa: B008
) -> ServedModel:
    """A model as a dialect sees it."""
    info = ModelInfo("echo", "echo", 256, 257, 4, 64, (), card=card)
    return ServedModel("tales", info, defaults, chat_format(card, None), system)


Step = Callable[[WorkerPool], Awaitable[T]]


def with_pool(settings: PoolSettings, step: Step[T]) -> T:
    """Run `step` on a live pool whose workers are all ready."""

    async def go() -> T:
        async with WorkerPool(settings) as pool:
            await until_ready(pool, len(settings.workers))
            return await step(pool)

    return run(go())
