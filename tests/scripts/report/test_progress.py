"""Progress on a terminal and in a log."""

from __future__ import annotations

from scripts.report.progress import Progress, bar_line, plain_line


def test_a_bar_is_as_full_as_the_share_says_and_never_longer() -> None:
    assert (
        bar_line(Progress(0.5, "5 s", "8 streams"))
        == f"\r\x1b[K8 streams  {'█' * 12}{'░' * 12}  5 s"
    )
    assert bar_line(Progress(1.7, "17 s")) == f"\r\x1b[K{'█' * 24}  17 s"


def test_a_line_of_a_log_names_the_program() -> None:
    assert plain_line("loadtest", Progress(0.5, "5 s", "8 streams")) == "loadtest: 8 streams: 5 s"
    assert plain_line("soak", Progress(0.5, "5 s")) == "soak: 5 s"
