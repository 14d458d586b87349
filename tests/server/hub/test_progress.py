"""Progress in the log: percent of all, speed of what came."""

from __future__ import annotations

import logging
import re

import pytest

from server.hub.progress import Lines


def test_a_line_says_percent_and_speed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Lines("m.gguf", size=8_000_000, done=2_000_000, every_s=0.0)
    progress.add(2_000_000)
    assert re.fullmatch(r"m\.gguf: 50 %, \d+\.\d MB/s", caplog.messages[-1])
    progress.restart()
    assert caplog.messages[-1] == "m.gguf: 0 %, 0.0 MB/s"
    assert (progress.done, progress.received) == (0, 2_000_000)


def test_between_two_lines_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Lines("m.gguf", size=100, done=0, every_s=3600.0)
    for _ in range(100):
        progress.add(1)
    assert caplog.messages == []
