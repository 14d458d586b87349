"""What is drawn on a terminal."""

from __future__ import annotations

import io

import pytest

from server.terminal.style import LiveLine, Style, bar, size_text, style_for


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1, "████"), (0.5, "██"), (0.25 / 4 * 2, "▌"), (-1, ""), (2, "████"), (0.99, "████")],
)
def test_a_bar_is_drawn_to_an_eighth_of_a_column(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (7_456_064, "7.5 MB"),
        (999_960, "1.0 MB"),
        (12e9, "12.0 GB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_sizes_are_in_powers_of_ten(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("stream", "environment", "is_on"),
    [
        (Tty(), {"TERM": "xterm"}, True),
        (Tty(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Tty(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Tty(), {"TERM": "dumb"}, False),
        (Tty(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_text_is_set_off_only_on_a_terminal_whose_user_wants_it(
    stream: io.StringIO, environment: dict[str, str], is_on: bool
) -> None:
    assert style_for(stream, environment).is_on is is_on


def test_text_without_a_style_stays_as_it_is() -> None:
    assert Style().bold("a") + Style().dim("b") + Style().accent("c") == "abc"
    assert Style(is_on=True).bold("a") == "\x1b[1ma\x1b[0m"


def test_a_live_line_is_written_over_and_cleared_once() -> None:
    stream = Tty()
    line = LiveLine(stream)
    line.show("one")
    line.show("x" * 500)
    line.clear()
    line.clear()

    shown = stream.getvalue()
    assert shown.startswith("\r\x1b[Kone\r\r\x1b[Kxxx")
    assert shown.count("x") < 100
    assert shown.endswith("\r\r\x1b[K")


def test_a_live_line_is_not_there_without_a_terminal() -> None:
    stream = io.StringIO()
    line = LiveLine(stream)
    line.show("one")
    line.clear()

    assert stream.getvalue() == ""
