"""Questions about tokens, from the pool to a worker with a model, and back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from shared.errors import ContextTooShort
from shared.prompt import Prompt
from tests.helpers.models import build_llama_gguf
from tests.helpers.support import model_settings, pool_settings, until_ready, with_pool
from workers.pool.pool import WorkerPool

LONG = "🙂" * 40_000
"""llama.cpp takes the square of its length for characters that the vocabulary lacks."""
QUESTIONS = 8


def test_questions_whose_askers_have_left_are_not_answered(tmp_path: Path) -> None:
    """Each of them would keep those behind it waiting."""

    async def ask(pool: WorkerPool, text: str) -> None:
        with pytest.raises(ContextTooShort):
            await pool.tokenize(Prompt(text), is_start=True)

    async def go(pool: WorkerPool) -> None:
        await until_ready(pool)
        began_at = time.monotonic()
        await ask(pool, LONG)
        one_s = time.monotonic() - began_at
        began_at = time.monotonic()
        questions = [asyncio.create_task(ask(pool, LONG)) for _ in range(QUESTIONS)]
        await asyncio.sleep(one_s / 4)  # the first is being tokenized
        for question in questions[:-1]:
            question.cancel()
        await questions[-1]
        assert time.monotonic() - began_at < QUESTIONS / 2 * one_s
        assert all(question.cancelled() for question in questions[:-1])
        assert (await pool.tokenize(Prompt("a"), is_start=False)).tokens

    path = build_llama_gguf(tmp_path / "model.gguf")
    with_pool(pool_settings(model_settings("llama_cpp", path, slots=1)), go)
