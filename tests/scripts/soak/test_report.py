"""The report of a soak."""

from __future__ import annotations

from scripts.soak.judge import Outcome
from scripts.soak.report import report_text, text_rows
from scripts.soak.results import Results
from tests.scripts.soak.samples import samples


def test_a_chart_is_as_high_as_its_values() -> None:
    assert text_rows([1, 2, 3, 4], 4, 1) == ["▁▃▅█"]
    assert text_rows([0, 8], 4, 2) == ["  ██", "▁▁██"]
    assert text_rows([100.0, 100.1], 2, 1) == ["▁▁"]  # hardly a change


def test_the_report_says_what_is_wrong_and_a_soak_without_a_request_is_not_clean() -> None:
    results = Results()
    assert not results.is_clean
    results.outcomes["short", Outcome.COMPLETED] += 3
    results.samples = samples(lambda at: 40.0)
    assert results.is_clean
    assert report_text(results).endswith("or a clear error, and nothing grows")
    results.lost.append("after 3.0 s: short, stream: cut")
    assert not results.is_clean
    assert "  after 3.0 s: short, stream: cut" in report_text(results)
    results.lost.clear()
    results.samples = samples(lambda at: 40 + at)
    assert "NOT CLEAN: grows: front, RSS" in report_text(results)
