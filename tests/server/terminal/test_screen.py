"""The start screen of a real pool."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

from server.chat.system_prompts import SystemPrompts
from server.config.settings import build_settings
from server.generation.models import Models
from server.terminal.screen import StartScreen
from shared.sampling import SamplingParams
from shared.settings import ModelSpec
from tests.helpers.options import read_options
from tests.helpers.support import echo_options, model_settings, pool_settings, run
from tests.server.terminal.test_style import Tty
from workers.pool.catalog import LoadedModels, ModelStatus


class CountedModels(LoadedModels):
    """Counts how often the load progress is drawn."""

    looks = 0

    def statuses(self) -> list[ModelStatus]:
        self.looks += 1
        return super().statuses()


async def shown(models: LoadedModels, screen: Tty) -> None:
    """Show the start of the models until the address is shown."""
    settings = build_settings(read_options(["--engine", "echo"], {}))
    async with models:
        served = Models(models, SamplingParams(), SystemPrompts())
        await StartScreen(settings, screen).follow(served, "http://127.0.0.1:8080")
        await asyncio.sleep(0.05)  # for what may still be logged


def test_the_progress_is_drawn_at_changes_and_once_a_second(tmp_path: Path) -> None:
    """It was drawn ten times a second."""
    screen = Tty()
    model = model_settings(path=echo_options(tmp_path, load_s=2.5))
    models = CountedModels([ModelSpec("echo", pool_settings(model))])

    run(shown(models, screen))

    assert 3 <= models.looks < 15
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "  loading   ·" in text
    assert " 2 s" in text
    assert text.index("loaded    echo") < text.index("http://127.0.0.1:8080  with a page")


def test_what_the_screen_shows_is_not_in_the_log_beside_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line about the loaded worker was logged after the screen had noticed it."""
    caplog.set_level(logging.INFO)

    run(shown(LoadedModels([ModelSpec("echo", pool_settings())]), Tty()))

    assert [message for message in caplog.messages if "loaded" in message] == []
