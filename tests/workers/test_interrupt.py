"""A client that leaves in the middle of a long step of its prompt."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from shared.sampling import SamplingParams
from support import collect, echo_options, model_settings, pool_settings, text_of, until, with_pool
from workers.pool import WorkerPool

FULL = SamplingParams(num_predict=1000)
LONG = "[[prefill sleep 600]]"


def test_its_slot_is_free_at_once(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        left = pool.submit(LONG, FULL)
        await until(lambda: pool.active == 1)
        waiting = pool.submit("next", FULL)
        started = time.monotonic()
        pool.release(left)
        assert text_of(await collect(pool, waiting)) == "next"
        assert time.monotonic() - started < 60  # of the 600 s that the step would take

    path = echo_options(tmp_path, slots=1)
    with_pool(pool_settings(model_settings("echo", path)), step)


def test_another_prompt_in_the_same_step_loses_nothing(tmp_path: Path) -> None:
    text = "the prompt of the one who stays " * 8

    async def step(pool: WorkerPool) -> None:
        # In steps of 64 bytes, of which 40 go to the first prompt: it is on its second when the
        # other's first has come along.
        left = pool.submit("x" * 40 + LONG, replace(FULL, n_batch=40))
        stays = pool.submit(text, FULL)
        await until(lambda: pool.active == 2)
        pool.release(left)
        assert text_of(await collect(pool, stays)) == text

    path = echo_options(tmp_path, slots=2)
    with_pool(pool_settings(model_settings("echo", path, context=1024)), step)
