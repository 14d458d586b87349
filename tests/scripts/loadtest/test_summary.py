"""Figures of runs."""

from __future__ import annotations

from scripts.loadtest.summary import Generator


def test_a_busy_or_late_load_generator_is_warned_of() -> None:
    assert Generator(0.5, 0.002, 0.2).warning is None
    assert "took 85% of a core" in (Generator(0.85, 0.002, 0.2).warning or "")
    assert "lagged by 12 ms" in (Generator(0.5, 0.012, 0.2).warning or "")
