"""Plots as inline SVG. Colours and fonts come from classes of the page's style sheet.

Axis     a range of values, linear or logarithmic, and its ticks
Chart    a frame with two axes, and marks in it: lines, bars, a band
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 12.0, 44.0
"""Margins around the frame."""
STEPS = (1, 2, 2.5, 5, 10)
LOG_STEPS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))
MOST_TICKS = 7
MOST_BARS_WITH_GAPS = 80
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values. `ticks` are the labelled values."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def position(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high end."""
        if self.is_log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(label: str, high: float, low: float = 0.0) -> Axis:
    """An axis from `low` to a round number of `high` or more."""
    span = high - low or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(power * step for step in STEPS if span / (power * step) <= 5.0001)
    count = math.ceil((low + span) / step - 1e-9) - math.floor(low / step)
    first = math.floor(low / step) * step
    ticks = [first + step * index for index in range(count + 1)]
    return Axis(label, first, ticks[-1], ticks)


def fitted_axis(label: str, high: float) -> Axis:
    """An axis from 0 to exactly `high`, for a timeline."""
    ticks = [tick for tick in linear_axis(label, high).ticks if tick <= high]
    return Axis(label, 0.0, high or 1.0, ticks)


def ordinal_axis(label: str, high: int) -> Axis:
    """An axis of `high` items in a row. Its ticks are integers."""
    ticks = [tick for tick in linear_axis(label, high).ticks if tick <= high and tick % 1 == 0]
    return Axis(label, 0.0, high, ticks)


def log_axis(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis that includes `low` and `high`, which are positive."""
    low, high = low / 1.02, max(high * 1.02, low * 2)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in LOG_STEPS:
        ticks = [tick for d in decades for s in steps if low <= (tick := s * 10.0**d) <= high]
        if len(ticks) <= MOST_TICKS:
            break
    return Axis(label, low, high, ticks, is_log=True)


def axis_for(label: str, values: Sequence[float]) -> Axis:
    """A linear axis from 0, or a logarithmic one if the values differ by a large factor."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 30:
        return log_axis(label, low, high)
    return linear_axis(label, high)


def at_values(label: str, values: Sequence[float]) -> Axis:
    """An axis with a tick at each value, for example at each load of a sweep."""
    low, high = min(values), max(values)
    if low == high:
        return Axis(label, 0.0, 2 * high, values)
    if high / low >= 8:
        return Axis(label, low / 1.1, high * 1.1, values, is_log=True)
    margin = (high - low) * 0.05
    return Axis(label, low - margin, high + margin, values)


def written(value: float) -> str:
    """The label of a tick."""
    if value >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.4g}"


