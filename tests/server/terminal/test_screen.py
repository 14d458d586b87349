"""The start screen of a real pool."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

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


def test_the_progress_is_drawn_at_changes_and_once_a_second(tmp_path: Path) -> None:
    """It was drawn ten times a second."""
    screen = Tty()
    path = echo_options(tmp_path, load_s=2.5)

    async def main() -> int:
        models = CountedModels([ModelSpec("echo", pool_settings(model_settings(path=path)))])
        settings = build_settings(read_options(["--engine", "echo"], {}))
        async with models:
            served = Models(models, SamplingParams(), SystemPrompts())
            start = StartScreen(settings, screen)
            await asyncio.wait_for(start.follow(served, "http://127.0.0.1:8080"), 20)
        return models.looks

    looks = run(main())

    assert 3 <= looks < 15
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "  loading   ·" in shown
    assert " 2 s" in shown
    assert shown.index("loaded    echo") < shown.index("http://127.0.0.1:8080  with a page")
