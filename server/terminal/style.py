"""Styles for a terminal: bold and dim text, bars, a line that is overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

EIGHTHS = " ▏▎▍▌▋▊▉"
MAX_COLUMNS = 100
"""Longer lines are hard to read."""


@dataclass(frozen=True, slots=True)
class Style:
    """Adds the escape codes of bold, dim and coloured text, if it is on."""

    is_on: bool = False

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def accent(self, text: str) -> str:
        return self._in("36", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_on else text


def style_for(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Style:
    """On for a terminal with colours, unless NO_COLOR is set."""
    is_plain = environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb"
    return Style(stream.isatty() and not is_plain)


def columns() -> int:
    """The width of the terminal, at most MAX_COLUMNS; 80 without a terminal."""
    return min(MAX_COLUMNS, shutil.get_terminal_size().columns)


def bar(share: float, width: int) -> str:
    """The filled part of a bar of `width` columns, to an eighth of a column. `share`: 0 to 1."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def size_text(size: float) -> str:
    """A number of bytes with a decimal unit, such as "7.5 MB" or "12.0 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class LiveLine:
    """The last line of a terminal, which each text overwrites. Shows nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = False
        self._is_terminal = stream.isatty()

    def show(self, text: str) -> None:
        """Replace the text. It must not contain escape codes, and is cut to the terminal."""
        if self._is_terminal:
            # The cursor returns at once, so that other output overwrites the line.
            self._write(f"\r\x1b[K{text[: columns() - 1]}\r")
            self._is_shown = True

    def clear(self) -> None:
        if self._is_shown:
            self._write("\r\x1b[K")
            self._is_shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