class Chart:
    """A frame with two axes. Marks are drawn in the order of the calls."""

    def __init__(
        self, name: str, x: Axis, y: Axis, width: float = 460, height: float = 250
    ) -> None:
        self._name = name
        self._x = x
        self._y = y
        self._width = width
        self._height = height
        self._marks: list[str] = []
        self._notes: list[str] = []  # drawn above all marks

    def line(self, points: Iterable[Point], style: str, tips: Sequence[str] = ()) -> None:
        """Draw a line through the points. With `tips`, each point is a dot with a tooltip."""
        corners = [(self._at_x(x), self._at_y(y)) for x, y in points]
        self._marks.append(f'<polyline class="line {style}" points="{_points(corners)}"/>')
        for (x, y), tip in zip(corners, tips, strict=False):
            self._marks.append(
                f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3">{_tip(tip)}</circle>'
            )

    def area(self, points: Sequence[Point], style: str) -> None:
        """Fill the area between the points and the x axis, and draw a line along the points."""
        if points:
            base = self._at_y(self._y.low)
            corners = [(self._at_x(x), self._at_y(y)) for x, y in points]
            outline = [(corners[0][0], base), *corners, (corners[-1][0], base)]
            self._marks.append(f'<polygon class="area {style}" points="{_points(outline)}"/>')
            self.line(points, style)

    def bars(self, bars: Sequence[tuple[float, float, float, str]], style: str) -> None:
        """Draw bars. Each is (from, to, height, tooltip)."""
        base = self._at_y(self._y.low)
        gap = 0.12 if len(bars) <= MOST_BARS_WITH_GAPS else 0.0
        for low, high, value, tip in bars:
            left, right, top = self._at_x(low), self._at_x(high), self._at_y(value)
            inset = (right - left) * gap
            self._marks.append(
                f'<rect class="bar {style}" x="{left + inset:.1f}" y="{top:.1f}"'
                f' width="{max(right - left - 2 * inset, 0.4):.1f}"'
                f' height="{max(base - top, 0):.1f}">{_tip(tip)}</rect>'
            )

    def band(self, low: float, high: float) -> None:
        """Shade a part of the x axis."""
        left, right = self._at_x(low), self._at_x(high)
        self._marks.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP:g}" width="{max(right - left, 0):.1f}"'
            f' height="{self._at_y(self._y.low) - TOP:.1f}"/>'
        )

    def rule(self, value: float, text: str, style: str = "", row: int = 0) -> None:
        """Draw a vertical line at a value of the x axis, with a text at its top."""
        x, is_right = self._at_x(value), self._x.position(value) > 0.82
        anchor, offset = ("end", -4) if is_right else ("start", 4)
        self._marks.append(
            f'<line class="rule {style}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:g}"'
            f' y2="{self._at_y(self._y.low):.1f}"/>'
        )
        self._notes.append(
            f'<text class="note {style}" x="{x + offset:.1f}" y="{TOP + 11 + 14 * row:.1f}"'
            f' text-anchor="{anchor}">{html.escape(text)}</text>'
        )

    def svg(self) -> str:
        """The plot."""
        size = f"0 0 {self._width:g} {self._height:g}"
        return (
            f'<svg viewBox="{size}" role="img" aria-label="{html.escape(self._name)}">'
            f"{self._grid()}{''.join(self._marks + self._notes)}</svg>"
        )

    def _grid(self) -> str:
        right, bottom = self._width - RIGHT, self._height - BOTTOM
        middle, centre = (LEFT + right) / 2, (TOP + bottom) / 2
        parts = []
        for tick in self._y.ticks:
            y = self._at_y(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{LEFT - 7:g}" y="{y + 4:.1f}" text-anchor="end">'
                f"{written(tick)}</text>"
            )
        for tick in self._x.ticks:
            x = self._at_x(tick)
            parts.append(
                f'<line class="stub" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:g}"'
                f' y2="{bottom + 4:g}"/><text class="tick" x="{x:.1f}" y="{bottom + 17:g}"'
                f' text-anchor="middle">{written(tick)}</text>'
            )
        parts.append(
            f'<line class="axis" x1="{LEFT:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
            f'<text class="label" x="{middle:g}" y="{self._height - 8:g}" text-anchor="middle">'
            f'{html.escape(self._x.label)}</text><text class="label" text-anchor="middle"'
            f' transform="translate(13 {centre:g}) rotate(-90)">{html.escape(self._y.label)}</text>'
        )
        return "".join(parts)

    def _at_x(self, value: float) -> float:
        return LEFT + self._x.position(value) * (self._width - LEFT - RIGHT)

    def _at_y(self, value: float) -> float:
        height = self._height - TOP - BOTTOM
        return TOP + (1 - self._y.position(value)) * height


def range_chart(
    name: str, rows: Sequence[tuple[str, float, float, float, str, str]], width: float = 940
) -> str:
    """Ranges around 1 on a logarithmic axis. Each row is (name, low, median, high, text, style)."""
    row_height, left, right = 30.0, 150.0, 250.0
    least = min([0.8, *(row[1] for row in rows)])
    most = max([1.25, *(row[3] for row in rows)])
    axis = log_axis("", least, most)
    height = row_height * len(rows) + 34

    def at(value: float) -> float:
        return left + axis.position(value) * (width - left - right)

    parts = []
    for tick in sorted({1.0, *axis.ticks}):
        style = "axis" if tick == 1.0 else "grid"
        parts.append(
            f'<line class="{style}" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="4"'
            f' y2="{height - 26:g}"/><text class="tick" x="{at(tick):.1f}" y="{height - 9:g}"'
            f' text-anchor="middle">{tick:.3g}</text>'
        )
    for index, (title, low, median, high, text, style) in enumerate(rows):
        y = row_height * (index + 0.5) + 4
        parts.append(
            f'<text class="name" x="{left - 16:g}" y="{y + 4.5:g}" text-anchor="end">'
            f'{html.escape(title)}</text><line class="range {style}" x1="{at(low):.1f}"'
            f' x2="{at(high):.1f}" y1="{y:g}" y2="{y:g}"/><circle class="dot {style}"'
            f' cx="{at(median):.1f}" cy="{y:g}" r="5"/><text class="name {style}"'
            f' x="{width - right + 22:g}" y="{y + 4.5:g}">{html.escape(text)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def steps(edges: Sequence[float], heights: Sequence[float]) -> list[Point]:
    """The outline of adjacent bars."""
    sides = zip(itertools.pairwise(edges), heights, strict=True)
    return [(edge, height) for (low, high), height in sides for edge in (low, high)]


def _points(corners: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _tip(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""
